"""Tree probes: relative depth of the lowest common ancestor, and distances in the tree."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from probes.decoding import lca_depths, split_at_gaps, tree_distances
from probes.linear import PairClassifier, Scale
from probes.material import Material

_MOST_STEP = 5  # differences of depth beyond this are one class
# With a quarter of the epochs, what later layers hold in mixed directions is hardly found: layer 0 then looks too good beside them.
_RANK, _EPOCHS, _RATE = 32, 40, 3e-2


def depth_classes(material: Material, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " gaps"]:
    """Depth of the lowest common ancestor of each two neighbouring words, relative to the two before.

    The first of a sentence is absolute (Vilares et al. 2020, section 3; Arps et al. 2022, section 3.2).
    """
    found = [np.diff(lca_depths(material.trees[i]), prepend=0) for i in numbers]
    return np.clip(np.concatenate(found), -_MOST_STEP, _MOST_STEP)


def gap_rows(material: Material, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " gaps"]:
    """Rows of the words before each gap."""
    return np.concatenate([np.arange(material.bounds[i], material.bounds[i + 1] - 1) for i in numbers])


def fit_depths(
    features: np.ndarray,
    material: Material,
    numbers: Int64[np.ndarray, " train"],
    classes: Int64[np.ndarray, " gaps"],
    seed: int,
) -> PairClassifier:
    """A linear classifier of relative depths from the two words' states; `classes` as `depth_classes` of the numbers."""
    return PairClassifier.fit(features, gap_rows(material, numbers), classes, seed=seed)


def depth_trees(
    probe: PairClassifier, features: np.ndarray, material: Material, numbers: Int64[np.ndarray, " test"]
) -> tuple[Int64[np.ndarray, " gaps"], list[Int64[np.ndarray, "_ 2"]]]:
    """Predicted classes, and the trees that they spell: each span splits where the ancestor is highest."""
    classes = probe(features, gap_rows(material, numbers))
    parts = np.split(classes, np.cumsum(material.lengths[numbers] - 1)[:-1])
    return classes, [split_at_gaps(-np.cumsum(part).astype(np.float64)) for part in parts]


@dataclass(frozen=True, eq=False)
class DistanceProbe:
    """||B (h_i - h_j)||^2 is the distance of words i and j in the tree (Hewitt & Manning 2019, section 2.2)."""

    scale: Scale
    projection: Tensor

    @classmethod
    def fit(
        cls, features: np.ndarray, material: Material, numbers: Int64[np.ndarray, " train"], *, seed: int
    ) -> "DistanceProbe":
        """Least absolute error, each sentence's divided by the square of its length, as there."""
        scale, random = Scale.fit(features, material.word_rows(numbers)), np.random.default_rng(seed)
        distances, weights = _wanted(material, numbers)
        generator = torch.Generator().manual_seed(seed)
        width = features.shape[1]
        projection = torch.randn(width, min(_RANK, width), generator=generator) / width
        projection.requires_grad_(True)
        optimizer = torch.optim.Adam([projection], lr=_RATE, fused=True)
        epochs = [material.batches(numbers, random) for _ in range(_EPOCHS)]
        steps = sum(map(len, epochs))
        for step, batch in enumerate(batch for epoch in epochs for batch in epoch):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - step / steps)
            found = _distances(projection, scale, features, material, numbers[batch])
            wanted = torch.from_numpy(np.concatenate([distances[i] for i in batch]))
            share = torch.from_numpy(np.concatenate([weights[i] for i in batch]))
            loss = ((found - wanted).abs() * share).sum() / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(scale, projection.detach())

    def predict(
        self, features: np.ndarray, material: Material, numbers: Int64[np.ndarray, " test"]
    ) -> list[Float64[np.ndarray, "_ _"]]:
        """Distances of all words of some sentences."""
        found = []
        for batch in material.batches(numbers):
            some = numbers[batch]
            values = _distances(self.projection, self.scale, features, material, some).numpy().astype(np.float64)
            first = 0
            for n in material.lengths[some].tolist():
                table, pairs = np.zeros((n, n)), n * (n - 1) // 2
                table[np.triu_indices(n, 1)] = values[first : first + pairs]
                found.append(table + table.T)
                first += pairs
        return found


def distance_trees(distances: list[Float64[np.ndarray, "_ _"]]) -> list[Int64[np.ndarray, "_ 2"]]:
    """Each span splits between the two neighbours that are farthest apart (as Shen et al. 2018's syntactic distances).

    Even true distances lose something that way: F1 .95 on the example grammar's own trees, .69 on NLTK's treebank's
    (30 words or fewer), where binarised true trees have .85.
    """
    return [split_at_gaps(np.diagonal(table, 1)) for table in distances]


def _wanted(
    material: Material, numbers: Int64[np.ndarray, " some"]
) -> tuple[list[Float32[np.ndarray, " _"]], list[Float32[np.ndarray, " _"]]]:
    """Distances of each two words of each sentence, and what each counts for."""
    tables = [tree_distances(material.trees[i]) for i in numbers]
    distances = [table[np.triu_indices(len(table), 1)].astype(np.float32) for table in tables]
    return distances, [np.full(len(d), 2 / len(t) ** 2, np.float32) for d, t in zip(distances, tables, strict=True)]


def distance_correlations(
    material: Material, numbers: Int64[np.ndarray, " test"], distances: list[np.ndarray]
) -> np.ndarray:
    """Spearman's correlation of predicted and true distances, a number a sentence, mean over its words (DSpr.)."""
    from scipy.stats import rankdata

    found = []
    for i, table in zip(numbers, distances, strict=True):
        n = len(table)
        others = ~np.eye(n, dtype=bool)
        ranks = [
            rankdata(rows[others].reshape(n, n - 1), axis=1) for rows in (tree_distances(material.trees[i]), table)
        ]
        a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
        size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
        found.append(float(np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1), 0.0).mean()))
    return np.array(found)


def _distances(
    projection: Tensor, scale: Scale, features: np.ndarray, material: Material, numbers: Int64[np.ndarray, " some"]
) -> Tensor:
    """Distances of each two words of each sentence, in turn."""
    rows, left, right = material.flat(numbers, every=True)
    states = torch.from_numpy(scale(features[rows])) @ projection
    apart = states.index_select(0, torch.from_numpy(left)) - states.index_select(0, torch.from_numpy(right))
    return apart.square().sum(1)
