"""F1 of decoded trees by layer."""

from functools import partial
from pathlib import Path
from typing import Any

from probes.catalog import PROBES
from probes.figures.drawing import UNTRAINED, Drawing, layer_axis, line
from probes.findings import Findings
from surgery.reporting.figures import figure

_CONTROLS = (
    ("word identity", "span-two-layer", "word identity"),
    ("position", "span-two-layer", "position"),
    ("right", "none", "right-branching"),
    ("left", "none", "left-branching"),
    ("random", "none", "random trees"),
)
_STYLES: tuple[Any, ...] = ("--", "-.", ":", (0, (1, 3)), (0, (5, 4)))


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure."""
    caption = "F1 of decoded trees by layer, as a share of the ceiling. Bars are 95% intervals over sentences."
    alt = f"Lines of F1 as a share of the ceiling over layers {findings.layers[0]} to {findings.layers[-1]}, one for each kind of tree probe and one for random weights; controls are level lines."
    return [Drawing("f1", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    """F1 of each tree probe by layer, as a share of the ceiling, with the controls as lines."""
    with figure(file, 7.4, 4.4) as axes:
        for probe in sorted(PROBES, key=lambda probe: probe.style):
            line(axes, findings, probe.name, "model", "f1 share", probe.style, probe.label)
        line(axes, findings, "span-two-layer", "untrained", "f1 share", UNTRAINED, "untrained, two-layer", dashed=True)
        for (source, name, label), style in zip(_CONTROLS, _STYLES, strict=True):
            measure = findings.find(name, source, "f1 share")
            if measure:
                axes.axhline(measure.value, color="#777777", linewidth=1.1, linestyle=style, label=label)
        what = "the grammar's minimum-risk trees" if findings.exact else "the binarised true trees"
        axes.set_ylabel(f"F1, share of {what}")
        axes.set_ylim(0, 1.02)
        layer_axis(axes, findings)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
