"""The control task and the description length by layer."""

from functools import partial
from pathlib import Path

from probes.figures.drawing import UNTRAINED, Drawing, layer_axis, line
from probes.findings import Findings
from surgery.reporting.figures import figure


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure."""
    caption = "The real task against a control task that holds nothing but the words, and the description length."
    alt = "Two panels of the real task, the control task and their difference over layers; a third of bits a span over layers, for the model, random weights and controls."
    return [Drawing("selectivity", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    """The real task and the control task by layer, and bits a span."""
    with figure(file, 10.5, 3.7, 3) as all_axes:
        parts = (
            ("span-two-layer", "r2", "span marginals, two-layer: $R^2$"),
            ("depth", "accuracy", "LCA depth: accuracy"),
        )
        for axes, (probe, metric, title) in zip(all_axes[:2], parts, strict=True):
            line(axes, findings, probe, "model", metric, 0, "real task")
            line(axes, findings, probe, "model", f"control {metric}", 1, "control task")
            line(axes, findings, probe, "model", "selectivity", 2, "selectivity", dashed=True)
            axes.set_title(title, fontsize=10)
            layer_axis(axes, findings)
            axes.legend(fontsize=8)
        axes = all_axes[2]
        line(axes, findings, "span-two-layer", "model", "bits", 0, "model")
        line(axes, findings, "span-two-layer", "untrained", "bits", UNTRAINED, "untrained", dashed=True)
        for source, style in (("word identity", "--"), ("position", "-.")):
            measure = findings.find("span-two-layer", source, "bits")
            if measure:
                axes.axhline(measure.value, color="#777777", linewidth=1.1, linestyle=style, label=source)
        floor = findings.find("none", "ceiling", "bits")
        if floor and findings.exact:
            axes.axhline(
                floor.value, color="#000000", linewidth=1.1, linestyle=":", label="entropy: the least there is"
            )
        axes.set_title("description length: bits a span", fontsize=10)
        layer_axis(axes, findings)
        axes.legend(fontsize=8, frameon=True, facecolor="white", edgecolor="none", framealpha=1)
