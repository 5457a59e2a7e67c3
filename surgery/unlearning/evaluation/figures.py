"""The figures of a verification.

To add one, write a function that draws it from a report's content, and name it in `DRAWINGS`: the report's folder and its
pages have it then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surgery.reporting.figures import COLOURS, MARKERS, figure, plain, write_numbers
from surgery.reporting.page import Figure
from surgery.unlearning.evaluation.attacks import ATTACKS

_GREY = "#555555"
_COLUMNS = 3  # of a legend
Content = Mapping[str, Any]


def methods(content: Content, file: Path) -> None:
    """Accuracy on the forgotten and on the rest, and the membership attacks, one row a bottleneck."""
    points = content["points"]
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
    apart = 0.6 / len(ATTACKS)
    for number, attack in enumerate(ATTACKS):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        label: str | None = attack.name
        for name, place in zip(names, places, strict=True):
            area = points[name].get("membership", {}).get(attack.key)
            if area is None:
                continue
            height = place + apart * ((len(ATTACKS) - 1) / 2 - number)
            axes.plot([area["low"], area["high"]], [height, height], color=colour, linewidth=1.4)
            axes.plot(area["auc"], height, marker, color=colour, markersize=5, label=label)
            label = None  # once in the legend
    axes.axvline(0.5, color=_GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="membership, area under ROC", ylim=(places.min() - 0.6, places.max() + 0.6))
    axes.set_yticks(places, [""] * len(names))
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=_COLUMNS, fontsize=8, columnspacing=1, handletextpad=0.2
    )


def masks(content: Content, file: Path) -> None:
    """Accuracy and membership by loss against the number of masked pairs."""
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
                    label=f"{label.removesuffix(', area under ROC')}, refitted",
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


def shared(content: Content, file: Path) -> None:
    """Share of each class's selections that fall on keys which another class selects too."""
    grid = 100 * np.array(content["shared_keys"])
    classes = [plain(name) for name in content["classes"]]
    side = 2.2 + 0.42 * min(len(classes), 30)
    with figure(file, side + 1.2, side) as axes:
        axes.grid(False)
        image = axes.imshow(grid, cmap="Blues", vmin=0, vmax=100)
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 2 else {}
        axes.set_xticks(range(len(classes)), classes, **slanted)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(xlabel="... fall on keys that this class selects too", ylabel="of this class's selections, %")
        if len(classes) <= 12:
            write_numbers(axes, grid, np.ndindex(grid.shape), lambda value: value > 60)
        axes.figure.colorbar(image, ax=axes, label="shared selections (%)", shrink=0.8)


def turns(content: Content, file: Path) -> None:
    """Accuracy on what is kept to the end, and on what is forgotten so far, after each edit in turn."""
    points: Sequence[Content] = content["turns"]
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


@dataclass(frozen=True)
class Drawing:
    """A figure of a report.

    Attributes:
        stem: name of its file.
        draw: draws a report's content into a file.
        wanted: whether the content holds what it takes.
        caption: what a reader should see in it.
    """

    stem: str
    draw: Callable[[Content, Path], None]
    wanted: Callable[[Content], bool]
    caption: str


DRAWINGS = (
    Drawing(
        "methods",
        methods,
        lambda content: len(content["points"]) > 2,
        "Each row is a bottleneck: before the edit, after it, refitted without the forgotten rows, and after other methods. "
        "The nearer to refitted in all panes, the better; in the right one the dashed line is guessing.",
    ),
    Drawing(
        "keys",
        masks,
        lambda content: bool(content.get("sweep")),
        "From no masked key to every key that the forgotten rows select, by the edit's own ranking. Dotted lines are the "
        "refitted bottleneck's; the dashed line is the number that was chosen, without a look at test rows.",
    ),
    Drawing(
        "turns",
        turns,
        lambda content: len(content.get("turns", ())) > 1,
        "After each edit in turn, beside a bottleneck refitted without all that is forgotten so far.",
    ),
    Drawing(
        "shared",
        shared,
        lambda content: bool(content.get("shared_keys")),
        "How much classes share keys: of the selections of the class at the left, the share that falls on keys which the class "
        "below selects too. "
        "Where classes share many, masking one costs the other.",
    ),
)


def draw(content: Content, folder: Path) -> list[Figure]:
    """Draw what a report's content allows, into `folder`; returns the figures in the order to show them."""
    made = []
    for drawing in DRAWINGS:
        if drawing.wanted(content):
            drawing.draw(content, folder / f"{drawing.stem}.png")
            made.append(Figure(f"{drawing.stem}.png", drawing.caption, (drawing.draw.__doc__ or "").split(".")[0]))
    return made
