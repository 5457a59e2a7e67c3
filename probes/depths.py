"""Relative depth of the lowest common ancestor of neighbouring words (Vilares et al. 2020), and the trees built from them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from probes.controls import CLASSES, word_classes
from probes.dataset import Dataset
from probes.decoding import lca_depths, split_at_gaps
from probes.intervals import Measure, ratio
from probes.linear import PairClassifier
from probes.probe import BRANCHING, TRAINED, Features, Metric, Probe
from probes.scorer import Scorer

_MOST_STEP = 5  # differences of depth beyond this are one class


def depth_classes(dataset: Dataset, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " gaps"]:
    """Depth of the lowest common ancestor of two neighbouring words, less that of the pair before, clipped to -5..5.

    A sentence's first pair has its own depth (Vilares et al. 2020, section 3; Arps et al. 2022, section 3.2).
    """
    steps = [np.diff(lca_depths(dataset.trees[i]), prepend=0) for i in numbers]
    return np.clip(np.concatenate(steps), -_MOST_STEP, _MOST_STEP)


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
    """Fit a linear classifier of relative depths to the two words' states; `classes` as `depth_classes(dataset, numbers)`."""
    return PairClassifier.fit(features, gap_rows(dataset, numbers), classes, seed=seed)


def depth_trees(
    probe: PairClassifier, features: np.ndarray, dataset: Dataset, numbers: Int64[np.ndarray, " test"]
) -> tuple[Int64[np.ndarray, " gaps"], list[Int64[np.ndarray, "_ 2"]]]:
    """Predict classes, and build the trees that split each span where the common ancestor is highest."""
    classes = probe(features, gap_rows(dataset, numbers))
    parts = np.split(classes, np.cumsum(dataset.lengths[numbers] - 1)[:-1])
    return classes, [split_at_gaps(-np.cumsum(part).astype(np.float64)) for part in parts]


def control_depths(dataset: Dataset, numbers: Int64[np.ndarray, " some"], seed: int) -> Int64[np.ndarray, " gaps"]:
    """Control task for depths: each pair of word classes gets a class drawn from the real ones."""
    classes, rows = word_classes(dataset, seed), gap_rows(dataset, numbers)
    table = np.random.default_rng(seed).choice(depth_classes(dataset, dataset.train), (CLASSES, CLASSES))
    return table[classes[rows], classes[rows + 1]]


@dataclass(frozen=True)
class DepthProbe(Probe):
    """Linear classifier of relative depths, and the trees built from its predictions."""

    def measure(self, scorer: Scorer, seen: Features) -> list[Measure]:
        """Measure accuracy, F1 of trees and the control task."""
        assert seen.words is not None
        dataset, test, features = scorer.dataset, scorer.dataset.test, seen.words
        wanted, owners = depth_classes(dataset, test), np.repeat(np.arange(len(test)), dataset.lengths[test] - 1)

        def hits(classes: np.ndarray, right: np.ndarray) -> np.ndarray:
            sums = [np.bincount(owners, values, len(test)) for values in (classes == right, np.ones(len(right)))]
            return np.stack(sums, 1)

        real, control, trees = [], [], []
        for seed in range(scorer.settings.seeds):
            train = scorer.train_for(seed)
            probe = fit_depths(features, dataset, train, depth_classes(dataset, train), seed)
            classes, some = depth_trees(probe, features, dataset, test)
            real.append(hits(classes, wanted))
            trees.append(some)
            if seen.source == "model":
                probe = fit_depths(features, dataset, train, control_depths(dataset, train, seed), seed)
                classes, _ = depth_trees(probe, features, dataset, test)
                control.append(hits(classes, control_depths(dataset, test, seed)))
        about = (self.name, seen.source, seen.layer)
        accuracy = scorer.measure(*about, "accuracy", np.stack(real), ratio)
        measures = [accuracy, *scorer.tree_measures(*about, trees)]
        if control:
            measures += scorer.selectivity(accuracy, "control accuracy", np.stack(control), ratio)
        return measures


DEPTHS = DepthProbe(
    name="depth",
    label="LCA depth",
    style=2,
    metrics=(
        Metric(
            "f1",
            (*TRAINED, *BRANCHING),
            "F1 depth",
            "unlabelled F1 of the trees built from predicted depths of lowest common ancestors: each span splits where the ancestor is highest.",
        ),
        Metric("accuracy", (*TRAINED, "control task")),
    ),
)
