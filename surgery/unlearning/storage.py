"""Reading what was saved, and hashing it.

Every file carries a checksum of its own, so that one that the owner leaves out (the training rows) leaves no hash behind
by which a guess at it could be tested.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from surgery.errors import BottleneckError
from surgery.files import replace_bytes, replace_json
from surgery.jsonfile import load_json

_CHECKSUM = "checksum"


def digest(array: NDArray) -> str:
    """xxh3-64 of an array's bytes; 16 hex digits."""
    return xxhash.xxh3_64(np.ascontiguousarray(array).data).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table; raises BottleneckError for anything else."""
    try:
        content = load_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BottleneckError(f"{path.parent} holds no {path.name}: is it a folder that this program wrote?") from None
    except (OSError, ValueError) as error:
        raise BottleneckError(f"{path} can't be read ({error}): make or fetch it again") from None
    if not isinstance(content, dict):
        raise BottleneckError(f"{path} isn't a JSON table: make or fetch it again")
    return content


def write_table(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON table with its checksum."""
    replace_json(path, {**content, _CHECKSUM: _table_checksum(content)})


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write a safetensors file with its checksum."""
    replace_bytes(path, save(dict(arrays), {_CHECKSUM: hash_arrays(arrays).hexdigest()}))


def take_checksum(path: Path, table: dict[str, Any]) -> bool:
    """Take the checksum out of a table that was read; False if it has none, BottleneckError if it is of other content."""
    told = table.pop(_CHECKSUM, None)
    return _compare(path, told, _table_checksum(table)) if told is not None else False


def read_arrays(path: Path) -> tuple[dict[str, NDArray], bool]:
    """All arrays of a safetensors file, and whether it has a checksum (earlier versions wrote none).

    Raises BottleneckError when it is missing, damaged, or its checksum is of other content.
    """
    try:
        with safe_open(path, "np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it isn't a mapping)
            told = (opened.metadata() or {}).get(_CHECKSUM)
    except FileNotFoundError:
        raise BottleneckError(f"{path} is missing: make or fetch it again") from None
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BottleneckError(f"{path} can't be read ({error}): make or fetch it again") from None
    return arrays, told is not None and _compare(path, told, hash_arrays(arrays).hexdigest())


def hash_arrays(arrays: Mapping[str, NDArray], start: bytes = b"") -> Any:
    """SHA-256 over `start` and every array's name, type, shape and content."""
    total = hashlib.sha256(start)
    for name, array in sorted(arrays.items()):
        total.update(json.dumps([name, str(array.dtype), list(array.shape), digest(array)]).encode())
    return total


def check_arrays(arrays: Mapping[str, NDArray], expected: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Raise ValueError, naming the first array whose type or shape isn't the expected one."""
    for name, (dtype, shape) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")


def _table_checksum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def _compare(path: Path, told: Any, actual: str) -> bool:
    if told != actual:
        raise BottleneckError(f"{path} is damaged, or was changed since it was written: make or fetch it again")
    return True
