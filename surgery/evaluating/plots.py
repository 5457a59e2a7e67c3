"""Figures of an evaluation: scores by what items are about, and differences beside noise floors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from surgery.evaluating.measured import Item, Measured, Metric
from surgery.evaluating.statistics import Difference, Score
from surgery.reporting.figures import COLOURS, MARKERS, figure, plain
from surgery.reporting.page import Figure

BREAKDOWNS = ("skill", "domain", "k")
_MOST = 30  # rows of a figure


def draw(evaluation: Measured, folder: Path) -> list[Figure]:
    """Draw what there is to see into a folder; returns what each file shows."""
    made = []
    metric = evaluation.metrics[0]
    for label in BREAKDOWNS:
        groups = by_kind(evaluation, label)
        if 2 <= len(groups) <= _MOST:
            _scores(evaluation, metric, groups, folder / f"by-{label}.png")
            against = f" Squares: {evaluation.base.model}." if evaluation.base else ""
            chance = " The dashed line is chance." if metric.chance is not None else ""
            caption = f"{metric.about.capitalize()}, by {label}, with 95% intervals.{against}{chance}"
            made.append(Figure(f"by-{label}.png", caption, f"{metric.name} by {label}"))
            break
    if evaluation.base is not None:
        _differences(evaluation, folder / "differences.png")
        floors = " Below it noise floors: how far the base is from itself." if evaluation.floor else ""
        caption = f"{evaluation.model} less {evaluation.base.model} on the same items, with 95% intervals: clear where the interval leaves out 0.{floors}"
        made.append(Figure("differences.png", caption, "Paired differences with intervals"))
    return made


def by_kind(evaluation: Measured, label: str) -> Mapping[str, list[Item]]:
    """Items by what they have for a label, values such as `sentences:3` by their kind."""
    groups: dict[str, list[Item]] = {}
    for name, items in evaluation.by(label).items():
        kind = groups.setdefault(name.partition(":")[0], [])
        kind += [item for item in items if item not in kind]
    return groups


def _scores(evaluation: Measured, metric: Metric, groups: Mapping[str, list[Item]], file: Path) -> None:
    sides = [(evaluation, list(groups.values()))]
    if evaluation.base is not None:
        sides.append((evaluation.base, list(by_kind_of(evaluation.base, groups))))
    about = metric.about
    with figure(file, 6.8, 1.2 + 0.28 * len(groups)) as axes:
        for side, (each, chosen) in enumerate(sides):
            found = [each.score(metric.name, items) for items in chosen]
            if any(score.low is not None for score in found):
                about = f"{metric.about}, 95% interval"
            places = [row + 0.18 * side for row in range(len(found))]
            _dots(axes, places, found, metric.scale, side, plain(each.model)[-48:])
        if metric.chance is not None:
            axes.axvline(metric.chance * metric.scale, color="#555555", linestyle="--", linewidth=1.2, label="chance")
        axes.set_yticks(range(len(groups)), [plain(f"{name} ({len(items)})") for name, items in groups.items()])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_xlabel(fill(plain(about), 64))
        if len(sides) > 1 or metric.chance is not None:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)


def by_kind_of(other: Measured, groups: Mapping[str, Sequence[Item]]) -> list[list[Item]]:
    """Another evaluation's items in the groups of this one's."""
    named = {item.name: item for item in other.items}
    return [[named[item.name] for item in items] for items in groups.values()]


def _dots(axes: Any, places: Sequence[float], found: Sequence[Score], scale: float, side: int, name: str) -> None:
    kept = [(place, each) for place, each in zip(places, found, strict=True) if each.value is not None]
    values = [(each.value or 0.0) * scale for _, each in kept]
    lows = [value if each.low is None else each.low * scale for value, (_, each) in zip(values, kept, strict=True)]
    highs = [value if each.high is None else each.high * scale for value, (_, each) in zip(values, kept, strict=True)]
    error = [
        [max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
        [max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
    ]
    rows = [place for place, _ in kept]
    axes.errorbar(
        values,
        rows,
        xerr=error,
        fmt=MARKERS[side],
        color=COLOURS[side],
        markersize=5,
        capsize=2,
        linewidth=1.2,
        label=name,
    )


def _differences(evaluation: Measured, file: Path) -> None:
    rows: list[tuple[str, Difference, float]] = []
    for metric in evaluation.metrics:
        if metric.name == "margin":  # in nats, beside shares
            continue
        rows.append((metric.name, evaluation.difference(metric.name), metric.scale))
        rows += [
            (f"  {name}", evaluation.floor_difference(name, metric.name), metric.scale) for name in evaluation.floor
        ]
    with figure(file, 6.8, 1.3 + 0.32 * len(rows)) as axes:
        for row, (name, found, scale) in enumerate(rows):
            _dots(axes, [float(row)], [found.score], scale, int(name.startswith("  ")), "")
        axes.axvline(0, color="#555555", linewidth=1.2)
        axes.set_yticks(range(len(rows)), [plain(name) for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("difference on the same items, 95% interval")
