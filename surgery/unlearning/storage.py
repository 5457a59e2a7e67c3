"""Reading what was saved, and hashing it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from surgery.errors import BottleneckError


def digest(array: NDArray) -> str:
    """xxh3-64 of an array's bytes; 16 hex digits."""
    return xxhash.xxh3_64(np.ascontiguousarray(array).data).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table; raises BottleneckError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BottleneckError(f"{path.parent} holds no {path.name}: is it a folder that this program wrote?") from None
    except (OSError, ValueError) as error:
        raise BottleneckError(f"{path} can't be read ({error}): make or fetch it again") from None
    if not isinstance(content, dict):
        raise BottleneckError(f"{path} isn't a JSON table: make or fetch it again")
    return content


def read_arrays(path: Path) -> dict[str, NDArray]:
    """All arrays of a safetensors file; raises BottleneckError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise BottleneckError(f"{path} is missing: make or fetch it again") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise BottleneckError(f"{path} can't be read ({error}): make or fetch it again") from None
