"""safetensors files seen as bytes: where each tensor lies, checked, without reading any weights.

The safetensors library reads and writes whole tensors; patching a file at byte offsets and hashing it while it is
copied need the offsets themselves, which that library keeps to itself.
"""

import json
import math
from dataclasses import dataclass
from operator import index
from pathlib import Path

import torch

from surgery.errors import CheckpointError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
# Types that the format knows and only quantised checkpoints use.
_UNREAD = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")

_LENGTH = 8  # a file begins with its header's length, a little-endian 64-bit integer
_HEADER_LIMIT = 100_000_000  # the safetensors format's own limit


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: `start` and `stop` are byte offsets from the beginning of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(file: Path) -> tuple[list[Entry], dict[str, str]]:
    """The tensors of a safetensors file in the order they lie in it, and the metadata.

    Raises CheckpointError when the header isn't what the format asks for, or the file isn't exactly as long as the
    header says.
    """
    header, data = _read_header_json(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file}: its safetensors header has metadata that isn't a table: fetch the file again")
    entries = sorted(
        (_entry(file, name, about, data) for name, about in header.items()), key=lambda e: (e.start, e.stop)
    )
    position = data
    for entry in entries:
        if entry.start != position:
            raise CheckpointError(
                f"{file}: tensor {entry.name} doesn't begin where the one before ends: fetch the file again"
            )
        position = entry.stop
    size = file.stat().st_size
    if size != position:
        wrong = "truncated" if size < position else "longer than its header says"
        raise CheckpointError(f"{file} is {wrong} ({size:,} bytes instead of {position:,}): fetch the file again")
    return entries, metadata


def _read_header_json(file: Path) -> tuple[dict, int]:
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(_LENGTH), "little")
        if size < _LENGTH or length > min(_HEADER_LIMIT, size - _LENGTH):
            raise CheckpointError(
                f"{file} is no safetensors file, or is cut off within its header: fetch the file again"
            )
        raw = handle.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its safetensors header isn't a JSON table: fetch the file again")
    return header, _LENGTH + length


def _entry(file: Path, name: str, about: object, data: int) -> Entry:
    code = about.get("dtype") if isinstance(about, dict) else None
    if code in _UNREAD:
        raise CheckpointError(
            f"{file}: tensor {name} is stored as {code}, numbers that only a quantised checkpoint holds: "
            "take the checkpoint it was made from, or dequantise it first"
        )
    try:
        dtype = DTYPES[about["dtype"]]  # type: ignore[index]
        shape = tuple(index(n) for n in about["shape"])  # type: ignore[index]
        start, stop = (data + index(n) for n in about["data_offsets"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{file}: the header's line on tensor {name} can't be read ({about}): fetch the file again"
        ) from None
    if min(shape, default=0) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{file}: tensor {name} has {stop - start:,} bytes, not what its shape {shape} takes: fetch the file again"
        )
    return Entry(name, dtype, shape, file, start, stop)
