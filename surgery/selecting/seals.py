"""Seals: checksums of a store's files, held against their content before anything is worked out from it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgery.errors import SelectionError

_PIECE = 1 << 22
_SEAL = "checksum"


def sealed(content: dict[str, Tensor]) -> bytes:
    """A safetensors file with a checksum, in its metadata, of its tensors and of what the header says of them."""
    plain = save(content)
    size = int.from_bytes(plain[:8], "little")
    total = _of_header(plain[8 : 8 + size])
    total.update(memoryview(plain)[8 + size :])
    del plain  # as large as the tensors
    return save(content, metadata={_SEAL: total.hexdigest()})


def opened(file: Path, *, check: bool = True) -> Any:
    """Open a safetensors file whose content is what was written; one without a checksum, of an earlier version, as it is.

    Raises SelectionError, naming the file.
    """
    try:
        found = safe_open(file, "pt")
        told = (found.metadata() or {}).get(_SEAL) if check else None
        if told is not None and told != _checksum(file):
            raise SafetensorError("its content isn't what was written")
    except (OSError, SafetensorError) as error:
        raise SelectionError(f"{file} can't be read ({error}): collect the features again") from None
    return found


def digest_of(files: Iterable[Path]) -> str:
    """Checksum of the bytes of several files, one after another."""
    total = xxhash.xxh3_64()
    for file in files:
        _add(total, file, 0)
    return total.hexdigest()


def _checksum(file: Path) -> str:
    with file.open("rb") as head:
        size = int.from_bytes(head.read(8), "little")
        total = _of_header(head.read(size))
    _add(total, file, 8 + size)
    return total.hexdigest()


def _of_header(header: bytes) -> Any:
    """A checksum that holds what a header says of the tensors, but no metadata: there the checksum itself stands."""
    told = {name: about for name, about in json.loads(header).items() if name != "__metadata__"}
    return xxhash.xxh3_128(json.dumps(told, sort_keys=True).encode())


def _add(total: Any, file: Path, first: int) -> None:
    with file.open("rb") as content:
        content.seek(first)
        while piece := content.read(_PIECE):
            total.update(piece)
