"""The causal check by layer."""

from functools import partial
from pathlib import Path

import numpy as np

from probes.figures.drawing import Drawing, layer_axis
from probes.findings import Findings
from surgery.reporting.figures import COLOURS, figure


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure, where there is something to draw."""
    if not findings.removals:
        return []
    caption = "What masked prediction loses when directions are removed from the states after a layer."
    alt = "Excess loss in nats over layers: without the directions that a span probe reads, without as many random ones, and intact."
    return [Drawing("causal", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    """Excess loss without the probed directions, and without random ones."""
    with figure(file, 6.4, 3.9) as axes:
        layers = [removal.layer for removal in findings.removals]
        rank = findings.removals[0].rank
        axes.plot(
            layers,
            [r.probed for r in findings.removals],
            color=COLOURS[1],
            marker="s",
            label=f"without {rank} probed directions",
        )
        random = np.array([r.random for r in findings.removals])
        axes.plot(
            layers,
            random.mean(1),
            color=COLOURS[0],
            marker="o",
            label=f"without {rank} random directions (mean, range)",
        )
        axes.fill_between(layers, random.min(1), random.max(1), color=COLOURS[0], alpha=0.18, linewidth=0)
        axes.axhline(findings.removals[0].intact, color="#777777", linestyle="--", linewidth=1.1, label="intact")
        axes.set_ylabel("excess loss at masked words, nats")
        axes.set_ylim(0)
        layer_axis(axes, findings)
        axes.legend(fontsize=8)
