"""Distances of words in the tree (Hewitt & Manning 2019), and the tree that splits where neighbours are farthest apart."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from probes.dataset import Dataset
from probes.decoding import split_at_gaps, tree_distances
from probes.intervals import Measure, ratio
from probes.linear import Scale
from probes.probe import BRANCHING, TRAINED, Features, Metric, Probe
from probes.scorer import Scorer

# With a quarter of the epochs, what later layers hold in mixed directions is hardly found: layer 0 then looks too good beside them.
_RANK, _EPOCHS, _RATE = 32, 40, 3e-2


@dataclass(frozen=True, eq=False)
class DistanceProbe:
    """Structural probe: ||B (h_i - h_j)||^2 predicts the distance of words i and j in the tree (Hewitt & Manning 2019, section 2.2)."""

    scale: Scale
    projection: Tensor

    @classmethod
    def fit(
        cls, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " train"], *, seed: int
    ) -> "DistanceProbe":
        """Minimise the absolute error, each sentence's divided by the square of its length, as in the paper."""
        scale, random = Scale.fit(features, dataset.word_rows(numbers)), np.random.default_rng(seed)
        distances, weights = _wanted(dataset, numbers)
        generator = torch.Generator().manual_seed(seed)
        width = features.shape[1]
        projection = torch.randn(width, min(_RANK, width), generator=generator) / width
        projection.requires_grad_(True)
        optimizer = torch.optim.Adam([projection], lr=_RATE, fused=True)
        epochs = [dataset.batches(numbers, random) for _ in range(_EPOCHS)]
        steps = sum(map(len, epochs))
        for step, batch in enumerate(batch for epoch in epochs for batch in epoch):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - step / steps)
            predicted = _distances(projection, scale, features, dataset, numbers[batch])
            wanted = torch.from_numpy(np.concatenate([distances[i] for i in batch]))
            share = torch.from_numpy(np.concatenate([weights[i] for i in batch]))
            loss = ((predicted - wanted).abs() * share).sum() / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(scale, projection.detach())

    def predict(
        self, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " test"]
    ) -> list[Float64[np.ndarray, "_ _"]]:
        """Predict the distances of all pairs of words, one [n, n] table a sentence."""
        tables = []
        for batch in dataset.batches(numbers):
            some = numbers[batch]
            values = _distances(self.projection, self.scale, features, dataset, some).numpy().astype(np.float64)
            first = 0
            for n in dataset.lengths[some].tolist():
                table, pairs = np.zeros((n, n)), n * (n - 1) // 2
                table[np.triu_indices(n, 1)] = values[first : first + pairs]
                tables.append(table + table.T)
                first += pairs
        return tables


def distance_trees(distances: list[Float64[np.ndarray, "_ _"]]) -> list[Int64[np.ndarray, "_ 2"]]:
    """Split each span between the two neighbours that are farthest apart (as Shen et al. 2018's syntactic distances).

    Even true distances lose something that way: F1 .95 on the example grammar's own trees, .69 on NLTK's treebank's
    (30 words or fewer), where binarised true trees have .85.
    """
    return [split_at_gaps(np.diagonal(table, 1)) for table in distances]


def _wanted(
    dataset: Dataset, numbers: Int64[np.ndarray, " some"]
) -> tuple[list[Float32[np.ndarray, " _"]], list[Float32[np.ndarray, " _"]]]:
    """Distances of each two words of each sentence, and their weights in the loss."""
    tables = [tree_distances(dataset.trees[i]) for i in numbers]
    distances = [table[np.triu_indices(len(table), 1)].astype(np.float32) for table in tables]
    return distances, [np.full(len(d), 2 / len(t) ** 2, np.float32) for d, t in zip(distances, tables, strict=True)]


def distance_correlations(
    dataset: Dataset, numbers: Int64[np.ndarray, " test"], distances: list[np.ndarray]
) -> np.ndarray:
    """Spearman's correlation of predicted and true distances, a number a sentence, mean over its words (DSpr.)."""
    from scipy.stats import rankdata

    correlations = []
    for i, table in zip(numbers, distances, strict=True):
        n = len(table)
        others = ~np.eye(n, dtype=bool)
        ranks = [rankdata(rows[others].reshape(n, n - 1), axis=1) for rows in (tree_distances(dataset.trees[i]), table)]
        a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
        size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        correlations.append(float(np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1), 0.0).mean()))
    return np.array(correlations)


def _distances(
    projection: Tensor, scale: Scale, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " some"]
) -> Tensor:
    """Distances of each two words, one sentence after another."""
    rows, left, right = dataset.flat(numbers, every=True)
    states = torch.from_numpy(scale(features[rows])) @ projection
    apart = states.index_select(0, torch.from_numpy(left)) - states.index_select(0, torch.from_numpy(right))
    return apart.square().sum(1)


@dataclass(frozen=True)
class TreeDistances(Probe):
    """`DistanceProbe` on a layer, and the trees that split where neighbours are farthest apart."""

    def measure(self, scorer: Scorer, seen: Features) -> list[Measure]:
        """Measure the rank correlation of distances, and F1 of trees."""
        assert seen.words is not None
        dataset, test = scorer.dataset, scorer.dataset.test
        ranks, trees = [], []
        for seed in range(scorer.settings.seeds):
            probe = DistanceProbe.fit(seen.words, dataset, scorer.train_for(seed), seed=seed)
            distances = probe.predict(seen.words, dataset, test)
            correlations = distance_correlations(dataset, test, distances)
            ranks.append(np.stack([correlations, np.ones(len(test))], 1))
            trees.append(distance_trees(distances))
        about = (self.name, seen.source, seen.layer)
        measures = [scorer.measure(*about, "spearman", np.stack(ranks), ratio)]
        return measures + scorer.tree_measures(*about, trees)


DISTANCES = TreeDistances(
    name="distance",
    label="distances",
    style=3,
    metrics=(
        Metric(
            "f1",
            (*TRAINED, *BRANCHING),
            "F1 distance",
            "unlabelled F1 of the trees that split each span between the neighbours of the largest predicted distance.",
        ),
        Metric(
            "spearman",
            TRAINED,
            "DSpr",
            "distance Spearman: rank correlation of predicted and true distances of words in the tree, a mean over words and then sentences (Hewitt & Manning 2019).",
            without_probe=False,
        ),
    ),
)
