"""JSON that a stranger may have written: read within limits of size and depth, and held to a declared type.

What this program writes is read by `load_json` and `parse_json`, as strictly as it was written; what others write by
`parse_loose`, which takes NaN as they do. Types are msgspec's: builtins, `TypedDict`, dataclasses, `Annotated[int, Meta(ge=0)]`. Fields that a type doesn't name are
let pass, so that files of later versions load.
"""

import json
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import msgspec

DEPTH = 64  # what this program writes is a tenth as deep
SIZE = 1 << 30  # bytes
_BOM = b"\xef\xbb\xbf"


class JsonError(ValueError):
    """Text that isn't JSON, or not of the type asked for; the message says what and where on one line."""


class KindError(JsonError):
    """JSON, but of another type than was asked for."""


def load_json(path: Path, kind: Any = Any, *, size: int = SIZE) -> Any:
    """A file's content as a value of a type; raises OSError, and JsonError for what `parse_json` refuses."""
    if (length := path.stat().st_size) > size:
        raise JsonError(f"{length:,} bytes, more than the {size:,} that such a file may have")
    return parse_json(path.read_bytes(), kind)


def parse_json(text: bytes | str, kind: Any = Any) -> Any:
    """A value of a type; raises JsonError for other content, NaN and infinity, and nesting deeper than `DEPTH`."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        value = msgspec.json.decode(raw.removeprefix(_BOM), type=kind)
    except msgspec.ValidationError as error:
        raise KindError(str(error)) from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise JsonError(str(error)) from None
    except RecursionError:
        raise JsonError(f"nested more than {DEPTH} deep") from None
    check_depth(value)
    return value


def parse_loose(text: bytes | str) -> Any:
    """Builtins from another program's JSON; raises JsonError for what isn't that, and for nesting deeper than `DEPTH`."""
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise JsonError(f"nested more than {DEPTH} deep") from None
    except ValueError as error:
        raise JsonError(str(error)) from None
    check_depth(value)
    return value


def conform(content: Any, kind: Any) -> None:
    """Raise KindError where parsed JSON isn't of a type."""
    try:
        msgspec.convert(content, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise KindError(str(error)) from None


def load_named(path: Path, form: str, kind: Any = Any) -> Any:
    """`load_json` of a file whose `format` says what it is; raises JsonError too where that isn't `form`."""
    content = load_json(path)
    if not isinstance(content, dict) or content.get("format") != form:
        raise JsonError(f"it isn't a {form}'s")
    conform(content, kind)
    return content


def check_depth(content: Any) -> None:
    """Raise JsonError for tables and lists that are nested too deep for what handles them next."""
    level = [vars(content) if is_dataclass(content) else content]
    for _ in range(DEPTH):
        level = [child for node in level for child in _children(node) if isinstance(child, (dict, list))]
        if not level:
            return
    raise JsonError(f"nested more than {DEPTH} deep")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
