"""Excess loss at masked words."""

from functools import partial
from pathlib import Path

import numpy as np

from probes.figures.drawing import UNTRAINED, Drawing, layer_axis, line
from probes.findings import Findings
from surgery.reporting.figures import COLOURS, figure

_LEAST = 1e-4  # nats at the top of a panel: what a model without excess differs by is rounding


def drawings(findings: Findings) -> list[Drawing]:
    """Return the figure, where there is something to draw."""
    if not findings.loss:
        return []
    caption = (
        "Loss at masked words above the optimum, and how well the exact posterior can be read off the mask's state."
    )
    alt = "Panels of excess loss in nats by the position of the mask and by the number of masks; a third of the divergence of a probe's posterior from the exact one over layers."
    return [Drawing("loss", caption, alt, partial(_draw, findings))]


def _draw(findings: Findings, file: Path) -> None:
    """Excess loss by position and by number of masks, and the words probe's divergence by layer."""
    assert findings.loss is not None
    with figure(file, 10.5, 3.7, 3) as (by_position, by_masks, by_layer):
        for axes, key, name in (
            (by_position, "position", "position of the mask"),
            (by_masks, "masks", "masks in the sentence"),
        ):
            entries = [entry for entry in findings.loss[f"by_{key}"] if entry["count"] > 3]
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
            axes.axhline(
                findings.loss["excess"]["value"], color="#777777", linestyle="--", linewidth=1.1, label="mean of all"
            )
            axes.set_xlabel(name)
            axes.set_ylabel("excess loss, nats")
            axes.set_ylim(0, max(axes.get_ylim()[1], _LEAST))
            axes.xaxis.get_major_locator().set_params(integer=True)
        by_position.legend(fontsize=8)
        by_masks.set_xticks([1, 2, 3, 4], ["1", "2", "3", "4+"])
        line(by_layer, findings, "words", "model", "kl", 0, "probe, model")
        line(by_layer, findings, "words", "untrained", "kl", UNTRAINED, "probe, untrained", dashed=True)
        for (probe, source, name), style in zip(
            (("words", "word identity", "neighbouring words"), ("none", "model", "the model's own head")),
            ("--", ":"),
            strict=True,
        ):
            measure = findings.find(probe, source, "kl")
            if measure:
                by_layer.axhline(measure.value, color="#777777", linestyle=style, linewidth=1.3, label=name)
        by_layer.set_ylabel("KL(exact || predicted), nats")
        by_layer.set_ylim(0)
        layer_axis(by_layer, findings)
        by_layer.legend(fontsize=8)
