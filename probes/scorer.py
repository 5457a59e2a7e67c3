"""Scorer: fits probes on features of the training sentences and scores them on the test sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes import controls
from probes.dataset import Dataset
from probes.decoding import Reference, branching, minimum_risk
from probes.depths import depth_classes, depth_trees, fit_depths
from probes.distances import DistanceProbe, distance_correlations, distance_trees
from probes.errors import ProbeError
from probes.intervals import Measure, bootstrap, pearson, r_squared, ratio, spearman, squares
from probes.masked_words import MaskedWords
from probes.spans import KINDS, description_length, entropy_bits, fit_spans, predict_spans
from probes.word_posteriors import fit_words
from surgery.errors import OptionError
from surgery.progress import Progress

_NOTHING = 0.01  # a spread of marginals below which there is nothing to explain
_KEPT = 0.9  # share of the training sentences that a seed sees


@dataclass(frozen=True)
class Settings:
    """What all parts of an experiment share."""

    seeds: int
    seed: int
    device: str | None
    cache: Path | None
    progress: Progress
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise OptionError(f"--seeds must be 1 or more, not {self.seeds}")


class Scorer:
    """Fits probes on features of the training sentences and scores them on the test sentences.

    Raises ProbeError for test sentences that no probe could be told apart on.
    """

    def __init__(self, dataset: Dataset, settings: Settings) -> None:
        self.dataset, self.settings = dataset, settings
        self.references = [Reference.of(dataset.trees[i], punctuation=dataset.exact) for i in dataset.test]
        self.rows = dataset.span_rows(dataset.test)
        self.owners = dataset.owners(dataset.test)
        self.wanted = dataset.targets[self.rows]
        exact = minimum_risk(dataset.full(dataset.test, self.wanted[:, 0]))
        self.ceiling = self.f1s(exact)
        if self.wanted[:, 0].std() < _NOTHING or not self.ceiling[:, 0].any():
            raise ProbeError(
                "no span of the test sentences (punctuation aside) is likelier than others, so there is nothing to find: give more or longer sentences, or trees that aren't flat"
            )

    def train_for(self, seed: int) -> np.ndarray:
        """The training sentences that one seed sees."""
        train = self.dataset.train
        random = np.random.default_rng([self.settings.seed, seed])
        return np.sort(random.choice(train, max(2, round(_KEPT * len(train))), replace=False))

    def f1s(self, trees: Sequence[np.ndarray]) -> np.ndarray:
        """For each test sentence, F1 and whether it counts."""
        found = [reference.f1(spans) for reference, spans in zip(self.references, trees, strict=True)]
        return np.array([[0.0, 0.0] if f1 is None else [f1, 1.0] for f1 in found])

    def tree_measures(
        self, probe: str, source: str, layer: int | None, trees: Sequence[Sequence[np.ndarray]]
    ) -> list[Measure]:
        """F1, and its share of the ceiling, of the trees that each seed gives."""
        f1s = np.stack([self.f1s(some) for some in trees])
        ceiling = np.broadcast_to(self.ceiling[None, :, :1], (*f1s.shape[:2], 1))
        share = np.concatenate([f1s[..., :1], ceiling], 2)
        return [
            self.measure(probe, source, layer, "f1", f1s, ratio),
            self.measure(probe, source, layer, "f1 share", share, ratio),
        ]

    def measure(
        self,
        probe: str,
        source: str,
        layer: int | None,
        metric: str,
        stats: np.ndarray,
        statistic: Callable[[np.ndarray], np.ndarray],
        group: str = "",
    ) -> Measure:
        """A measure with its bootstrap interval."""
        return Measure(probe, source, layer, metric, group, *bootstrap(stats, statistic, self.settings.seed))

    def marginal_measures(
        self, probe: str, source: str, layer: int | None, predicted: Sequence[np.ndarray]
    ) -> list[Measure]:
        """R^2, Pearson, Spearman of any label: all spans, and by length; R^2 of each label."""
        dataset, count = self.dataset, len(self.dataset.test)
        about = (probe, source, layer)
        lengths = np.minimum(dataset.span_lengths(dataset.test), 10)
        found = []
        groups = [
            ("", np.ones(len(lengths), bool)),
            *((str(n) if n < 10 else "10+", lengths == n) for n in np.unique(lengths)),
        ]
        for group, some in groups:
            stats = np.stack([squares(p[some, 0], self.wanted[some, 0], self.owners[some], count) for p in predicted])
            if self.wanted[some, 0].std() < _NOTHING:
                continue
            found.append(self.measure(*about, "r2", stats, r_squared, group))
            found.append(self.measure(*about, "pearson", stats, pearson, group))
            ranks = tuple(spearman(p[some, 0], self.wanted[some, 0]) for p in predicted)
            found.append(Measure(*about, "spearman", group, float(np.mean(ranks)), None, None, ranks))
        for column, label in enumerate(dataset.labels, 1):
            if self.wanted[:, column].std() > _NOTHING:
                stats = np.stack([squares(p[:, column], self.wanted[:, column], self.owners, count) for p in predicted])
                found.append(self.measure(*about, "r2", stats, r_squared, label))
        return found

    def spans(self, source: str, layer: int | None, features: np.ndarray) -> list[Measure]:
        """Span probes of both kinds, their trees, their control task, and the description length."""
        dataset, found = self.dataset, list[Measure]()
        for kind in KINDS:
            probe, predicted, control = f"span-{kind}", list[np.ndarray](), list[np.ndarray]()
            for seed in range(self.settings.seeds):
                train = self.train_for(seed)
                fitted = fit_spans(kind, features, dataset, train, dataset.targets, seed)
                predicted.append(predict_spans(fitted, features, dataset, dataset.test))
                if source == "model":
                    task = controls.control_spans(dataset, seed)
                    fitted = fit_spans(kind, features, dataset, train, task, seed)
                    values = predict_spans(fitted, features, dataset, dataset.test)
                    control.append(squares(values[:, 0], task[self.rows, 0], self.owners, len(dataset.test)))
            found += self.marginal_measures(probe, source, layer, predicted)
            trees = [minimum_risk(dataset.full(dataset.test, p[:, 0])) for p in predicted]
            found += self.tree_measures(probe, source, layer, trees)
            if control:
                real = next(m for m in found if (m.probe, m.metric, m.group) == (probe, "r2", ""))
                found += self.selectivity(real, "control r2", np.stack(control), r_squared)
        bits = description_length(features, dataset, dataset.targets, self.settings.seed)
        found.append(Measure("span-two-layer", source, layer, "bits", "", bits, None, None, (bits,)))
        return found

    def selectivity(
        self, real: Measure, metric: str, stats: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
    ) -> list[Measure]:
        """The control task's number, and by how much the real task's is higher; none for a task that never changes."""
        control = self.measure(real.probe, real.source, real.layer, metric, stats, statistic)
        if not np.isfinite(control.value):
            return []
        each = tuple(a - b for a, b in zip(real.seeds, control.seeds, strict=True))
        low = None if real.low is None or control.high is None else real.low - control.high
        high = None if real.high is None or control.low is None else real.high - control.low
        about = (real.probe, real.source, real.layer)
        return [control, Measure(*about, "selectivity", "", real.value - control.value, low, high, each)]

    def trees(self, source: str, layer: int | None, features: np.ndarray) -> list[Measure]:
        """Relative depths with their control task, distances, and the trees of both."""
        dataset, test = self.dataset, self.dataset.test
        wanted = depth_classes(dataset, test)
        owners = np.repeat(np.arange(len(test)), dataset.lengths[test] - 1)

        def hits(classes: np.ndarray, right: np.ndarray) -> np.ndarray:
            sums = [np.bincount(owners, values, len(test)) for values in (classes == right, np.ones(len(right)))]
            return np.stack(sums, 1)

        real, control, depths, ranks, apart = [], [], [], [], []
        for seed in range(self.settings.seeds):
            train = self.train_for(seed)
            probe = fit_depths(features, dataset, train, depth_classes(dataset, train), seed)
            classes, some = depth_trees(probe, features, dataset, test)
            real.append(hits(classes, wanted))
            depths.append(some)
            if source == "model":
                task = controls.control_depths(dataset, train, seed)
                probe = fit_depths(features, dataset, train, task, seed)
                classes, _ = depth_trees(probe, features, dataset, test)
                control.append(hits(classes, controls.control_depths(dataset, test, seed)))
            far = DistanceProbe.fit(features, dataset, train, seed=seed).predict(features, dataset, test)
            correlations = distance_correlations(dataset, test, far)
            ranks.append(np.stack([correlations, np.ones(len(test))], 1))
            apart.append(distance_trees(far))
        accuracy = self.measure("depth", source, layer, "accuracy", np.stack(real), ratio)
        found = [accuracy, *self.tree_measures("depth", source, layer, depths)]
        if control:
            found += self.selectivity(accuracy, "control accuracy", np.stack(control), ratio)
        found.append(self.measure("distance", source, layer, "spearman", np.stack(ranks), ratio))
        return found + self.tree_measures("distance", source, layer, apart)

    def words(self, source: str, layer: int | None, features: np.ndarray, words: MaskedWords) -> list[Measure]:
        """Divergence of a probe's masked-word posterior from the exact one."""
        stats, test = [], words.rows(self.dataset.test)
        for seed in range(self.settings.seeds):
            kl = fit_words(features, words, words.rows(self.train_for(seed)), test, seed)
            stats.append(self.per_sentence(words.sentence[test], kl))
        return [self.measure("words", source, layer, "kl", np.stack(stats), ratio)]

    def per_sentence(self, sentence: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums and counts of values for each test sentence."""
        owner = np.searchsorted(self.dataset.test, sentence)
        count = len(self.dataset.test)
        return np.stack([np.bincount(owner, values, count), np.bincount(owner, minlength=count).astype(float)], 1)

    def without_model(self) -> list[Measure]:
        """Trees that nothing was trained for, the ceiling, and what length alone says of marginals."""
        dataset, count = self.dataset, self.settings.seeds
        random = [np.random.default_rng([self.settings.seed, seed]) for seed in range(count)]
        lengths = dataset.lengths[dataset.test].tolist()
        found = self.tree_measures(
            "none", "ceiling", None, [minimum_risk(dataset.full(dataset.test, self.wanted[:, 0]))]
        )
        for kind in ("left", "right", "random"):
            each = random if kind == "random" else random[:1]
            found += self.tree_measures("none", kind, None, [[branching(n, kind, r) for n in lengths] for r in each])
        found += self.marginal_measures("none", "length", None, [controls.length_only(dataset)])
        bits = entropy_bits(dataset.targets[dataset.span_rows(dataset.train), 0].astype(np.float64))
        return [*found, Measure("none", "ceiling", None, "bits", "", bits, None, None, (bits,))]
