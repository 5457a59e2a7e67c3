"""Figures of a competence report, of curves and of a simulation, drawn from what the reports hold."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probes.emergence.competence import Competence
from probes.emergence.scores import Rate
from surgery.reporting.figures import COLOURS, MARKERS, figure, plain
from surgery.reporting.page import Figure

_NAMED = 5
_LONGEST_NAME = 28


def draw_competence(report: Competence, folder: Path) -> list[Figure]:
    """Failure of rules by uses; single rules against pairs over training; bounds, worst case and model."""
    _rules(report, folder / "rules.png")
    drawn = [
        Figure(
            "rules.png",
            f"Each ranked rule by the number of texts that use it, with 95% intervals over texts; the {_NAMED} that fail most are named. The dashed line is the mean over texts.",
            "Failure of rules against the number of texts that use them",
        )
    ]
    if len(report.measured) > 1:
        _training(report, folder / "training.png")
        drawn.append(
            Figure(
                "training.png",
                "Left: single rules, pairs in one text, and pairs from two texts of which either may fail, by the excess loss of each checkpoint, hard (filled) and soft (hollow); training runs from right to left. Right: pairs less what single rules were at twice the excess, with 95% intervals; below zero, pairs fail less than the corollary asks for.",
                "Failure by excess loss over training, and differences of pairs from single rules at twice the excess",
            )
        )
    if report.theory.points:
        _theory(report, folder / "theory.png")
        drawn.append(
            Figure(
                "theory.png",
                "How many times more the worst share alpha of rules fail than texts do: the model; the worst failures of as many texts found on the same texts and rules, and a bound on any; the most there could be were rules drawn independently; and the theorem's bound for that.",
                "Beta against alpha: model, worst case with its bound, independent draws, theorem",
            )
        )
    return drawn


def _bars(axes: Any, places: Sequence[int | float], rates: Sequence[Rate], **style: Any) -> None:
    """Points with their intervals."""
    values = [rate.value for rate in rates]
    spread = [
        [max(0.0, rate.value - rate.low) for rate in rates],
        [max(0.0, rate.high - rate.value) for rate in rates],
    ]
    axes.errorbar(places, values, spread, **style)


def _rules(report: Competence, file: Path) -> None:
    with figure(file, 8.0, 4.4) as axes:
        rules = report.rules
        style = {"linestyle": "none", "elinewidth": 0.7, "markersize": 3.5}
        _bars(axes, [r.texts for r in rules], [r.failure for r in rules], color=COLOURS[0], marker="o", **style)
        worst = rules[:_NAMED]
        _bars(axes, [r.texts for r in worst], [r.failure for r in worst], color=COLOURS[1], marker="s", **style)
        at: dict[tuple[int, float], list[str]] = {}  # rules that stand in the same texts share a label
        for number, rule in enumerate(worst, 1):
            at.setdefault((rule.texts, rule.failure.value), []).append(str(number))
        for place, numbers in at.items():
            axes.annotate(", ".join(numbers), place, (5, 3), textcoords="offset points", fontsize=9)
        names = [f"{number}  {plain(_short(rule.rules[0]))}" for number, rule in enumerate(worst, 1)]
        axes.text(1.02, 0.98, "fail most:\n" + "\n".join(names), transform=axes.transAxes, va="top", fontsize=9)
        mean = report.last.failure.value
        axes.axhline(mean, color="#777777", linestyle="--", linewidth=1.1)
        axes.annotate(
            "all texts", (1, mean), (-3, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=9
        )
        axes.set(xlabel="texts that use the rule", ylabel="failure of these texts")
        _log_axis(axes, [r.texts for r in rules])
        axes.set_ylim(0, min(1.02, 1.1 * max(r.failure.high for r in rules) + 0.02))


def _log_axis(axes: Any, values: Sequence[int | float]) -> None:
    """A logarithmic axis below, with plain numbers at 1, 2 and 5 times powers of ten."""
    positive = [value for value in values if value > 0]
    if not positive:
        return
    axes.set_xscale("log")
    low, high = 0.9 * min(positive), 1.1 * max(positive)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low > 4 else (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8)
    places = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _training(report: Competence, file: Path) -> None:
    measured = sorted(report.measured, key=lambda m: m.excess.value)
    lines = (("single rules", 0, 1), ("pairs in one text", 1, 2), ("pairs from two texts", 2, None))
    both = bool(report.comparisons)
    with figure(file, 12.0 if both else 6.4, 4.2, 2 if both else 1) as axes:
        left = axes[0] if both else axes
        for label, style, size in lines:
            for failure in ("hard", "soft"):
                values = [_tuple_mean(m, failure, size) for m in measured]
                left.plot(
                    [m.excess.value for m in measured],
                    values,
                    color=COLOURS[style],
                    marker=MARKERS[style],
                    markersize=4.5,
                    markerfacecolor=COLOURS[style] if failure == "hard" else "white",
                    linestyle="-" if failure == "hard" else ":",
                    label=f"{label}, {failure}",
                )
        left.set(xlabel="excess loss of the checkpoint, nats", ylabel="mean failure")
        _log_axis(left, [m.excess.value for m in measured])
        left.set_ylim(0, 1.03)
        left.legend(fontsize=8)
        if both:
            _differences(report, axes[1])


def _tuple_mean(measured: Any, failure: str, size: int | None) -> float:
    """The mean failure of single rules or pairs; of pairs from two texts for None."""
    rates = measured.tuple_failures if failure == "hard" else measured.tuple_softs
    return rates[min(size, len(rates)) - 1].value if size else 1 - (1 - rates[0].value) ** 2


def _differences(report: Competence, axes: Any) -> None:
    kinds = (
        ("mean", "pairs in one text", 1),
        ("worst", "the same, worst share alpha", 3),
        ("apart", "pairs from two texts", 2),
    )
    for failure in ("hard", "soft"):
        for kind, label, style in kinds:
            rows = [c for c in report.comparisons if (c.kind, c.failure) == (kind, failure)]
            _bars(
                axes,
                [c.excess.value for c in rows],
                [c.difference for c in rows],
                color=COLOURS[style],
                marker=MARKERS[style],
                markersize=4.5,
                markerfacecolor=COLOURS[style] if failure == "hard" else "white",
                linestyle="-" if failure == "hard" else ":",
                linewidth=1.2,
                capsize=2,
                label=f"{label}, {failure}",
            )
    axes.axhline(0, color="#777777", linewidth=1.1)
    axes.set(xlabel="excess loss of the pairs' checkpoint, nats", ylabel="pairs less single rules before")
    _log_axis(axes, [c.excess.value for c in report.comparisons])
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _theory(report: Competence, file: Path) -> None:
    points = report.theory.points
    alphas = [point.alpha for point in points]
    with figure(file, 7.2, 4.2) as axes:
        proved = [(point.alpha, point.theorem) for point in points if point.theorem is not None]
        lines: list[tuple[str, Any, Any, int, str]] = [
            ("theorem", [a for a, _ in proved], [b for _, b in proved], 6, "-"),
            ("exact for independent draws", alphas, [p.independent for p in points], 2, "--"),
            ("worst failures found", alphas, [p.worst for p in points], 1, "-"),
            ("the model", alphas, [p.model for p in points], 0, "-"),
        ]
        for number, (label, places, values, style, dash) in enumerate(lines):
            axes.plot(
                places, values, color=COLOURS[style], marker=MARKERS[number], markersize=5, linestyle=dash, label=label
            )
        low, high = [p.worst for p in points], [p.worst_bound for p in points]
        axes.fill_between(alphas, low, high, color=COLOURS[1], alpha=0.13, linewidth=0, label="not ruled out")
        axes.set(xlabel="alpha: share of rules", ylabel="beta: times the texts' failure")
        axes.set_ylim(0)
        axes.set_title(f"theta {report.theory.theta:.2f}, {report.theory.k:.1f} rules a text", fontsize=10, loc="left")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_curves(curves: Sequence[Any], lines: Sequence[Any], file: Path) -> Figure:
    """Beta by alpha for each k, and by the size of tuples."""
    ks = sorted({line.k for line in lines})
    with figure(file, 10.5, 4.2, 2) as (left, right):
        for number, k in enumerate(ks):
            own = [line for line in lines if line.k == k]
            style: dict[str, Any] = {"color": COLOURS[number % 6]}
            proved = [line for line in own if line.theorem is not None]
            left.plot([x.alpha for x in proved], [x.theorem for x in proved], label=f"k = {k}, theorem", **style)
            left.plot([x.alpha for x in own], [x.exact for x in own], linestyle="--", label=f"k = {k}, exact", **style)
            first = next(point for point in curves if point.k == k)
            rows = [p for p in curves if (p.k, p.theta, p.alpha) == (k, first.theta, first.alpha)]
            proved = [p for p in rows if p.theorem is not None]
            style |= {"marker": MARKERS[number % 7], "markersize": 5}
            right.plot([p.tuples for p in proved], [p.theorem * p.tuples * p.theta for p in proved], **style)
            right.plot([p.tuples for p in rows], [p.exact * p.tuples * p.theta for p in rows], linestyle="--", **style)
        alphas = sorted({line.alpha for line in lines})
        left.plot(alphas, [1 / alpha for alpha in alphas], color="#999999", linestyle=":", label="1 / alpha: all texts")
        most = max([line.theorem for line in lines if line.theorem is not None] or [1 / alphas[0]])
        left.set(xlabel="alpha", ylabel="beta", title=f"theta = {lines[0].theta:g}")
        left.set_yscale("log")
        left.set_ylim(0.95, 1.05 * min(most, 1 / alphas[0]))
        left.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        left.set_yticks([], minor=True)
        _log_axis(left, alphas)
        left.legend(fontsize=8)
        right.set(
            xlabel="k': skills of a tuple",
            ylabel="beta k' theta: failure of the worst tuples",
            title=f"theta = {curves[0].theta:g}, alpha = {curves[0].alpha:g}",
        )
        right.set_ylim(0)
        right.xaxis.get_major_locator().set_params(integer=True)
    several = len({(point.theta, point.alpha) for point in curves}) > 1
    rest = " Drawn for the first theta and alpha; the table has all." if several else ""
    return Figure(
        file.name,
        "Left: how many times more than texts the worst share alpha of skills may fail, by the theorem (solid) and exactly for independent draws (dashed); a solid line ends where the theorem has no bound. Right: the share of failures that the worst tuples of skills may have."
        + rest,
        "Beta against alpha, and failure of the worst tuples against their size, a colour for each k",
    )


def draw_simulation(points: Sequence[Any], file: Path) -> Figure:
    """Beta by alpha of random and adversarial sets of texts, beside the curves."""
    lines = (
        ("theorem", "theorem", 6, "-"),
        ("exact for a fixed set of skills", "exact", 2, "--"),
        ("worst texts, set of skills chosen too", "adversary", 1, "-"),
        ("worst texts for a fixed set of skills", "fixed", 3, "-"),
        ("random texts", "random", 0, "-"),
    )
    with figure(file, 7.6, 4.2) as axes:
        for number, (label, field, style, dash) in enumerate(lines):
            own = [(p.alpha, getattr(p, field)) for p in points if getattr(p, field) is not None]
            axes.plot(
                [a for a, _ in own],
                [b for _, b in own],
                color=COLOURS[style],
                marker=MARKERS[number],
                markersize=9 if field == "exact" else 5,  # which the worst texts for a fixed set lie upon
                markerfacecolor="none" if field == "exact" else None,
                linestyle=dash,
                label=label,
            )
        axes.set(xlabel="alpha: share of skills", ylabel="beta: times the texts' failure")
        axes.set_ylim(0.9)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Figure(
        file.name,
        "Random texts stay far below every bound, so they would verify any; the worst texts for a fixed set of skills are what the exact curve says; choosing the skills too gains a little on a finite graph.",
        "Beta against alpha for random, worst and adversarial sets of texts, beside two bounds",
    )
