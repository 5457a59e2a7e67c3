"""What a part of the benchmark on a card is made of: timings that wait for the card, and lines with a target."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Line:
    """One thing that was measured: `ratio` must reach `target`; `peer` is what ours is measured against, a floor or a rival."""

    name: str
    ours: str
    peer: str
    ratio: float
    target: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the target was reached; a NaN reaches none."""
        return self.ratio >= self.target


def faster(name: str, ours: float, peer: float, target: float, note: str = "") -> Line:
    """Ours must be `target` times as fast as the peer; both in seconds."""
    return Line(name, shown(ours), shown(peer), peer / ours, target, note)


def within(
    name: str, ours: float, most: float, show: Callable[[float], str] = lambda x: f"{x:.3g}", note: str = ""
) -> Line:
    """Ours must be no more than `most`; the ratio is most over ours."""
    return Line(name, show(ours), f"<= {show(most)}", most / ours if ours else (1e9 if ours == 0 else 0.0), 1.0, note)


def holds(name: str, right: bool, note: str = "") -> Line:
    """A claim that holds or doesn't."""
    return Line(name, "yes" if right else "no", "yes", float(right), 1.0, note)


def shown(seconds: float) -> str:
    """A time in a unit that suits it."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def wait() -> None:
    """Until the card is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], turns: int = 7, warm: int = 3) -> float:
    """Median seconds of a run until the card is done, after some that don't count (first calls compile, capture and allocate)."""
    for _ in range(warm):
        run()
    took = []
    for _ in range(turns):
        wait()
        began = time.perf_counter()
        run()
        wait()
        took.append(time.perf_counter() - began)
    return median(took)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Bytes that a run adds on the card at its peak; 0 where there is none."""
    import torch

    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
