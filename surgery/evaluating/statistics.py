"""Means over items that come in clusters, with intervals by bootstrap; missing values count as nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 4000
LEVEL = 0.95
_Z = 1.959964
_POWER_Z = _Z + 0.841621  # of a difference that is found four times in five at a level of .05


@dataclass(frozen=True)
class Score:
    """Mean of a metric.

    Attributes:
        value: None where all is missing.
        standard_error, low, high: over clusters; None where there is one cluster only.
        items, missing, clusters: how many.
    """

    value: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    items: int
    missing: int
    clusters: int


def score(values: Sequence[float | None], clusters: Sequence[str], seed: int = 0) -> Score:
    """Mean of values with its standard error and 95% interval, clusters drawn with replacement.

    Where all values are 0, or all are 1, no bootstrap tells how far off the mean may be: then the interval is Wilson's
    for as many draws as there are clusters.
    """
    kept = [(value, cluster) for value, cluster in zip(values, clusters, strict=True) if value is not None]
    missing = len(values) - len(kept)
    if not kept:
        return Score(None, None, None, None, len(values), missing, 0)
    found = np.array([value for value, _ in kept], float)
    names = [cluster for _, cluster in kept]
    count = len(set(names))
    mean = float(found.mean())
    if count < 2:
        return Score(mean, None, None, None, len(values), missing, count)
    means = resampled(found, names, seed)
    low, high = (float(bound) for bound in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if np.all(found == found[0]) and found[0] in (0.0, 1.0):
        low, high = wilson(int(found[0]) * count, count)
    return Score(mean, float(means.std(ddof=1)), low, high, len(values), missing, count)


def resampled(values: np.ndarray, clusters: Sequence[str], seed: int = 0) -> np.ndarray:
    """Means of `DRAWS` bootstrap samples of clusters, [draws]."""
    _, number = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = np.bincount(number, values), np.bincount(number)
    random = np.random.default_rng(seed)
    picked = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    return (picked @ sums) / (picked @ sizes)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson 1927)."""
    share, square = successes / trials, _Z**2
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, middle - spread), min(1.0, middle + spread)


@dataclass(frozen=True)
class Difference:
    """Paired difference of a metric between two evaluations on the same items.

    Attributes:
        score: of the differences item by item; those that are missing on either side are left out.
        gained, lost: items that are right on one side only, for metrics that are yes or no; None for others.
        p_value: of McNemar's exact test; None for metrics that aren't yes or no.
        detectable: the smallest true difference that so many items find four times in five, at a level of .05.
    """

    score: Score
    gained: int | None
    lost: int | None
    p_value: float | None
    detectable: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        low, high = self.score.low, self.score.high
        return low is not None and high is not None and (low > 0 or high < 0)


def difference(
    after: Sequence[float | None], before: Sequence[float | None], clusters: Sequence[str], seed: int = 0
) -> Difference:
    """`after` - `before`, item by item, with a bootstrap over clusters, and McNemar's test where all values are 0 or 1."""
    pairs = list(zip(after, before, strict=True))
    changes = [None if one is None or other is None else one - other for one, other in pairs]
    found = score(changes, clusters, seed)
    if all(change == 0 for change in changes if change is not None) and found.value is not None and found.clusters > 1:
        found = Score(0.0, 0.0, 0.0, 0.0, found.items, found.missing, found.clusters)
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    spread = None if found.standard_error is None else _POWER_Z * found.standard_error
    if not both or any(value not in (0, 1) for pair in both for value in pair):
        return Difference(found, None, None, None, spread)
    gained = sum(one > other for one, other in both)
    lost = sum(one < other for one, other in both)
    return Difference(found, gained, lost, mcnemar(gained, lost), spread)


def mcnemar(gained: int, lost: int) -> float:
    """P-value of McNemar's exact test: of so uneven a split, were both ways as likely."""
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    return min(1.0, 2 * tail)
