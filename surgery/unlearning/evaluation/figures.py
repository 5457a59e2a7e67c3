"""The figures of a verification: methods side by side, masks of growing size, keys shared between classes, classes in turn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgery.reporting.figures import COLOURS, MARKERS, figure, plain
from surgery.unlearning.evaluation.membership import ATTACKS

_GREY = "#555555"


def draw(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the report has material for, into `folder`; returns the files in the order to show them."""
    made = []
    if len(content["points"]) > 2:
        made.append(folder / "methods.png")
        _methods(content["points"], made[-1])
    if content.get("sweep"):
        made.append(folder / "keys.png")
        _sweep(content, made[-1])
    if len(content.get("turns", ())) > 1:
        made.append(folder / "turns.png")
        _in_turn(content["turns"], made[-1])
    if content.get("shared_keys"):
        made.append(folder / "shared.png")
        _shared(content["shared_keys"], content["classes"], made[-1])
    return made


def _methods(points: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Accuracy on the forgotten and on the rest, and the membership attack, one row a method."""
    names = list(points)
    places = np.arange(len(names))[::-1]
    attacked = any("membership" in points[name] for name in names)
    with figure(file, 8.4, 1.5 + 0.34 * len(names), columns=3 if attacked else 2) as axes:
        for column, (key, title) in enumerate((("forget_accuracy", "forgotten"), ("retain_accuracy", "retained"))):
            values = [points[name][key] for name in names]
            shown = [100 * (value or 0) for value in values]
            axes[column].barh(places, shown, color=COLOURS[1 - column], height=0.62)
            for place, value in zip(places, values, strict=True):
                if value is not None:
                    axes[column].annotate(
                        f"{100 * value:.1f}",
                        (100 * value, place),
                        (3, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=9,
                    )
            axes[column].set(xlim=(0, 118), xlabel=f"accuracy, {title} (%)", xticks=(0, 50, 100))
            axes[column].set_ylim(places.min() - 0.6, places.max() + 0.6)
            axes[column].set_yticks(places, names if column == 0 else [""] * len(names))
        if attacked:
            _areas(axes[2], points, names, places)


def _areas(axes: Any, points: Mapping[str, Mapping[str, Any]], names: Sequence[str], places: Any) -> None:
    for number, (attack, label) in enumerate(ATTACKS.items()):
        for name, place in zip(names, places, strict=True):
            found = points[name].get("membership", {}).get(attack)
            if found is None:
                continue
            height = place + 0.2 * (1 - number)
            axes.plot([found["low"], found["high"]], [height, height], color=COLOURS[number], linewidth=1.4)
            axes.plot(
                found["auc"],
                height,
                MARKERS[number],
                color=COLOURS[number],
                markersize=5,
                label=label if not any(label == text for text in axes.get_legend_handles_labels()[1]) else None,
            )
    axes.axvline(0.5, color=_GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="membership, area under ROC", ylim=(places.min() - 0.6, places.max() + 0.6))
    axes.set_yticks(places, [""] * len(names))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, columnspacing=1, handletextpad=0.2)


def _sweep(content: Mapping[str, Any], file: Path) -> None:
    points, chosen = content["sweep"], content["history"][-1]["masked"]
    reference = content["points"]["refitted"]
    keys = [point["keys"] for point in points]
    with figure(file, 6.8, 4.2) as axes:
        for number, (key, label, target) in enumerate(
            (
                ("retain_accuracy", "accuracy, retained classes", reference["retain_accuracy"]),
                ("forget_accuracy", "accuracy, forgotten", None),
                (
                    "membership",
                    "membership by loss, area under ROC",
                    reference.get("membership", {}).get("loss", {}).get("auc"),
                ),
            )
        ):
            if key not in points[0] or points[0][key] is None:
                continue
            axes.plot(
                keys, [point[key] for point in points], marker=MARKERS[number], color=COLOURS[number], label=label
            )
            if target is not None:
                axes.axhline(
                    target,
                    color=COLOURS[number],
                    linestyle=":",
                    linewidth=1.4,
                    label=f"{label.split(',')[0]}, refitted",
                )
        axes.axvline(chosen, color=_GREY, linestyle="--", linewidth=1.2)
        axes.annotate(
            "chosen on training rows",
            (chosen, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right" if 4 * chosen > 3 * keys[-1] else "left" if 4 * chosen < keys[-1] else "center",
            va="bottom",  # above the axes: within, it would hide a curve
            fontsize=9,
        )
        axes.set(
            xlabel="masked (codebook, key) pairs, of those that forgotten rows select",
            ylabel="share",
            ylim=(-0.03, 1.03),
        )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)


def _shared(shared: Sequence[Sequence[float]], classes: Sequence[str], file: Path) -> None:
    grid = 100 * np.array(shared)
    classes = [plain(name) for name in classes]
    side = 2.2 + 0.42 * min(len(classes), 30)
    with figure(file, side + 1.2, side) as axes:
        axes.grid(False)
        image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=100)
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 2 else {}
        axes.set_xticks(range(len(classes)), classes, **slanted)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="... fall on keys that this class selects too", ylabel="of this class's selections, %")
        if len(classes) <= 12:
            for row, column in np.ndindex(grid.shape):
                axes.text(
                    column,
                    row,
                    f"{grid[row, column]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if grid[row, column] > 60 else "black",
                )
        axes.figure.colorbar(image, ax=axes, label="shared selections (%)", shrink=0.8)


def _in_turn(points: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Accuracy on what is kept to the end, and on what is forgotten so far, after each edit in turn."""
    titles = {"retain_accuracy": "classes that are kept", "forget_accuracy": "classes forgotten so far"}
    with figure(file, 8.4, 3.9, columns=2) as pair:
        for axes, (key, title) in zip(pair, titles.items(), strict=True):
            for number, (who, label) in enumerate((("after", "edited"), ("refitted", "refitted"))):
                shown = [point for point in points if point[who][key] is not None]
                axes.plot(
                    [points.index(point) for point in shown],
                    [100 * point[who][key] for point in shown],
                    marker=MARKERS[number],
                    color=COLOURS[number],
                    linestyle=("-", ":")[number],
                    # Where both agree, one shows around the other.
                    markersize=(6, 10)[number],
                    markerfacecolor=COLOURS[number] if number == 0 else "none",
                    label=label,
                )
            axes.set(xlabel="edits", title=title)  # not classes: an edit of single rows adds none
            axes.xaxis.get_major_locator().set_params(integer=True)
        pair[0].set_ylabel("test accuracy (%)")
        pair[1].set_ylim(-3, 103)
        pair[0].legend(loc="best", fontsize=9)
