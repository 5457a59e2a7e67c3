"""One pass over tensor bytes: hash them, check and replace single weights, copy what is left alone.

A weight that a skill touches may hold its base value, its tuned value or what is wanted, and nothing else. Each pass first restores
the base value in its buffer, hashes, then writes the value that is wanted. So one loop serves to fingerprint, to
apply, to revert, to do either twice, and to finish what a killed run left half done; and the hash is the base's
whichever state the file is in.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from surgery.checkpoints.tensorfile import Entry
from surgery.errors import SkillError

_CHUNK = 1 << 20  # bytes; stays in the processor's cache between reading, hashing and writing


@dataclass(frozen=True)
class Edit:
    """Replace single weights of one tensor.

    `indices` count elements of the flattened tensor, ascending; `base` and `tuned` are the values that they may hold and
    `wanted` what they are to hold, which they may hold already; all three as raw bits in an unsigned integer of the
    tensor's item size.
    """

    indices: NDArray[np.int64]
    base: NDArray
    tuned: NDArray
    wanted: NDArray


class WrongBaseError(SkillError):
    """A touched weight holds none of the values that it may hold."""

    def __init__(self, entry: Entry, index: int) -> None:
        super().__init__(
            f"{entry.file}: tensor {entry.name}, weight {index} holds neither the skill's base value nor its tuned value"
        )
        self.tensor = entry.name


def bits(itemsize: int) -> np.dtype:
    """The unsigned integer type that holds one weight's bits."""
    return np.dtype(f"<u{itemsize}")


def hash_and_patch(source: BinaryIO, entry: Entry, edit: Edit | None, target: BinaryIO | None = None) -> str:
    """Read one tensor, return the hex hash of its *base* content, write its wanted content.

    Without a `target` it only checks and hashes. Raises WrongBaseError at the first touched weight that holds an
    unknown value.
    """
    source.seek(entry.start)
    digest = xxhash.xxh3_64()
    buffer = np.empty(min(_CHUNK, entry.stop - entry.start), dtype=np.uint8)
    item = entry.dtype.itemsize
    first = 0  # element number at which the chunk begins
    done = 0
    while done < entry.stop - entry.start:
        view = buffer[: min(_CHUNK, entry.stop - entry.start - done)]
        if source.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise SkillError(f"{entry.file} became shorter while it was read: run again")
        wanted = None
        if edit is not None:
            low, high = np.searchsorted(edit.indices, (first, first + len(view) // item))
            if high > low:
                weights = view.view(bits(item))
                local = edit.indices[low:high] - first
                held = weights[local]
                known = [values[low:high] for values in (edit.base, edit.tuned, edit.wanted)]
                if len(unknown := np.flatnonzero(np.all([held != values for values in known], axis=0))):
                    raise WrongBaseError(entry, int(edit.indices[low + unknown[0]]))
                weights[local] = edit.base[low:high]
                wanted = edit.wanted[low:high]
        digest.update(view.data)
        if target is not None:
            if wanted is not None:
                weights[local] = wanted
            target.write(view.data)
        done += len(view)
        first += len(view) // item
    return digest.hexdigest()


def digests(entries: Iterable[Entry], edits: Mapping[str, Edit] | None = None) -> dict[str, str]:
    """The hash of each tensor's base content, two tensors at a time; sixteen hex digits, xxh3-64."""

    def one(entry: Entry) -> tuple[str, str]:
        with entry.file.open("rb", buffering=0) as source:
            return entry.name, hash_and_patch(source, entry, (edits or {}).get(entry.name))

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, entries))


def patch_in_place(entries: Iterable[Entry], edits: Mapping[str, Edit]) -> None:
    """Write each wanted weight at its byte offset; touches nothing else and reads nothing.

    Not synced: ten thousand scattered pages take longer to reach a disk than all the rest. A killed process loses
    nothing by that, and after a power cut each weight still holds one of its two values, so doing it again mends it.
    """
    for file, pairs in _by_file(entries, edits):
        with file.open("r+b", buffering=0) as handle:
            descriptor = handle.fileno()
            for entry, edit in pairs:
                item = entry.dtype.itemsize
                raw = edit.wanted.tobytes()
                offsets = (entry.start + edit.indices * item).tolist()
                for number, offset in enumerate(offsets):
                    os.pwrite(descriptor, raw[number * item : (number + 1) * item], offset)


def _by_file(entries: Iterable[Entry], edits: Mapping[str, Edit]) -> Iterator[tuple]:
    files: dict = {}
    for entry in entries:
        if entry.name in edits:
            files.setdefault(entry.file, []).append((entry, edits[entry.name]))
    yield from files.items()
