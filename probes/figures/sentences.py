"""The exact and the predicted chart of a sentence, side by side."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from probes.figures.drawing import Drawing
from probes.findings import Findings
from probes.sentence import Example
from surgery.reporting.figures import figure, plain


def drawings(findings: Findings) -> list[Drawing]:
    """Return a figure for each sentence that is shown."""
    caption = "Marginals of a test sentence, exact and predicted, each with its minimum-risk tree."
    return [
        Drawing(
            f"sentence-{number}",
            caption,
            f"Two grids of span probabilities, exact and predicted, with trees above them, for: {' '.join(example.words)}",
            partial(_draw, example, findings.exact),
        )
        for number, example in enumerate(findings.examples, 1)
    ]


def _draw(example: Example, exact: bool, file: Path) -> None:
    """Exact and predicted marginals of a sentence side by side, the tree of each above it."""
    words = [plain(word) for word in example.words]
    n, names = len(words), ("exact marginals" if exact else "true spans", f"predicted, layer {example.layer}")
    with figure(file, 11.5, 6.2, 2) as all_axes:
        parts = ((example.exact, example.exact_tree), (example.predicted, example.predicted_tree))
        highest = max(_height(n, tree) for _, tree in parts)
        for axes, name, (table, tree) in zip(all_axes, names, parts, strict=True):
            axes.grid(False)
            axes.spines["left"].set_bounds(-0.5, n - 0.5)
            shown = np.ma.masked_array(np.array(table), mask=np.tril(np.ones((n, n)), 0) > 0)
            image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            for start, end in tree:  # the outline of the span's cell
                right, left, top, bottom = end - 0.5, end - 1.5, start - 0.5, start + 0.5
                axes.plot(
                    [left, right, right, left, left],
                    [top, top, bottom, bottom, top],
                    color="#D55E00",
                    linewidth=1.6,
                    clip_on=False,
                )
            _draw_tree(axes, n, tree)
            axes.set_xlim(-0.5, n - 0.5)
            axes.set_ylim(n - 0.5, -1.2 - 0.5 * highest)
            axes.set_xticks(range(n), words, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
            axes.set_yticks(range(n), words, fontsize=8)
            axes.set_xlabel("last word of the span")
            axes.set_title(f"{name}; tree and boxes: minimum risk", fontsize=10)
        all_axes[0].set_ylabel("first word of the span")
        all_axes[0].figure.colorbar(image, ax=all_axes[1], label="probability of a constituent", shrink=0.7)


def _joints(n: int, tree: tuple[tuple[int, int], ...]) -> list[tuple[float, int, list[tuple[float, int]]]]:
    """Where each node of a binary tree stands, and its children: column and height above the words."""
    places: dict[tuple[int, int], tuple[float, int]] = {(i, i + 1): (float(i), 0) for i in range(n)}
    findings = []
    for start, end in sorted(tree, key=lambda span: span[1] - span[0]):
        middle = next(m for m in range(start + 1, end) if (start, m) in places and (m, end) in places)
        below = [places[start, middle], places[middle, end]]
        place = ((below[0][0] + below[1][0]) / 2, max(below[0][1], below[1][1]) + 1)
        places[start, end] = place
        findings.append((*place, below))
    return findings


def _height(n: int, tree: tuple[tuple[int, int], ...]) -> int:
    return max(height for _, height, _ in _joints(n, tree))


def _draw_tree(axes: Any, n: int, tree: tuple[tuple[int, int], ...]) -> None:
    """A tree above the columns of its words."""
    for place, height, below in _joints(n, tree):
        for x, y in below:
            axes.plot(
                [x, x, place],
                [-0.8 - 0.5 * y, -0.8 - 0.5 * height, -0.8 - 0.5 * height],
                color="#444444",
                linewidth=1.1,
            )
