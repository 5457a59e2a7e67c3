"""Failure of texts, and of rules and tuples of rules, with bootstrap intervals over texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from probes.emergence.divergences import Divergences
from probes.intervals import resampled_counts

_COLUMNS = 500  # of resampled sums at once


@dataclass(frozen=True)
class Rate:
    """A mean over texts with its 95% bootstrap interval over texts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """What a model does in the texts whose trees use a rule, or all rules of a tuple.

    Attributes:
        rules: one name, or those of a pair or tuple.
        texts: number of texts that hold them.
        uses: of a rule, in all texts; of a tuple, the same as `texts`.
        failure: mean failure of those texts: share of masks whose total variation is above the threshold; competence is
            1 - failure.
        soft: mean total variation instead. `excess`: mean excess loss of a mask, in nats.
    """

    rules: tuple[str, ...]
    texts: int
    uses: int
    failure: Rate
    soft: Rate
    excess: Rate


@dataclass(frozen=True, eq=False)
class TextFailures:
    """A model on each of N texts.

    Attributes:
        hard: share of a text's masks whose total variation is above the threshold. `soft`: their mean total variation.
        excess: mean excess loss of its masks, in nats.
        masks: number of its masks.
    """

    hard: Float64[np.ndarray, " N"]
    soft: Float64[np.ndarray, " N"]
    excess: Float64[np.ndarray, " N"]
    masks: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, found: Divergences, model: int, threshold: float) -> "TextFailures":
        """Failures of a model, by its number in `found`."""
        masks = np.bincount(found.sentence)
        values = (found.variation[model] > threshold, found.variation[model], found.kl[model])
        hard, soft, excess = (np.bincount(found.sentence, value) / masks for value in values)
        return cls(hard, soft, excess, masks)

    @property
    def columns(self) -> Float64[np.ndarray, "N 3"]:
        """Hard, soft and excess."""
        return np.stack([self.hard, self.soft, self.excess], 1)


def score(
    names: Sequence[tuple[str, ...]], presence: Any, uses: Int64[np.ndarray, " R"], failures: TextFailures, seed: int
) -> tuple[Score, ...]:
    """Scores of rules or tuples.

    Args:
        presence: which text holds which, sparse [texts, R] (CSC).
    """
    texts, rates = np.diff(presence.indptr), mean_rates(presence, failures.columns, seed)
    return tuple(
        Score(name, int(count), int(used), *(Rate(*found) for found in rates[:, :, i].T.tolist()))
        for i, (name, count, used) in enumerate(zip(names, texts, uses, strict=True))
    )


def mean_rates(weights: Any, values: Float64[np.ndarray, "N C"], seed: int) -> Float64[np.ndarray, "3 C R"]:
    """Means of each column of values by each column of weights (sparse or dense, [N, R]): value and both ends of the interval."""
    draws = resampled_counts(len(values), seed).T  # [N, resamples]
    found = np.zeros((3, values.shape[1], weights.shape[1]))
    for first in range(0, weights.shape[1], _COLUMNS):
        rows = slice(first, first + _COLUMNS)
        some = weights[:, rows].T
        with np.errstate(invalid="ignore", divide="ignore"):
            total, drawn_total = np.asarray(some.sum(1)).ravel(), some @ draws
            for column, value in enumerate(values.T):
                drawn = (some @ (draws * value[:, None])) / drawn_total
                found[0, column, rows] = (some @ value) / total
                found[1:, column, rows] = np.nanpercentile(drawn, [2.5, 97.5], axis=1)
    return found


def mean_rate(values: Float64[np.ndarray, " N"], seed: int, weights: Float64[np.ndarray, " N"] | None = None) -> Rate:
    """The weighted mean of values over texts."""
    column = np.ones((len(values), 1)) if weights is None else weights[:, None]
    return Rate(*mean_rates(column, values[:, None], seed)[:, 0, 0].tolist())
