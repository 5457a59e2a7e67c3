"""Scorer: what probes are scored by on the test sentences, with intervals, ceilings and control tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes import controls
from probes.dataset import Dataset
from probes.decoding import Reference, branching, minimum_risk
from probes.errors import ProbeError, ProbeOptionError
from probes.intervals import Measure, bootstrap, entropy_bits, pearson, r_squared, ratio, spearman, squares
from surgery.progress import Progress

_NOTHING = 0.01  # a spread of marginals below which there is nothing to explain
_KEPT = 0.9  # share of the training sentences that a seed sees


@dataclass(frozen=True)
class Settings:
    """Settings that all parts of an experiment share."""

    seeds: int
    seed: int
    device: str | None
    cache: Path | None
    progress: Progress
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ProbeOptionError(f"`seeds` must be 1 or more, not {self.seeds}")
        if self.seed < 0:
            raise ProbeOptionError(f"`seed` must be 0 or more, not {self.seed}")


class Scorer:
    """Scores what probes predict for the test sentences.

    Raises ProbeError for test sentences in which no span is likelier than others.
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
        """Draw the nine tenths of the training sentences that one seed sees."""
        train = self.dataset.train
        random = np.random.default_rng([self.settings.seed, seed])
        return np.sort(random.choice(train, max(2, round(_KEPT * len(train))), replace=False))

    def f1s(self, trees: Sequence[np.ndarray]) -> np.ndarray:
        """Return F1 of each test sentence's tree, and whether it counts."""
        scores = [reference.f1(spans) for reference, spans in zip(self.references, trees, strict=True)]
        return np.array([[0.0, 0.0] if f1 is None else [f1, 1.0] for f1 in scores])

    def tree_measures(
        self, probe: str, source: str, layer: int | None, trees: Sequence[Sequence[np.ndarray]]
    ) -> list[Measure]:
        """Measure F1, and its share of the ceiling's, of the trees that each seed gives."""
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
        """Make a measure with its bootstrap interval."""
        return Measure(probe, source, layer, metric, group, *bootstrap(stats, statistic, self.settings.seed))

    def marginal_measures(
        self, probe: str, source: str, layer: int | None, predicted: Sequence[np.ndarray]
    ) -> list[Measure]:
        """Measure R^2, Pearson and Spearman of any label, for all spans and by length; and R^2 of each label."""
        dataset, count = self.dataset, len(self.dataset.test)
        about = (probe, source, layer)
        lengths = np.minimum(dataset.span_lengths(dataset.test), 10)
        measures = []
        groups = [
            ("", np.ones(len(lengths), bool)),
            *((str(n) if n < 10 else "10+", lengths == n) for n in np.unique(lengths)),
        ]
        for group, some in groups:
            stats = np.stack([squares(p[some, 0], self.wanted[some, 0], self.owners[some], count) for p in predicted])
            if self.wanted[some, 0].std() < _NOTHING:
                continue
            measures.append(self.measure(*about, "r2", stats, r_squared, group))
            measures.append(self.measure(*about, "pearson", stats, pearson, group))
            ranks = tuple(spearman(p[some, 0], self.wanted[some, 0]) for p in predicted)
            measures.append(Measure(*about, "spearman", group, float(np.mean(ranks)), None, None, ranks))
        for column, label in enumerate(dataset.labels, 1):
            if self.wanted[:, column].std() > _NOTHING:
                stats = np.stack([squares(p[:, column], self.wanted[:, column], self.owners, count) for p in predicted])
                measures.append(self.measure(*about, "r2", stats, r_squared, label))
        return measures

    def selectivity(
        self, real: Measure, metric: str, stats: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
    ) -> list[Measure]:
        """Measure the control task, and by how much the real task is above it; nothing for a task that never changes."""
        control = self.measure(real.probe, real.source, real.layer, metric, stats, statistic)
        if not np.isfinite(control.value):
            return []
        each = tuple(a - b for a, b in zip(real.seeds, control.seeds, strict=True))
        low = None if real.low is None or control.high is None else real.low - control.high
        high = None if real.high is None or control.low is None else real.high - control.low
        about = (real.probe, real.source, real.layer)
        return [control, Measure(*about, "selectivity", "", real.value - control.value, low, high, each)]

    def per_sentence(self, sentence: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Add up values by test sentence; return sums and counts."""
        owner = np.searchsorted(self.dataset.test, sentence)
        count = len(self.dataset.test)
        return np.stack([np.bincount(owner, values, count), np.bincount(owner, minlength=count).astype(float)], 1)

    def without_model(self) -> list[Measure]:
        """Measure trees that nothing was trained for, the ceiling, and marginals predicted by span length alone."""
        dataset, count = self.dataset, self.settings.seeds
        random = [np.random.default_rng([self.settings.seed, seed]) for seed in range(count)]
        lengths = dataset.lengths[dataset.test].tolist()
        measures = self.tree_measures(
            "none", "ceiling", None, [minimum_risk(dataset.full(dataset.test, self.wanted[:, 0]))]
        )
        for kind in ("left", "right", "random"):
            each = random if kind == "random" else random[:1]
            measures += self.tree_measures("none", kind, None, [[branching(n, kind, r) for n in lengths] for r in each])
        measures += self.marginal_measures("none", "length", None, [controls.length_only(dataset)])
        bits = entropy_bits(dataset.targets[dataset.span_rows(dataset.train), 0].astype(np.float64))
        return [*measures, Measure("none", "ceiling", None, "bits", "", bits, None, None, (bits,))]
