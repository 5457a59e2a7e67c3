"""Figures of a selection: what the chosen rows come from, and how their scores lie in the pool's."""

from pathlib import Path
from typing import Any

from surgery.reporting.figures import COLOURS, figure, plain
from surgery.reporting.page import Figure

_MOST = 12  # sources of a figure
_DRAWN = 6  # of the histogram


def draw(selection: Any, folder: Path) -> list[Figure]:
    """Draw a `Selection` into a folder; returns what each file shows."""
    made = []
    if len(selection.sources) > 1:
        _sources(selection, folder / "sources.png")
        caption = "Share of each source in the pool (grey) and among the chosen rows (blue)."
        made.append(Figure("sources.png", caption, "Sources of the chosen rows beside the pool's"))
    if len(selection.edges) > 2 and selection.scores:
        _scores(selection, folder / "scores.png")
        caption = "Scores of the whole pool, by source; rows to the right of the dashed line are chosen."
        made.append(Figure("scores.png", caption, "Histogram of scores with the threshold"))
    return made


def _sources(selection: Any, file: Path) -> None:
    shown = sorted(selection.sources, key=lambda source: (-source.chosen, -source.pool))[:_MOST]
    with figure(file, 6.4, 1.2 + 0.45 * len(shown)) as axes:
        for row, source in enumerate(shown):
            axes.barh(
                row - 0.19, source.pool / selection.pool, 0.36, color="#b8bcc4", label="pool" if not row else None
            )
            share = source.chosen / max(1, len(selection.numbers))
            axes.barh(row + 0.19, share, 0.36, color=COLOURS[0], label="chosen" if not row else None)
            axes.text(share, row + 0.19, f" {share:.0%}", va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [plain(source.name or "(none)")[:32] for source in shown])
        axes.invert_yaxis()
        axes.set_xlabel("share of the rows")
        axes.set_xlim(0, 1.12 * max(axes.get_xlim()))
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)


def _scores(selection: Any, file: Path) -> None:
    shown = sorted(selection.sources, key=lambda source: -source.chosen)[:_DRAWN]
    most = max(max(source.histogram) for source in shown)
    with figure(file, 6.4, 3.6) as axes:
        for number, source in enumerate(shown):
            name = plain(source.name or "(none)")[:32]
            axes.stairs(source.histogram, selection.edges, color=COLOURS[number], linewidth=1.6, label=name)
        threshold = selection.scores[-1]
        axes.axvline(threshold, color="#555555", linestyle="--", linewidth=1.2, label="chosen from here")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(0, 1.2 * most)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(plain(f"score by {selection.by}"))
        axes.set_ylabel("rows of the pool, on a log scale from 1")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, fontsize=8)
