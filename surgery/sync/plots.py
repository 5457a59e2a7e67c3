"""Figures of rounds: H over time, and loss against bytes."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from surgery.reporting.figures import COLOURS, MARKERS, figure, plain


def draw_lengths(lengths: Sequence[int], file: Path) -> None:
    """Draw the length of rounds over the steps of a training."""
    ends = list(accumulate(lengths))
    with figure(file) as axes:
        axes.step([0, *ends], [lengths[0], *lengths], where="pre", color=COLOURS[0])
        if max(lengths) > 20:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("steps of a round, H")
        axes.set_ylim(bottom=0.8)


def draw_loss(curves: Mapping[str, Sequence[tuple[float, float]]], file: Path) -> None:
    """Draw the loss against the bytes that each worker gave to the collective, a curve a schedule: (bytes, loss)."""
    with figure(file) as axes:
        for number, (name, points) in enumerate(curves.items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 3}
            axes.plot([sent for sent, _ in points], [loss for _, loss in points], label=plain(name), **style)
        axes.set_xlabel("bytes that each worker gave to the collective")
        axes.set_ylabel("training loss")
        if len(curves) > 1:
            axes.legend()
