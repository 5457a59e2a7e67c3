"""Relative depth of the lowest common ancestor of neighbouring words (Vilares et al. 2020), and the tree that depths spell."""

import numpy as np
from jaxtyping import Int64

from probes.dataset import Dataset
from probes.decoding import lca_depths, split_at_gaps
from probes.linear import PairClassifier

_MOST_STEP = 5  # differences of depth beyond this are one class


def depth_classes(dataset: Dataset, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " gaps"]:
    """Depth of the lowest common ancestor of each two neighbouring words, relative to the two before.

    The first of a sentence is absolute (Vilares et al. 2020, section 3; Arps et al. 2022, section 3.2).
    """
    found = [np.diff(lca_depths(dataset.trees[i]), prepend=0) for i in numbers]
    return np.clip(np.concatenate(found), -_MOST_STEP, _MOST_STEP)


def gap_rows(dataset: Dataset, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " gaps"]:
    """Rows of the words before each gap."""
    return np.concatenate([np.arange(dataset.bounds[i], dataset.bounds[i + 1] - 1) for i in numbers])


def fit_depths(
    features: np.ndarray,
    dataset: Dataset,
    numbers: Int64[np.ndarray, " train"],
    classes: Int64[np.ndarray, " gaps"],
    seed: int,
) -> PairClassifier:
    """A linear classifier of relative depths from the two words' states; `classes` as `depth_classes` of the numbers."""
    return PairClassifier.fit(features, gap_rows(dataset, numbers), classes, seed=seed)


def depth_trees(
    probe: PairClassifier, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " test"]
) -> tuple[Int64[np.ndarray, " gaps"], list[Int64[np.ndarray, "_ 2"]]]:
    """Predicted classes, and the trees that they spell: each span splits where the ancestor is highest."""
    classes = probe(features, gap_rows(dataset, numbers))
    parts = np.split(classes, np.cumsum(dataset.lengths[numbers] - 1)[:-1])
    return classes, [split_at_gaps(-np.cumsum(part).astype(np.float64)) for part in parts]
