"""Span marginals by span length."""

from functools import partial
from pathlib import Path

from probes.figures.drawing import Drawing, with_intervals
from probes.findings import Findings
from surgery.reporting.figures import figure


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure."""
    caption = "Span marginals at the best layer, by span length; bars are 95% intervals over sentences."
    alt = "Three panels, R squared, Pearson and Spearman, of predicted and exact span marginals over the number of words in the span, for the probes of the best layer and of the controls."
    return [Drawing("marginals", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    """R^2, Pearson and Spearman by span length at the best layer, against the controls."""
    best = findings.best_layer
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
                places = [i for i, group in enumerate(groups) if findings.find(probe, source, metric, layer, group)]
                measures = [m for group in groups if (m := findings.find(probe, source, metric, layer, group))]
                with_intervals(axes, places, measures, number, name, size=4)
            axes.set_xticks(range(len(groups)), groups)
            axes.set_xlim(-0.5, len(groups) - 0.5)
            axes.set_xlabel("words in the span")
            axes.set_title(title, fontsize=10)
            axes.set_ylim(-0.25, 1.02)
        all_axes[0].figure.legend(
            *all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8
        )
