"""The figures of a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgery.reporting.figures import COLOURS, figure, plain

_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "--", "++")


def draw_matrices(names: Sequence[str], matrices: Mapping[str, Any], file: Path) -> None:
    """Heat maps side by side: task by region."""
    side = 1.7 + 0.75 * len(names)
    with figure(file, 2 * side + 1.2, side + 0.4, columns=2) as pair:
        for axes, (title, grid) in zip(pair, matrices.items(), strict=True):
            grid = np.array(grid, float)
            top = max(1.0, float(np.nan_to_num(np.abs(grid)).max()))
            axes.grid(False)
            axes.imshow(np.clip(grid, 0, None), cmap="Blues", vmin=0, vmax=top)
            axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=45, ha="right")
            axes.set_yticks(range(len(names)), [plain(name) for name in names])
            axes.set_title(title, fontsize=10)
            axes.set(xlabel="region of", ylabel="task")
            for row, column in np.ndindex(grid.shape):
                value = grid[row, column]
                text = "" if np.isnan(value) else f"{value:.2f}"
                colour = "white" if value > 0.6 * top else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def draw_bars(
    rows: Sequence[str],
    bars: Mapping[str, Sequence[tuple[float, float, float] | None]],
    label: str,
    file: Path,
    line: float | None = None,
) -> None:
    """Groups of bars with intervals.

    Args:
        rows: what the groups are; `bars`: of each kind a (value, low, high) for each group, or None.
    """
    width = 0.8 / max(1, len(bars))
    wide = max(6.4, 1.6 + 0.28 * len(rows) * len(bars))
    with figure(file, min(14, wide), 4.0 + 0.2 * -(-len(bars) // 3)) as axes:
        for number, (name, values) in enumerate(bars.items()):
            places = [place for place, value in enumerate(values) if value is not None]
            held = [value for value in values if value is not None]
            if not held:
                continue
            middle, low, high = (np.array(column) for column in zip(*held, strict=True))
            at = np.array(places) + (number - (len(bars) - 1) / 2) * width
            look = {"color": COLOURS[number % len(COLOURS)], "hatch": _HATCHES[number % len(_HATCHES)]}
            axes.bar(at, middle, 0.94 * width, label=plain(name), edgecolor="white", linewidth=0, **look)
            spread = np.abs(np.stack([middle - low, high - middle]))
            axes.errorbar(at, middle, spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        if line is not None:
            axes.axhline(line, color="#555555", linestyle="--", linewidth=1.2)
        axes.set_xticks(
            range(len(rows)), [plain(row) for row in rows], rotation=20 if len(rows) > 4 else 0, ha="center"
        )
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(label)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14 if len(rows) <= 4 else -0.25), ncols=3, fontsize=9)


def draw_reliability(diagrams: Mapping[str, Any], file: Path) -> None:
    """Accuracy against confidence, a panel a model."""
    with figure(file, 3.0 * len(diagrams) + 0.6, 3.3, columns=len(diagrams)) as panels:
        for axes, (name, bins) in zip(np.atleast_1d(panels), diagrams.items(), strict=True):
            share = np.array(bins.share)
            used = share > 0
            axes.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=1.2)
            sure, right = np.array(bins.confidence)[used], np.array(bins.accuracy)[used]
            axes.scatter(sure, right, s=10 + 300 * share[used], color=COLOURS[0], alpha=0.75, zorder=3, clip_on=False)
            axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy")
            axes.set_title(plain(name), fontsize=9)
