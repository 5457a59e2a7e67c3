"""Attention within constituents, by head."""

from functools import partial
from pathlib import Path

import numpy as np

from probes.figures.drawing import Drawing
from probes.findings import Findings
from surgery.reporting.figures import figure


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure, where there is something to draw."""
    if not findings.heads:
        return []
    caption = "Attention within the smallest constituent around a word, above that within spans of the same length. Bold: the 95% interval leaves 0 out."
    alt = "A grid of blocks and heads; each cell has the share of attention within the constituent less that of chance."
    return [Drawing("heads", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    """How much more each head attends within constituents than within other spans of their length."""
    blocks, heads = findings.model["layers"], findings.model["heads"]
    table = np.zeros((blocks, heads))
    for head in findings.heads:
        table[head.block, head.head] = head.more
    size = max(0.01, float(np.abs(table).max()))
    with figure(file, 2.6 + 0.55 * heads, 1.7 + 0.45 * blocks) as axes:
        axes.grid(False)
        image = axes.imshow(table, cmap="PuOr_r", vmin=-size, vmax=size, aspect="auto")
        for head in findings.heads:
            sure = head.low > 0 or head.high < 0
            axes.text(
                head.head,
                head.block,
                f"{head.more:+.2f}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if abs(head.more) > 0.6 * size else "black",
                weight="bold" if sure else "normal",
            )
        axes.set_xticks(range(heads), range(1, heads + 1))
        axes.set_yticks(range(blocks), range(1, blocks + 1))
        axes.set_xlabel("head")
        axes.set_ylabel("block")
        axes.figure.colorbar(image, ax=axes, label="attention share within\nconstituent, less chance")
