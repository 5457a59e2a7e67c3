"""Figures of a report, drawn with `surgery.reporting.figures`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probes.report import Example, ProbeReport
from surgery.reporting.figures import COLOURS, MARKERS, figure, plain

_BLUES = "Blues"  # dark is high, also in grey


def draw_figures(report: ProbeReport, folder: Path) -> list[Path]:
    """Every figure that the report has numbers for, as PNG."""
    wanted: list[tuple[str, bool, Callable[[ProbeReport, Path], None]]] = [
        ("f1", True, _f1),
        ("marginals", True, _marginals),
        ("selectivity", True, _selectivity),
        ("loss", report.loss is not None, _loss),
        ("causal", bool(report.removals), _causal),
        ("heads", bool(report.heads), _heads),
    ]
    files = []
    for name, there, draw in wanted:
        if there:
            files.append(folder / f"{name}.png")
            draw(report, files[-1])
    for number, example in enumerate(report.examples, 1):
        files.append(folder / f"sentence-{number}.png")
        _sentence(example, files[-1], report.exact)
    return files


def _f1(report: ProbeReport, file: Path) -> None:
    """F1 of each tree probe by layer, as a share of the ceiling, with the controls as lines."""
    with figure(file, 7.4, 4.4) as axes:
        probes = (
            ("span-two-layer", "spans, two-layer"),
            ("span-linear", "spans, linear"),
            ("depth", "LCA depth"),
            ("distance", "distances"),
        )
        for number, (probe, name) in enumerate(probes):
            _line(axes, report, probe, "model", "f1 share", number, name)
        _line(axes, report, "span-two-layer", "untrained", "f1 share", 4, "untrained, two-layer", dashed=True)
        controls = [
            ("word identity", "span-two-layer"),
            ("position", "span-two-layer"),
            ("right", "none"),
            ("left", "none"),
            ("random", "none"),
        ]
        for number, (source, probe) in enumerate(controls):
            found = report.find(probe, source, "f1 share")
            if found:
                style = ("--", "-.", ":", (0, (1, 3)), (0, (5, 4)))[number]
                axes.axhline(
                    found.value,
                    color="#777777",
                    linewidth=1.1,
                    linestyle=style,
                    label=source
                    if probe != "none"
                    else f"{source}-branching"
                    if source != "random"
                    else "random trees",
                )
        what = "the grammar's minimum-risk trees" if report.exact else "the binarised true trees"
        axes.set_ylabel(f"F1, share of {what}")
        axes.set_ylim(0, 1.02)
        _layers(axes, report)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _marginals(report: ProbeReport, file: Path) -> None:
    """R^2, Pearson and Spearman by span length at the best layer, against the controls."""
    best = report.best_layer
    groups = [str(n) for n in range(2, 10)] + ["10+"]
    sources = [
        ("span-two-layer", "model", best, f"layer {best}, two-layer"),
        ("span-linear", "model", best, f"layer {best}, linear"),
        ("span-two-layer", "model", 0, "layer 0, two-layer"),
        ("span-two-layer", "word identity", None, "word identity"),
        ("span-two-layer", "position", None, "position"),
    ]
    with figure(file, 10.5, 3.9, 3) as all_axes:
        for axes, metric, title in zip(
            all_axes, ("r2", "pearson", "spearman"), ("$R^2$", "Pearson", "Spearman"), strict=True
        ):
            for number, (probe, source, layer, name) in enumerate(sources):
                if layer == 0 and best == 0:
                    continue
                found = [
                    (i, m) for i, group in enumerate(groups) if (m := report.find(probe, source, metric, layer, group))
                ]
                if found:
                    places = [i for i, _ in found]
                    axes.plot(
                        places,
                        [m.value for _, m in found],
                        color=COLOURS[number],
                        marker=MARKERS[number],
                        markersize=4,
                        label=name,
                    )
                    if found[0][1].low is not None:
                        axes.fill_between(
                            places,
                            [m.low for _, m in found],
                            [m.high for _, m in found],
                            color=COLOURS[number],
                            alpha=0.13,
                            linewidth=0,
                        )
            axes.set_xticks(range(len(groups)), groups)
            axes.set_xlabel("words in the span")
            axes.set_title(title, fontsize=10)
            axes.set_ylim(-0.25, 1.02)
        all_axes[0].figure.legend(
            *all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
        )


def _selectivity(report: ProbeReport, file: Path) -> None:
    """The real task and the control task by layer, and bits a span."""
    with figure(file, 10.5, 3.7, 3) as all_axes:
        parts = (
            ("span-two-layer", "r2", "span marginals, two-layer: $R^2$"),
            ("depth", "accuracy", "LCA depth: accuracy"),
        )
        for axes, (probe, metric, title) in zip(all_axes[:2], parts, strict=True):
            _line(axes, report, probe, "model", metric, 0, "real task")
            _line(axes, report, probe, "model", f"control {metric}", 1, "control task")
            _line(axes, report, probe, "model", "selectivity", 2, "selectivity", dashed=True)
            axes.set_title(title, fontsize=10)
            _layers(axes, report)
            axes.legend(fontsize=8)
        axes = all_axes[2]
        _line(axes, report, "span-two-layer", "model", "bits", 0, "model")
        _line(axes, report, "span-two-layer", "untrained", "bits", 4, "untrained", dashed=True)
        for source, style in (("word identity", "--"), ("position", "-.")):
            found = report.find("span-two-layer", source, "bits")
            if found:
                axes.axhline(found.value, color="#777777", linewidth=1.1, linestyle=style, label=source)
        floor = report.find("none", "ceiling", "bits")
        if floor and report.exact:
            axes.axhline(
                floor.value, color="#000000", linewidth=1.1, linestyle=":", label="entropy: the least there is"
            )
        axes.set_title("description length: bits a span", fontsize=10)
        _layers(axes, report)
        axes.legend(fontsize=8)


def _loss(report: ProbeReport, file: Path) -> None:
    """Excess loss by position and by number of masks, and the words probe's divergence by layer."""
    assert report.loss is not None
    with figure(file, 10.5, 3.7, 3) as (by_position, by_masks, by_layer):
        for axes, key, name in (
            (by_position, "position", "position of the mask"),
            (by_masks, "masks", "masks in the sentence"),
        ):
            entries = [entry for entry in report.loss[f"by_{key}"] if entry["count"] > 3]
            places, values = [entry[key] for entry in entries], np.array([entry["value"] for entry in entries])
            low, high = (np.array([entry[side] for entry in entries]) for side in ("low", "high"))
            axes.errorbar(
                places,
                values,
                [values - low, high - values],
                color=COLOURS[0],
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.2,
            )
            axes.axhline(report.loss["excess"]["value"], color="#777777", linestyle="--", linewidth=1.1)
            axes.set_xlabel(name)
            axes.set_ylabel("excess loss, nats")
            axes.set_ylim(0)
        by_masks.set_xticks([1, 2, 3, 4], ["1", "2", "3", "4+"])
        _line(by_layer, report, "words", "model", "kl", 0, "probe, model")
        _line(by_layer, report, "words", "untrained", "kl", 4, "probe, untrained", dashed=True)
        for (probe, source, name), style in zip(
            (("words", "word identity", "neighbouring words"), ("none", "model", "the model's own head")),
            ("--", ":"),
            strict=True,
        ):
            found = report.find(probe, source, "kl")
            if found:
                by_layer.axhline(found.value, color="#777777", linestyle=style, linewidth=1.3, label=name)
        by_layer.set_ylabel("KL(exact || predicted), nats")
        by_layer.set_ylim(0)
        _layers(by_layer, report)
        by_layer.legend(fontsize=8)


def _causal(report: ProbeReport, file: Path) -> None:
    """Excess loss without the probed directions, and without random ones."""
    with figure(file, 6.4, 3.9) as axes:
        layers = [removal.layer for removal in report.removals]
        rank = report.removals[0].rank
        axes.plot(
            layers,
            [r.probed for r in report.removals],
            color=COLOURS[1],
            marker="s",
            label=f"without {rank} probed directions",
        )
        random = np.array([r.random for r in report.removals])
        axes.plot(
            layers,
            random.mean(1),
            color=COLOURS[0],
            marker="o",
            label=f"without {rank} random directions (mean, range)",
        )
        axes.fill_between(layers, random.min(1), random.max(1), color=COLOURS[0], alpha=0.18, linewidth=0)
        axes.axhline(report.removals[0].intact, color="#777777", linestyle="--", linewidth=1.1, label="intact")
        axes.set_ylabel("excess loss at masked words, nats")
        axes.set_ylim(0)
        _layers(axes, report)
        axes.legend(fontsize=8)


def _heads(report: ProbeReport, file: Path) -> None:
    """How much more each head attends within constituents than within other spans of their length."""
    blocks, heads = report.model["layers"], report.model["heads"]
    table = np.zeros((blocks, heads))
    for head in report.heads:
        table[head.block, head.head] = head.more
    size = max(0.01, float(np.abs(table).max()))
    with figure(file, 2.6 + 0.55 * heads, 1.7 + 0.45 * blocks) as axes:
        axes.grid(False)
        image = axes.imshow(table, cmap="PuOr_r", vmin=-size, vmax=size, aspect="auto")
        for head in report.heads:
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


def _sentence(example: Example, file: Path, exact: bool) -> None:
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
            image = axes.imshow(shown, cmap=_BLUES, vmin=0, vmax=1, aspect="auto")
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
    found = []
    for start, end in sorted(tree, key=lambda span: span[1] - span[0]):
        middle = next(m for m in range(start + 1, end) if (start, m) in places and (m, end) in places)
        below = [places[start, middle], places[middle, end]]
        place = ((below[0][0] + below[1][0]) / 2, max(below[0][1], below[1][1]) + 1)
        places[start, end] = place
        found.append((*place, below))
    return found


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


def _line(
    axes: Any,
    report: ProbeReport,
    probe: str,
    source: str,
    metric: str,
    number: int,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """One measure by layer with its interval."""
    found = report.by_layer(probe, source, metric)
    if not found:
        return
    layers, values = [m.layer for m in found], [m.value for m in found]
    axes.plot(
        layers,
        values,
        color=COLOURS[number],
        marker=MARKERS[number],
        markersize=5,
        label=label,
        linestyle="--" if dashed else "-",
    )
    if found[0].low is not None:
        axes.fill_between(
            layers, [m.low for m in found], [m.high for m in found], color=COLOURS[number], alpha=0.13, linewidth=0
        )


def _layers(axes: Any, report: ProbeReport) -> None:
    axes.set_xticks(report.layers)
    axes.set_xlabel("layer")
