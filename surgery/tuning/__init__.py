"""Fine-tuning that leaves a skill in few weights: what grafting starts from.

from surgery.tuning import Recipe, Tuned, tune
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.tuning.finetuning import Tuned, tune
    from surgery.tuning.recipe import Recipe

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Recipe": "surgery.tuning.recipe",
    "Tuned": "surgery.tuning.finetuning",
    "tune": "surgery.tuning.finetuning",
}

__all__ = ["Recipe", "Tuned", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery.tuning' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
