"""Single rules against pairs over training: is a pair at half the excess as well known as single rules were before?

Corollary 13 of Arora & Goyal (2023) says that of tuples drawn from texts that are read together: k' times less excess loss
makes tuples of k' skills what single skills were. Here it is asked of pairs that stand in one text, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from probes.emergence.graph import SkillGraph
from probes.emergence.scores import Rate, TextFailures
from probes.intervals import resampled_counts

KINDS = {
    "mean": "mean failure, pairs within one text",
    "worst": "mean failure of the worst share alpha, pairs within one text",
    "apart": "mean failure, pairs of rules from two texts, either failing",
}

_SIDES = {"mean": ("singles", "pairs"), "worst": ("worst singles", "worst pairs"), "apart": ("singles", "apart")}


@dataclass(frozen=True)
class Comparison:
    """Pairs at one checkpoint against single rules when the excess loss was twice as large.

    Attributes:
        kind: a key of `KINDS`. `failure`: `hard`, the share of masks above the threshold, or `soft`, total variation.
        name: of the checkpoint of the pairs; `excess`: its excess loss, in nats.
        before: failure of single rules at twice the excess, between the two checkpoints nearest to it.
        pairs: failure of pairs now. `difference`: pairs less single rules before.
    """

    kind: str
    failure: str
    name: str
    excess: Rate
    before: Rate
    pairs: Rate
    difference: Rate

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `not told apart`: whether pairs fail less, by the 95% interval of the difference."""
        if self.difference.low > 0:
            return "worse"
        return "better" if self.difference.high < 0 else "not told apart"


@dataclass(frozen=True, eq=False)
class Combinations:
    """The texts that rules and pairs weigh on.

    Attributes:
        graph: texts and ranked rules.
        pairs: texts and pairs of them.
        first: the texts of one half; sets of the worst are chosen on either half and measured on the other.
    """

    graph: SkillGraph
    pairs: SkillGraph | None
    first: np.ndarray
    alpha: float

    def weights(self, failures: Float64[np.ndarray, " texts"]) -> dict[str, Float64[np.ndarray, " texts"]]:
        """How often each text counts in a mean over single rules, pairs, the worst rules and the worst pairs."""
        drawn = self.graph.drawn.astype(np.float64)
        found = {"singles": drawn, "pairs": drawn * (drawn - 1) / 2}
        found["worst singles"] = self._worst(self.graph, failures)
        found["worst pairs"] = found["pairs"] if self.pairs is None else self._worst(self.pairs, failures)
        return found

    def _worst(self, graph: SkillGraph, failures: Float64[np.ndarray, " texts"]) -> Float64[np.ndarray, " texts"]:
        """Each text's edges to the set that is worst on the other half: noise that chose a set has no part in its mean."""
        counts = np.zeros(graph.texts)
        for half in (self.first, ~self.first):
            own = graph.edges.T @ half.astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = np.where(own > 0, (graph.edges.T @ (failures * half)) / own, 0.0)
            counts += np.where(half, 0.0, graph.edges @ graph.worst_skills(shares, self.alpha))
        return counts


def compare(
    names: Sequence[str], found: Sequence[TextFailures], combined: Combinations, seed: int
) -> tuple[Comparison, ...]:
    """Compare every checkpoint whose double excess lies among those measured, by each of `KINDS`; means over resampled texts."""
    draws = np.concatenate([np.ones((1, combined.graph.texts)), resampled_counts(combined.graph.texts, seed)])
    excess = np.stack([_means(draws, failures.masks * 1.0, failures.excess) for failures in found])
    later = [
        int(number)
        for number in np.argsort(-excess[:, 0], kind="stable")
        if 0 < 2 * excess[number, 0] <= excess[:, 0].max()
    ]
    rows = []
    for failure in ("hard", "soft"):
        curves = _curves(draws, [getattr(failures, failure) for failures in found], combined)
        for number in later:
            for kind, (single, pair) in _SIDES.items():
                before, now = _at(2 * excess[number], excess, curves[single]), curves[pair][number]
                rates = map(_rate, (excess[number], before, now, now - before))
                rows.append(Comparison(kind, failure, names[number], *rates))
    return tuple(rows)


def _curves(
    draws: Float64[np.ndarray, "resamples N"], failures: Sequence[Float64[np.ndarray, " N"]], combined: Combinations
) -> dict[str, Float64[np.ndarray, "models resamples"]]:
    """Mean failures of single rules and pairs, model by model, in each resample."""
    each = [
        {name: _means(draws, weights, failed) for name, weights in combined.weights(failed).items()}
        for failed in failures
    ]
    curves = {name: np.stack([found[name] for found in each]) for name in each[0]}
    return {**curves, "apart": 1 - (1 - curves["singles"]) ** 2}


def tuple_means(
    drawn: Int64[np.ndarray, " N"], failures: Float64[np.ndarray, " N"], seed: int, most: int = 4
) -> tuple[Rate, ...]:
    """Mean failure over all tuples of 1 to `most` rules that stand in one text, each text's as often as it holds some."""
    from scipy.special import comb

    draws = np.concatenate([np.ones((1, len(drawn))), resampled_counts(len(drawn), seed)])
    sizes = [size for size in range(1, most + 1) if (drawn >= size).any()]
    return tuple(_rate(_means(draws, comb(drawn, size), failures)) for size in sizes)


def _means(draws: Any, weights: Float64[np.ndarray, " N"], values: Float64[np.ndarray, " N"]) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (draws @ (weights * values)) / (draws @ weights)


def _at(wanted: np.ndarray, excess: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values at an excess loss in each resample, by lines in its logarithm."""
    found = np.empty(len(wanted))
    for place in range(len(wanted)):
        order = np.argsort(excess[:, place])
        logs = np.log(np.maximum(excess[order, place], 1e-300))
        found[place] = np.interp(np.log(wanted[place]), logs, values[order, place])
    return found


def _rate(values: np.ndarray) -> Rate:
    """The first value, with the spread of the others."""
    return Rate(float(values[0]), *map(float, np.nanpercentile(values[1:], [2.5, 97.5])))
