"""Figures of a verification and of a run, drawn from what their reports hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.reporting.figures import COLOURS, MARKERS, figure
from surgery.reporting.page import Figure


def draw_verification(content: Mapping[str, Any], folder: Path) -> list[Figure]:
    """Error by block, and by step of the differences, in the order to show them."""
    _by_block(content, folder / "layers.png")
    drawn = [
        Figure(
            "layers.png",
            "How far the update is from autograd's, in each block its worst tensor. Exact should lie at rounding, and paper near it "
            "against detached scores, through which no gradient flows; against full autograd it shows what that gradient is "
            "worth. Published shows its faults: a bias that learns four times over has a relative error of 3.",
            "Lines of relative error by block, one a mode and oracle, on a logarithmic scale",
        )
    ]
    if content["sweep"]:
        _sweep(content["sweep"], folder / "sweep.png")
        drawn.append(
            Figure(
                "sweep.png",
                "Error of mode paper by the size of its differences: relative to each token (left, what mode paper does; lowest "
                "where truncation and rounding meet), and with one constant N for all (right, as the paper has it).",
                "Two plots of relative error by step and by N, in float32 and float64, on logarithmic scales",
            )
        )
    return drawn


def _by_block(content: Mapping[str, Any], file: Path) -> None:
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
            entries = [e for e in content["updates"][mode][oracle] if e["learns"] and e["cosine"] is not None]
            worst = [max(e["relative_error"] for e in entries if e["layer"] == layer) for layer in layers]
            axes.plot(layers, worst, marker=MARKERS[number], color=COLOURS[number], label=label, markersize=5)
        axes.set(yscale="log", xlabel="block", ylabel="relative error of the update, worst tensor")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _sweep(points: Any, file: Path) -> None:
    """Error against the step of the differences, by dtype: ours and the paper's constant."""
    with figure(file, 8.4, 3.9, columns=2) as pair:
        for axes, key, title in (
            (pair[0], "step", "step relative to each token"),
            (pair[1], "scale", "one constant N for all"),
        ):
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


def draw_run(content: Mapping[str, Any], folder: Path) -> list[Figure]:
    """Perplexity by training share, or accuracy by method."""
    if content["kind"] == "task":
        _accuracy(content["points"], folder / "accuracy.png")
        caption = "Accuracy by what the model may do with the demonstrations, with 95% intervals."
        return [Figure("accuracy.png", caption, "Points with intervals, one a method")]
    _perplexity(content["points"], folder / "perplexity.png")
    caption = (
        "Left, perplexity on the rest of each window: lower is better, and a line below frozen has learnt something. Right, what "
        "that is worth a token, with 95% intervals over windows: above zero is a gain that the windows agree on."
    )
    return [
        Figure(
            "perplexity.png", caption, "Perplexity by training share, one line a method, and gains on the frozen model"
        )
    ]


def _perplexity(points: Any, file: Path) -> None:
    """Perplexity by training share; beside it what each method gains on the frozen model, which windows' spread hides."""
    methods = list(dict.fromkeys(point["method"] for point in points))
    paired = any("gain" in point for point in points)
    with figure(file, 9.6 if paired else 6.4, 4.0, columns=2 if paired else 1) as axes:
        left, right = axes if paired else (axes, None)
        for number, method in enumerate(methods):
            own = [point for point in points if point["method"] == method]
            style = {
                "marker": MARKERS[number],
                "color": COLOURS[number],
                "linestyle": ("-", "--", "-", ":", "-.")[number % 5],
                # Dynamic evaluation and exact TinT agree: one shows around the other.
                "markersize": (6, 10, 6, 5, 6)[number % 5],
                "markerfacecolor": "none" if number == 1 else COLOURS[number],
            }
            left.plot([100 * p["share"] for p in own], [p["value"] for p in own], label=method, **style)
            # Side by side, so that intervals don't hide one another.
            places = [100 * p["share"] + 1.2 * (number - (len(methods) - 1) / 2) for p in own]
            if right is not None and "gain" in own[0]:
                errors = [1.96 * (p["gain_error"] or 0) for p in own]
                right.errorbar(
                    places, [p["gain"] for p in own], yerr=errors, capsize=3, **style | {"linestyle": "none"}
                )
        shares = [100 * share for share in dict.fromkeys(point["share"] for point in points)]
        left.set(xlabel="share of each window to learn from (%)", ylabel="perplexity on the rest")
        left.set_ylim(0)  # what a method gains is small beside the whole, and shown on the right
        left.legend(fontsize=9, loc="lower right")
        left.set_xticks(shares)
        if right is not None:
            right.axhline(0, color="#888888", linewidth=1)
            right.set(
                xlabel="share of each window to learn from (%)", ylabel="nats a token gained on frozen, 95% interval"
            )
            right.set_xticks(shares)


def _accuracy(points: Any, file: Path) -> None:
    places = range(len(points))[::-1]
    with figure(file, 6.4, 1.2 + 0.4 * len(points)) as axes:
        for place, point in zip(places, points, strict=True):
            axes.errorbar(
                100 * point["value"],
                place,
                xerr=[[100 * (point["value"] - point["low"])], [100 * (point["high"] - point["value"])]],
                marker=MARKERS["TinT" in point["method"]],
                color=COLOURS["TinT" in point["method"]],
                capsize=3,
            )
        axes.set_yticks(list(places), [point["method"] for point in points])
        axes.set(xlabel="accuracy (%), 95% interval")
