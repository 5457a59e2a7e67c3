"""Numbers with their spread: over seeds, and by bootstrap over sentences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64

RESAMPLES = 1000
Stats = Float64[np.ndarray, "seeds sentences sums"]


@dataclass(frozen=True)
class Measure:
    """One number of a report.

    Attributes:
        probe: what was trained: `span-linear`, `span-two-layer`, `depth`, `distance`, `words`, or `none`.
        source: what it saw: `model`, `untrained`, `word identity`, `position`, `length`, or, for trees that nothing was
            trained for, `ceiling`, `left`, `right`, `random`.
        layer: of the model; None for what has none.
        metric: `r2`, `f1`, `kl` and so on; `control r2` and `control accuracy` are of the control task.
        group: a span length, a label; empty for all.
        value: mean over seeds; `low` and `high`: 95% interval over sentences; None where it wasn't worked out.
        seeds: the value of each seed.
    """

    probe: str
    source: str
    layer: int | None
    metric: str
    group: str
    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def bootstrap(
    stats: Stats, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> tuple[float, float, float, tuple[float, ...]]:
    """Average a statistic over seeds; return the mean, its 95% bootstrap interval over sentences, and each seed's value.

    Args:
        stats: what each sentence adds to each sum; each resample draws the same sentences for all seeds.
        statistic: from sums on the last axis to values.
    """
    count = stats.shape[1]
    values = statistic(stats.sum(1))
    sums = resampled_counts(count, seed) @ stats.transpose(1, 0, 2).reshape(count, -1)
    means = statistic(sums.reshape(RESAMPLES, stats.shape[0], stats.shape[2])).mean(1)
    means = means[np.isfinite(means)]
    low, high = np.percentile(means, [2.5, 97.5]) if len(means) else (values.mean(), values.mean())
    return float(values.mean()), float(low), float(high), tuple(values.tolist())


@lru_cache(4)
def resampled_counts(count: int, seed: int) -> Float64[np.ndarray, "resamples sentences"]:
    """How often each sentence is drawn in each resample."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Divide the first sum by the second: a mean, where the second sum counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def r_squared(sums: np.ndarray) -> np.ndarray:
    """1 - squared errors / squared differences from the mean, NaN where nothing differs; sums as `squares` gives them."""
    count, _, y, _, yy, _, errors = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = yy - y * y / count
        return np.where(spread > 1e-6 * count, 1 - errors / spread, np.nan)


def pearson(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation; 0 for a prediction that never changes."""
    count, x, y, xx, yy, xy, _ = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.maximum(xx - x * x / count, 0) * np.maximum(yy - y * y / count, 0)
        return np.where(size > 1e-12 * count * count, (xy - x * y / count) / np.sqrt(size), 0.0)


def squares(
    predicted: np.ndarray, wanted: np.ndarray, owners: np.ndarray, sentences: int
) -> Float64[np.ndarray, "sentences sums"]:
    """For each sentence: count, sums of predicted, wanted, their squares and product, and of squared errors."""
    x, y = predicted.astype(np.float64), wanted.astype(np.float64)
    columns: Sequence[np.ndarray] = (np.ones(len(x)), x, y, x * x, y * y, x * y, (x - y) ** 2)
    return np.stack([np.bincount(owners, column, sentences) for column in columns], 1)


def spearman(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one of the two never changes."""
    from scipy.stats import rankdata

    if np.ptp(predicted) == 0 or np.ptp(wanted) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(predicted), rankdata(wanted))[0, 1])


def entropy_bits(targets: Float64[np.ndarray, " spans"]) -> float:
    """Mean binary entropy of the marginals, in bits a span: no code can be shorter."""
    p = np.clip(targets, 1e-12, 1 - 1e-12)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean())
