"""Drawing: what a figure of a report declares of itself; and the parts that several figures draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.findings import Findings
from probes.intervals import Measure
from surgery.reporting.figures import COLOURS, MARKERS

UNTRAINED = 4  # the style of random weights, which no probe takes


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
    banded(axes, [m.layer for m in measures], measures, style, label, "--" if dashed else "-")


def banded(
    axes: Any,
    places: Sequence[Any],
    measures: Sequence[Measure],
    style: int,
    label: str,
    dash: str = "-",
    size: int = 5,
) -> None:
    """Draw values as a line with markers, and their intervals as a band."""
    if not measures:
        return
    colour = COLOURS[style]
    values = [m.value for m in measures]
    axes.plot(places, values, color=colour, marker=MARKERS[style], markersize=size, label=label, linestyle=dash)
    if measures[0].low is not None:
        low, high = [m.low for m in measures], [m.high for m in measures]
        axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)


def layer_axis(axes: Any, findings: Findings) -> None:
    """Number the layers below a panel."""
    axes.set_xticks(findings.layers)
    axes.set_xlabel("layer")
