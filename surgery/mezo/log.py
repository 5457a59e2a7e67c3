"""The log of a run under way: appended to at each step, so that a kill loses at most the step in hand."""

import os
import time
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgery.resuming import damaged

_SYNC_SECONDS = 30.0  # between calls that make what was written survive a power cut


class StepLog:
    """Coefficients of each step, four bytes each and one to check them by, and the objective's value beside them.

    Args:
        folder: where the files are; None to keep them in memory only.
        directions: coefficients a step.

    Raises:
        StateError: a whole step before the last that doesn't match its check.
    """

    def __init__(self, folder: Path | None, directions: int) -> None:
        self.coefficients: list[NDArray[np.float32]] = []
        self.values: list[float] = []
        self._files: list[int] = []
        self._synced = time.monotonic()
        if folder is None:
            return
        steps, values = folder / "steps.log", folder / "values.log"
        self._read(steps, values, directions)
        self._files = [os.open(path, os.O_WRONLY | os.O_APPEND) for path in (steps, values)]

    def append(self, coefficients: NDArray[np.float32], value: float) -> None:
        """Add a step."""
        self.coefficients.append(coefficients)
        self.values.append(float(np.float32(value)))
        if not self._files:
            return
        raw = coefficients.tobytes()
        os.write(self._files[1], np.float32(value).tobytes())
        os.write(self._files[0], raw + _check(raw))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            for file in self._files:
                os.fsync(file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())

    def _read(self, steps: Path, values: Path, directions: int) -> None:
        size = 4 * directions + 1
        held = [path.read_bytes() if path.exists() else b"" for path in (steps, values)]
        count = min(len(held[0]) // size, len(held[1]) // 4)
        records = [held[0][size * number : size * (number + 1)] for number in range(count)]
        for number, record in enumerate(records):
            if record[-1:] != _check(record[:-1]):
                raise damaged(steps, f"step {number + 1} doesn't match its check")
        self.coefficients = [np.frombuffer(record[:-1], np.float32) for record in records]
        self.values = np.frombuffer(held[1][: 4 * count], np.float32).tolist()
        for path, length in ((steps, size * count), (values, 4 * count)):
            with path.open("ab") as file:  # what a kill left of a step is cut off
                file.truncate(length)


def _check(raw: bytes) -> bytes:
    return bytes([zlib.crc32(raw) & 0xFF])
