"""The figures of a verification and of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.figures import COLOURS, MARKERS, figure


def draw_verification(content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Error by layer, and by step of the differences; returns the files in the order to show them."""
    made = [folder / "layers.png"]
    _by_layer(content, made[0])
    if content["sweep"]:
        made.append(folder / "sweep.png")
        _sweep(content["sweep"], made[1])
    return made


def _by_layer(content: Mapping[str, Any], file: Path) -> None:
    """The worst tensor of each block: how far the update is from autograd."""
    lines = [
        ("exact, against autograd", "exact", "full"),
        ("paper, against detached scores", "paper", "detached"),
        ("published, against detached scores", "published", "detached"),
        ("paper, against autograd", "paper", "full"),
    ]
    layers = range(content["shape"]["layers"])
    with figure(file, 7.2, 4.2) as axes:
        for number, (label, mode, oracle) in enumerate(lines):
            if mode not in content["updates"]:
                continue
            entries = [
                e for e in content["updates"][mode][oracle] if e["learns"] and e["cosine"] is not None
            ]
            worst = [max(e["relative_error"] for e in entries if e["layer"] == layer) for layer in layers]
            axes.plot(layers, worst, marker=MARKERS[number], color=COLOURS[number], label=label, markersize=5)
        axes.set(yscale="log", xlabel="block", ylabel="relative error of the update, worst tensor")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _sweep(points: Any, file: Path) -> None:
    """Error against the step of the differences, by dtype: ours and the paper's constant."""
    with figure(file, 8.4, 3.9, columns=2) as pair:
        for axes, key, title in ((pair[0], "step", "step relative to each token"), (pair[1], "scale", "one constant N for all")):
            for number, dtype in enumerate(("float32", "float64")):
                shown = [point for point in points if point["dtype"] == dtype and point.get(key)]
                errors = [min(point["relative_error"], 1e3) for point in shown]
                axes.plot(
                    [point[key] for point in shown],
                    errors,
                    marker=MARKERS[number],
                    color=COLOURS[number],
                    label=dtype,
                )
            axes.set(xscale="log", yscale="log", xlabel="step" if key == "step" else "N", title=title)
        low = min(axes.get_ylim()[0] for axes in pair)
        high = max(axes.get_ylim()[1] for axes in pair)
        for axes in pair:
            axes.set_ylim(low, high)
        pair[0].set_ylabel("relative error, worst tensor")
        pair[0].legend()
