"""Linear probes of a compiled grammar's inside scores by layer, and the layer that completes each width."""

from functools import partial
from pathlib import Path

import numpy as np

from probes.figures.drawing import Drawing
from probes.findings import Findings
from surgery.reporting.figures import COLOURS, MARKERS, figure

_LOWEST = -0.5  # of what is drawn


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure; none for a model whose layers aren't known."""
    if findings.calibration is None or not findings.calibration.widths:
        return []
    caption = (
        "Linear probes of inside scores against what is known to be there; dotted: the layer that completes the width."
    )
    alt = "R squared of inside scores by linear probes over layers, one line for each number of words, with a dotted line at the layer after which the scores are complete."
    return [Drawing("calibration", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    found = findings.calibration
    assert found is not None
    with figure(file, 6.8, 3.8) as axes:
        for number, check in enumerate(found.widths):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            shown = [np.nan if r2 is None else max(r2, _LOWEST) for r2 in check.r2]
            axes.plot(found.layers, shown, color=colour, marker=marker, markersize=4, label=f"{check.words} words")
            axes.axvline(check.complete, color=colour, linestyle=":", linewidth=1.2)
        axes.set_xlabel("layer")
        axes.set_ylabel("$R^2$ of inside scores, linear probe")
        least = min((r2 for check in found.widths for r2 in check.r2 if r2 is not None), default=0.0)
        axes.set_ylim(max(_LOWEST, min(0.0, least)) - 0.05, 1.05)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8, loc="lower right", title="words in the span", title_fontsize=8)
