"""Span probes: the probability of a constituent over words i to j, from the states of words i and j (Zhao et al. 2023, section 5)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from probes.controls import CLASSES, word_classes
from probes.dataset import Dataset
from probes.decoding import minimum_risk
from probes.intervals import Measure, r_squared, squares
from probes.linear import PairRegression, Scale
from probes.probe import BRANCHING, TRAINED, Features, Metric, Probe
from probes.scorer import Scorer

KINDS = ("linear", "two-layer")
_HIDDEN, _EPOCHS, _RATE, _DECAY = 64, 20, 1e-2, 0.3
_FLOOR = 1e-4


def fit_spans(
    kind: str,
    features: np.ndarray,
    dataset: Dataset,
    numbers: Int64[np.ndarray, " train"],
    targets: np.ndarray,
    seed: int,
) -> "PairRegression | TwoLayer":
    """Fit a span probe of one kind to the spans of some sentences.

    Args:
        targets: a row for each span of the whole dataset, as `dataset.targets`.
    """
    if kind == "linear":
        left, right = dataset.ends(numbers)
        return PairRegression.fit(features, left, right, targets[dataset.span_rows(numbers)], seed=seed)
    return TwoLayer.fit(features, dataset, numbers, targets, seed=seed)


def predict_spans(
    probe: "PairRegression | TwoLayer", features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " test"]
) -> Float32[np.ndarray, "rows outputs"]:
    """Predict marginals, within 0 and 1, of the spans of some sentences, one sentence after another."""
    if isinstance(probe, TwoLayer):
        return probe.predict(features, dataset, numbers)
    left, right = dataset.ends(numbers)
    return np.clip(probe(features, left, right), 0.0, 1.0).astype(np.float32)


class _Net(nn.Module):
    """relu(A left + B right + c), then a linear layer: A and B see each word once, whatever the number of spans."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(width, _HIDDEN), nn.Linear(width, _HIDDEN, bias=False)
        self.out = nn.Linear(_HIDDEN, outputs)

    def forward(self, states: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Logits [spans, outputs] from states [words, width] and places of words."""
        ends = self.left(states).index_select(0, left) + self.right(states).index_select(0, right)
        return self.out(torch.relu(ends))


@dataclass(frozen=True, eq=False)
class TwoLayer:
    """A probe with one hidden layer, trained on the cross-entropy against exact marginals."""

    scale: Scale
    net: Any

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        dataset: Dataset,
        numbers: Int64[np.ndarray, " train"],
        targets: np.ndarray,
        *,
        seed: int,
    ) -> "TwoLayer":
        """Train by AdamW, with a rate that falls to 0; the seed decides weights and order."""
        scale, random = Scale.fit(features, dataset.word_rows(numbers)), np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _Net(features.shape[1], targets.shape[1])
        epochs = [dataset.batches(numbers, random) for _ in range(_EPOCHS)]
        steps = sum(map(len, epochs))
        optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY, fused=True)
        for step, batch in enumerate(batch for epoch in epochs for batch in epoch):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - step / steps)
            some = numbers[batch]
            wanted = torch.from_numpy(targets[dataset.span_rows(some)])
            loss = F.binary_cross_entropy_with_logits(net(*_inputs(scale, features, dataset, some)), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(scale, net.eval())

    def predict(
        self, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " test"]
    ) -> Float32[np.ndarray, "rows outputs"]:
        """Predict marginals of the spans of some sentences, one sentence after another."""
        with torch.no_grad():
            rows = [
                torch.sigmoid(self.net(*_inputs(self.scale, features, dataset, numbers[batch]))).numpy()
                for batch in dataset.batches(numbers)
            ]
        return np.concatenate(rows)


def description_length(
    features: np.ndarray, dataset: Dataset, targets: np.ndarray, seed: int, portions: int = 4
) -> float:
    """Description length of the marginals, in bits a span, by online coding with a two-layer probe (Voita & Titov 2020, section 2.2.2).

    Each portion of the sentences, as large as all before together, is coded by a probe trained on those before; the first
    by one bit a span. A marginal p costs the cross-entropy of p and the prediction.
    """
    numbers = np.random.default_rng(seed).permutation(dataset.train)
    ends = [max(4, math.ceil(len(numbers) / 2**power)) for power in range(portions, -1, -1)]
    ends = sorted({min(end, len(numbers)) for end in ends})
    bits = float(len(dataset.span_rows(numbers[: ends[0]])))
    for begin, end in pairwise(ends):
        probe = TwoLayer.fit(features, dataset, numbers[:begin], targets[:, :1], seed=seed)
        coded = probe.predict(features, dataset, numbers[begin:end])[:, 0].astype(np.float64)
        coded = np.clip(coded, _FLOOR, 1 - _FLOOR)
        wanted = targets[dataset.span_rows(numbers[begin:end]), 0].astype(np.float64)
        bits -= float((wanted * np.log2(coded) + (1 - wanted) * np.log2(1 - coded)).sum())
    return bits / len(dataset.span_rows(numbers))


def control_spans(dataset: Dataset, seed: int) -> Float32[np.ndarray, "spans one"]:
    """Control task for spans: words get random classes, and each pair of classes a marginal drawn from the real ones."""
    classes = word_classes(dataset, seed)
    left, right = dataset.ends(np.arange(len(dataset.sentences)))
    real = dataset.targets[dataset.span_rows(dataset.train), 0]
    table = np.random.default_rng(seed).choice(real, (CLASSES, CLASSES))
    return table[classes[left], classes[right]][:, None].astype(np.float32)


@dataclass(frozen=True)
class SpanProbe(Probe):
    """A probe of span marginals, linear or two-layer, with the trees of least risk by what it predicts."""

    def measure(self, scorer: Scorer, seen: Features) -> list[Measure]:
        """Measure correlations by span length and label, F1 of trees, the control task, and bits for the two-layer probe."""
        assert seen.words is not None
        kind, dataset, features = self.name.removeprefix("span-"), scorer.dataset, seen.words
        predicted, control = list[np.ndarray](), list[np.ndarray]()
        for seed in range(scorer.settings.seeds):
            train = scorer.train_for(seed)
            fitted = fit_spans(kind, features, dataset, train, dataset.targets, seed)
            predicted.append(predict_spans(fitted, features, dataset, dataset.test))
            if seen.source == "model":
                task = control_spans(dataset, seed)
                fitted = fit_spans(kind, features, dataset, train, task, seed)
                values = predict_spans(fitted, features, dataset, dataset.test)
                control.append(squares(values[:, 0], task[scorer.rows, 0], scorer.owners, len(dataset.test)))
        about = (self.name, seen.source, seen.layer)
        measures = scorer.marginal_measures(*about, predicted)
        trees = [minimum_risk(dataset.full(dataset.test, p[:, 0])) for p in predicted]
        measures += scorer.tree_measures(*about, trees)
        if control:
            real = next(m for m in measures if (m.metric, m.group) == ("r2", ""))
            measures += scorer.selectivity(real, "control r2", np.stack(control), r_squared)
        if kind == "two-layer":
            bits = description_length(features, dataset, dataset.targets, scorer.settings.seed)
            measures.append(Measure(*about, "bits", "", bits, None, None, (bits,)))
        return measures


_R2_CONTROLS = (*TRAINED, "length", "control task")
_R2 = "R squared of span marginals on test sentences by a {} probe: the share of their variance that it explains."
_F1 = "unlabelled F1 (0 to 1) against the true trees, of the minimum-risk trees by the {} probe's marginals."

LINEAR_SPANS = SpanProbe(
    name="span-linear",
    label="spans, linear",
    style=1,
    metrics=(
        Metric("r2", _R2_CONTROLS, "R2 linear", _R2.format("linear")),
        Metric("f1", (*TRAINED, *BRANCHING), "F1 linear", _F1.format("linear")),
    ),
)
TWO_LAYER_SPANS = SpanProbe(
    name="span-two-layer",
    label="spans, two-layer",
    style=0,
    metrics=(
        Metric("r2", _R2_CONTROLS, "R2 2-layer", _R2.format("two-layer")),
        Metric("f1", (*TRAINED, *BRANCHING), "F1 2-layer", _F1.format("two-layer")),
        Metric("f1 share", (), "of ceiling", "F1 2-layer divided by the ceiling's F1 (the last row)."),
        Metric(
            "bits",
            (),
            "bits",
            "description length of the span marginals given the states: bits a span, the fewer the better (Voita & Titov 2020).",
        ),
    ),
)


def _inputs(
    scale: Scale, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " some"]
) -> tuple[Tensor, Tensor, Tensor]:
    """States of the words of some sentences, and the first and last words of their spans."""
    rows, left, right = dataset.flat(numbers)
    return torch.from_numpy(scale(features[rows])), torch.from_numpy(left), torch.from_numpy(right)
