"""Findings: all numbers of an experiment, apart from files and pages, and what they say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probes.calibration import Calibration
from probes.catalog import METRICS, PROBES
from probes.causal import Head, Removal
from probes.intervals import Measure
from probes.probe import NO_PROBE, Metric, Probe
from probes.sentence import Example


@dataclass(frozen=True)
class Verdict:
    """Whether a probe, at the layer that speaks for it, beats a control by more than their 95% intervals.

    Attributes:
        probe, metric: what is compared.
        control: which control, at its own best layer if it has layers.
        value, against: the model's number and the control's.
        beats: whether their intervals don't touch, and the model's is the better.
    """

    probe: str
    metric: str
    control: str
    value: Measure
    against: Measure
    beats: bool


@dataclass(frozen=True)
class Findings:
    """All numbers of an experiment.

    Attributes:
        provenance: versions, call, seed, fingerprints of what went in.
        model: its name, layers, heads and width.
        counts: sentences that probes were trained and tested on, words and spans.
        exact: whether the targets are exact marginals; else they are 1 for spans of a treebank's trees, and 0.
        layers: that were probed; `best_layer` is the one with the shortest description length on training sentences.
        measures: every number with its spread.
        loss: the model's loss at masked words beside the optimum, by position and by number of masks; None without one.
        removals, heads: the causal check, by layer, and attention within constituents, by head.
        examples: some test sentences with their charts.
        notes: what a reader must know.
        seconds: how long it took.
        calibration: probes and ablations held to what is known, for a compiled grammar.
    """

    provenance: dict[str, Any]
    model: dict[str, Any]
    counts: dict[str, int]
    exact: bool
    layers: tuple[int, ...]
    best_layer: int
    measures: tuple[Measure, ...]
    loss: dict[str, Any] | None
    removals: tuple[Removal, ...]
    heads: tuple[Head, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    seconds: float
    calibration: Calibration | None = None

    def find(self, probe: str, source: str, metric: str, layer: int | None = None, group: str = "") -> Measure | None:
        """Return the measure of that probe, source, metric, layer and group, or None."""
        key = (probe, source, metric, layer, group)
        return next((m for m in self.measures if (m.probe, m.source, m.metric, m.layer, m.group) == key), None)

    def by_layer(self, probe: str, source: str, metric: str, group: str = "") -> list[Measure]:
        """Return a source's measures, in the order of layers."""
        measures = [self.find(probe, source, metric, layer, group) for layer in self.layers]
        return [measure for measure in measures if measure is not None]

    def layer_of(self, probe: str) -> int:
        """Return the layer that a probe is judged at: the last for masked words, which are predicted there; else the best."""
        last = any(known.judged_at_last_layer for known in PROBES if known.name == probe)
        return max(self.layers) if last else self.best_layer

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each probe, at the layer that speaks for it, against every control."""
        verdicts = []
        for probe, metric in METRICS:
            own = self.find(probe.name, "model", metric.name, self.layer_of(probe.name))
            for control in metric.controls:
                against = self._strongest(probe, control, metric)
                if own is not None and against is not None:
                    beats = _apart(own, against, metric.lower_is_better)
                    verdicts.append(Verdict(probe.name, metric.name, control, own, against, beats))
        return tuple(verdicts)

    def _strongest(self, probe: Probe, control: str, metric: Metric) -> Measure | None:
        """A control's best number, over layers where it has them."""
        if control == "layer 0":
            return self.find(probe.name, "model", metric.name, 0) if self.layer_of(probe.name) else None
        if control == "control task":
            return self.find(probe.name, "model", f"control {metric.name}", self.best_layer)
        key = ("none" if control in NO_PROBE else probe.name, control, metric.name, "")
        measures = [m for m in self.measures if (m.probe, m.source, m.metric, m.group) == key]
        best = min if metric.lower_is_better else max
        return best(measures, key=lambda m: m.value, default=None)

    @property
    def summary(self) -> list[str]:
        """The answer in one to three sentences: trees, marginals and masked words, controls."""
        best, found = self.best_layer, list[str]()
        own = self.find("span-two-layer", "model", "f1", best)
        share = self.find("span-two-layer", "model", "f1 share", best)
        if own is not None and share is not None:
            whose = "the grammar's own minimum-risk trees" if self.exact else "the binarised true trees"
            lost = [v.control for v in self.verdicts if (v.probe, v.metric, v.beats) == ("span-two-layer", "f1", False)]
            but = f", but don't clearly beat {' or '.join(lost)}" if lost else ""
            found.append(
                f"Trees decoded from layer {best}, the best by description length, reach F1 {interval(own)}, which is {interval(share)} of {whose}{but}."
            )
        r2 = self.find("span-two-layer", "model", "r2", best)
        parts = [] if r2 is None else [f"span marginals can be read there with R2 {interval(r2)}"]
        if self.loss:
            excess, optimum = self.loss["excess"], self.loss["optimum"]
            parts.append(
                f"masked words are predicted {excess['value']:.3f} nats [{excess['low']:.3f}, {excess['high']:.3f}] above the optimum of {optimum:.3f}"
            )
        if parts:
            sentence = "; ".join(parts)
            found.append(f"{sentence[0].upper()}{sentence[1:]}.")
        if verdicts := self.verdicts:
            won = sum(verdict.beats for verdict in verdicts)
            which = f"{won} of the {len(verdicts)} comparisons with controls {'is' if won == 1 else 'are'}"
            if won == len(verdicts):
                which = "Every comparison with a control is"
            found.append(f"{which} won by more than the 95% intervals.")
        return found or [f"Layer {best} describes the training spans in the fewest bits."]

    def _calibrated(self, found: Calibration) -> str:
        """What linear probes, two-layer ones and ablations find where the answer is known."""
        after, before, zeroed = found.after(), found.before(), sum(head.zeroed for head in found.heads)
        early = (
            ""
            if before is None
            else f", and before with {found.usual_before():.3f} in the median ({math.floor(1e4 * before) / 1e4:.4f} at most)"
        )
        needing, others = sum(head.needing for head in found.heads), sum(head.others for head in found.heads)
        random = sum(head.random_zeroed for head in found.heads)
        r2 = [self.find(f"span-{kind}", "model", "r2", self.best_layer) for kind in ("two-layer", "linear")]
        more = (
            ""
            if r2[0] is None or r2[1] is None
            else f" Marginals are products: two layers' R2 is {r2[0].value - r2[1].value:.3f} above one's."
        )
        probed = (
            "Too few sentences to ask linear probes for inside scores, which takes about as many as a state has dimensions"
            if after is None
            else f"Linear probes find inside scores from the layer on that completes them with R2 {_at_least(after)}{early}"
        )
        return (
            f"The weights are a grammar, so what lies in each layer is known. {probed}; a head taken out sets {zeroed:,} of the "
            f"{needing:,} spans that need it to 0 and {others:,} others, a random one {random:,}.{more}"
        )

    @property
    def unbeaten(self) -> list[str]:
        """Each probe and metric with the controls that it doesn't beat, as `depth f1: layer 0, right`."""
        lost: dict[str, list[str]] = {}
        for verdict in self.verdicts:
            if not verdict.beats:
                lost.setdefault(f"{verdict.probe} {verdict.metric}", []).append(verdict.control)
        return [f"{probe}: {', '.join(controls)}" for probe, controls in lost.items()]

    @property
    def remarks(self) -> list[str]:
        """What a reader must know beside the summary."""
        best = ["The best layer is the embeddings: no layer says more of spans than they do."] * (not self.best_layer)
        wrong = [
            "The calibration failed: probes don't find what is there, or heads zero other spans than those that need them."
        ]
        failed = wrong * (self.calibration is not None and not self.calibration.holds())
        known = [] if self.calibration is None else [self._calibrated(self.calibration)]
        return [*best, *failed, *known, *(f"Note: {note}." for note in self.notes)]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return one row for each layer and control, one column for each metric; a star marks the best layer."""
        shown = [(p, m) for p, m in METRICS if m.column and self.by_layer(p.name, "model", m.name)]
        rows: list[list[Any]] = []
        for source, name in (("model", "layer"), ("untrained", "untrained")):
            for layer in self.layers:
                cells = [_value(self.find(probe.name, source, metric.name, layer)) for probe, metric in shown]
                star = " *" if source == "model" and layer == self.best_layer else ""
                if any(cell is not None for cell in cells):
                    rows.append([f"{name} {layer}{star}", *cells])
        for source in ("word identity", "position"):
            rows.append([source, *(_value(self.find(probe.name, source, metric.name)) for probe, metric in shown)])
        for source in NO_PROBE:
            found = [self.find("none", source, metric.name) if metric.without_probe else None for _, metric in shown]
            rows.append([source, *map(_value, found)])
        return ["source", *(metric.column for _, metric in shown)], rows

    def text(self) -> str:
        """Return the table for a terminal."""
        columns, rows = self.table()
        lines = [["", *columns[1:]], *written(rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in lines
        )


def _at_least(r2: float) -> str:
    """What every value is, the smallest of which is given."""
    return "1.0000" if r2 > 0.99995 else f"{r2:.4f} or more"


def _apart(own: Measure, against: Measure, lower_is_better: bool) -> bool:
    if own.low is None or own.high is None or against.low is None or against.high is None:
        return False
    return own.high < against.low if lower_is_better else own.low > against.high


def _value(measure: Measure | None) -> float | None:
    return None if measure is None else measure.value


def written(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Rows of a table with three decimals, for people."""
    return [["" if v is None else v if isinstance(v, str) else f"{v:.3f}" for v in row] for row in rows]


def interval(measure: Measure) -> str:
    """A value with its interval, for people."""
    if measure.low is None or measure.high is None:
        return f"{measure.value:.3f}"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
