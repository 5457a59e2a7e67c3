"""Drawing: what a figure of a report declares of itself; and the parts that several figures draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probes.findings import Findings
from probes.intervals import Measure
from surgery.reporting.figures import COLOURS, MARKERS

UNTRAINED = 4  # the style of random weights, which no probe takes
_NUMBERED = 13  # layers below a panel of three, beside which no other number fits
_ASIDE = 0.05  # of the distance between two places


@dataclass(frozen=True)
class Drawing:
    """A figure of one report.

    Attributes:
        name: of the PNG file, without its ending.
        caption: what a reader should see in it.
        alt: what it shows, for those who can't see it.
        draw: write the file.
    """

    name: str
    caption: str
    alt: str
    draw: Callable[[Path], None]


def line(
    axes: Any,
    findings: Findings,
    probe: str,
    source: str,
    metric: str,
    style: int,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """Draw one measure by layer with its interval; nothing where there is none."""
    measures = findings.by_layer(probe, source, metric)
    with_intervals(axes, [m.layer for m in measures], measures, style, label, "--" if dashed else "-")


def with_intervals(
    axes: Any,
    places: Sequence[Any],
    measures: Sequence[Measure],
    style: int,
    label: str,
    dash: str = "-",
    size: int = 5,
) -> None:
    """Draw values as a line with markers, and their intervals as bars: bands of several lines would hide one another.

    Each style stands a little beside its place, so that its bars can be told from the others'.
    """
    if not measures:
        return
    colour, values = COLOURS[style], np.array([m.value for m in measures])
    beside = np.asarray(places, float) + _ASIDE * (style - UNTRAINED / 2)
    axes.plot(beside, values, color=colour, marker=MARKERS[style], markersize=size, label=label, linestyle=dash)
    if measures[0].low is not None:
        low, high = (np.array([getattr(m, side) for m in measures]) for side in ("low", "high"))
        bars = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
        axes.errorbar(beside, values, bars, color=colour, linestyle="none", elinewidth=1, capsize=2)


def layer_axis(axes: Any, findings: Findings) -> None:
    """Number the layers below a panel, of many each so many-th."""
    layers = sorted(findings.layers)
    axes.set_xticks(layers[:: max(1, -(-len(layers) // _NUMBERED))])
    axes.set_xlabel("layer")
