"""The figures of a skill: accuracy against sparsity, reliability, and where the weights sit."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgery.reporting.figures import COLOURS, MARKERS, figure, write_numbers

LABELS = {
    "dual-averaging": "graft (dual averaging of saliency)",
    "averaging": "graft (dual averaging of saliency)",  # the method's name in reports of earlier versions
    "sigmoid": "graft (published sigmoid gates)",
    "movement": "top movement",
    "rescaled": "rescaled (drawn and moved further)",
    "refitted": "refitted (drawn, fitted to tuned)",
    "low-rank": "low rank (components of the change)",
    "random": "random",
    "random moved": "random among moved",
    "biases and norms": "biases and norms only",
    "zero outside": "zero outside the region",
}
# Of each file: what a reader should see in it, and what it shows, for those who can't see it.
CAPTIONS = {
    "sparsity.png": (
        "Test accuracy by the share of the block weights that are grafted. The dashed line is the tuned checkpoint, the dotted "
        "one the base: a method is good where it stays near the dashed line far to the left.",
        "Accuracy against the share of weights, one line a method",
    ),
    "target.png": (
        "Share of tuning's gain recovered by the share of the block weights, on the examples that the target (dashed) is judged on, for "
        "all that was tried; the ring is the smallest found to reach it.",
        "Gain recovered against the share of weights, with the target",
    ),
    "reliability.png": (
        "Accuracy against confidence, a dot a bin with an area in proportion to its examples: on the diagonal confidence can be taken at its word.",
        "Reliability of the tuned and of the grafted checkpoint",
    ),
    "where.png": (
        "How many of the skill's weights lie in each module (rows) of each block (columns).",
        "Heat map of weights by block and module",
    ),
}


def draw(counts: Sequence[tuple[str, int]], report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the report has material for, into `folder`; returns the files in the order to show them."""
    made = []
    if len(report.get("points", ())) > 1:
        made.append(folder / "sparsity.png")
        _sparsity(report, made[-1])
    if "target" in report:
        made.append(folder / "target.png")
        _target(report["target"], made[-1])
    if "reliability" in report.get("tuned", {}):
        made.append(folder / "reliability.png")
        _reliability(report, made[-1])
    made.append(folder / "where.png")
    _where(dict(counts), made[-1], "numbers" if report.get("values") == "low-rank" else "weights")
    return made


def _sparsity(report: Mapping[str, Any], file: Path) -> None:
    methods = list(dict.fromkeys(point["method"] for point in report["points"]))
    with figure(file, 6.8, 4.2) as axes:
        for name, style in (("tuned", "--"), ("base", ":")):
            axes.axhline(report[name]["accuracy"], color="#555555", linestyle=style, linewidth=1.2)
            axes.annotate(
                name,
                (1.0, report[name]["accuracy"]),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        for number, method in enumerate(methods):
            points = [point for point in report["points"] if point["method"] == method]
            axes.plot(
                [point["sparsity"] for point in points],
                [point["accuracy"] for point in points],
                marker=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                label=LABELS.get(method, method),
                zorder=3 if number == 0 else 2,
            )
        axes.set_xscale("log")
        axes.set_xlabel("share of the block weights in the graft")
        axes.set_ylabel("test accuracy")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _reliability(report: Mapping[str, Any], file: Path) -> None:
    with figure(file, 7.6, 3.9, columns=2) as pair:
        for axes, name, colour in zip(pair, ("tuned", "graft"), COLOURS[:2], strict=True):
            bins = {key: np.array(value) for key, value in report[name]["reliability"].items()}
            used = bins["share"] > 0
            axes.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=1.2)
            # Area in proportion to the examples in the bin, so that nearly empty bins don't stand out.
            axes.scatter(
                bins["confidence"][used],
                bins["accuracy"][used],
                s=12 + 500 * bins["share"][used],
                color=colour,
                alpha=0.75,
                zorder=3,
                clip_on=False,
            )
            axes.set(
                xlim=(0, 1),
                ylim=(0, 1.04),
                xlabel="confidence",
                ylabel="accuracy" if name == "tuned" else "",
                title=f"{name}: ECE {report[name]['ece']:.3f}",
            )
            axes.set_aspect("equal")


def _target(target: Mapping[str, Any], file: Path) -> None:
    points, reached = target["points"], target["weights"]
    with figure(file, 6.8, 4.0) as axes:
        axes.axhline(target["gain"], color="#555555", linestyle="--", linewidth=1.2)
        axes.plot(
            *zip(*((point["sparsity"], point["gain"]) for point in points), strict=True), marker="o", color=COLOURS[0]
        )
        found = [(point["sparsity"], point["gain"]) for point in points if point["weights"] == reached]
        axes.scatter(*zip(*found, strict=True), s=160, facecolors="none", edgecolors=COLOURS[1], linewidths=2, zorder=4)
        axes.set_xscale("log")
        axes.set_xlabel("share of the block weights in the graft")
        axes.set_ylabel(f"gain recovered, {'dev' if target['judged_on'] == 'dev' else 'training'} examples")


def _where(counts: Mapping[str, int], file: Path, unit: str = "weights") -> None:
    """A heat map of weights by layer (columns) and module (rows)."""
    cells: dict[tuple[str, int], int] = {}
    for name, weights in counts.items():
        cell = layer_and_module(name)
        cells[cell] = cells.get(cell, 0) + weights
    modules = sorted({module for module, _ in cells})
    layers = list(range(max(layer for _, layer in cells) + 1)) if cells else [0]
    grid = np.array([[cells.get((module, layer), 0) for layer in layers] for module in modules], dtype=float).reshape(
        len(modules), len(layers)
    )
    with figure(file, 3.4 + 0.5 * min(len(layers), 24), 1.6 + 0.3 * len(modules)) as axes:
        axes.grid(False)
        shown = axes.imshow(
            np.where(grid > 0, grid, np.nan), aspect="auto", cmap="Blues", norm="log" if grid.max() > 1 else None
        )
        axes.set_yticks(range(len(modules)), modules)
        axes.set_xticks(layers[:: max(1, len(layers) // 16)])
        axes.set_xlabel("layer")
        if len(layers) <= 16:
            write_numbers(axes, grid, np.argwhere(grid > 0), lambda value: value > grid.max() ** 0.6)
        axes.figure.colorbar(shown, ax=axes, label=f"{unit} in the skill")


def layer_and_module(name: str) -> tuple[str, int]:
    """`encoder.layer.3.attention.self.query.weight` -> (`attention.self.query.weight`, 3): split at the first number."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return (name[match.end() :], int(match[1])) if match else (name, 0)


def by_layer(counts: Sequence[tuple[str, int]]) -> dict[int, int]:
    """Weights a layer."""
    total: dict[int, int] = {}
    for name, weights in counts:
        layer = layer_and_module(name)[1]
        total[layer] = total.get(layer, 0) + weights
    return dict(sorted(total.items()))
