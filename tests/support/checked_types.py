"""Shapes and types of the packages' functions, checked as tests run: at half the time that jaxtyping's own hook takes.

That hook keeps a record of sizes around every call, which is most of what it costs, and only annotations with shapes look
at the record: functions without any are checked by beartype alone.
"""

import inspect
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_typed = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))  # a TypeError
_with_sizes = jaxtyping.jaxtyped(typechecker=None)


def check_types(*packages: str) -> None:
    """Check what the functions of some packages take and return, from their import on."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked  # what the hook puts before every function and class
    jaxtyping.install_import_hook(list(packages), "beartype.beartype")


def checked(given: Any) -> Any:
    """Check a function, or what a dataclass is made of."""
    if inspect.isclass(given):
        own = vars(given).get("__init__")
        if is_dataclass(given) and inspect.isfunction(own) and not hasattr(own, "__wrapped__"):
            given.__init__ = checked(own)
        return given
    written = given.__annotations__
    resolved = {name: _resolved(annotation, given.__globals__) for name, annotation in written.items()}
    given.__annotations__ = resolved
    made = _typed(given)
    if any(map(_has_shape, resolved.values())):
        made = _with_sizes(made)
    given.__annotations__ = made.__annotations__ = written
    return made


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """An annotation; one that names what isn't there when the program runs is Any."""

    def alone(value: Any) -> None: ...

    alone.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(alone, names, include_extras=True)["value"]
    except Exception:  # names that only a type checker sees, and whatever else can't be evaluated
        return Any


def _has_shape(annotation: Any) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(annotation)))
