"""A grammar's binary rules as a branching process: what can be reached, what comes to an end, and how long it gets."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Integer

_ROUNDS, _NEWTON = 1000, 200  # of the fixed point below, then of Newton's method
_MOST_SOLVED, _MOST_EIGEN = 3000, 500  # nonterminals
_EDGE = 1e-9  # a spectral radius above 1 by less is 1


@dataclass(frozen=True, eq=False)
class Branching:
    """Binary rules over symbols of which the first `nonterminals` have rules and the others are preterminals."""

    nonterminals: int
    symbols: int
    parents: Int32[np.ndarray, " R"]
    left: Int32[np.ndarray, " R"]
    right: Int32[np.ndarray, " R"]
    probs: Float64[np.ndarray, " R"]

    def reachable(self, start: Float64[np.ndarray, " S"]) -> Bool[np.ndarray, " S"]:
        """Which symbols some tree holds."""
        seen = start > 0
        while True:
            rules = (self.probs > 0) & seen[self.parents]
            new = seen.copy()
            new[self.left[rules]] = new[self.right[rules]] = True
            if (new == seen).all():
                return seen
            seen = new

    def generating(self) -> Bool[np.ndarray, " S"]:
        """Which symbols derive a sentence at all."""
        done = np.arange(self.symbols) >= self.nonterminals
        while True:
            rules = (self.probs > 0) & done[self.left] & done[self.right]
            new = done.copy()
            new[self.parents[rules]] = True
            if (new == done).all():
                return done
            done = new

    def ending(self) -> Float64[np.ndarray, " S"]:
        """The probability that what a symbol derives comes to an end: the least solution of q_A = sum p q_B q_C."""
        generating = self.generating()
        kept = np.flatnonzero(generating[: self.nonterminals])
        if not len(kept) or self._surely_end(generating):
            return generating.astype(np.float64)
        ends = (np.arange(self.symbols) >= self.nonterminals).astype(np.float64)
        for _ in range(_ROUNDS):
            ends, before = self._round(ends), ends
            if (ends - before <= 4e-16 * ends).all():
                break
        # Rounds may rise by less than rounding long before the end. Newton's method rises from below too (Etessami &
        # Yannakakis 2009): to the last bit in a few steps, or by half of the rest each where trees only just end.
        for _ in range(_NEWTON if len(kept) <= _MOST_SOLVED else 0):
            slopes = np.eye(len(kept)) - self._slopes(ends, kept)
            try:
                step = np.linalg.solve(slopes, (self._round(ends) - ends)[kept])
            except np.linalg.LinAlgError:
                break
            before = ends.copy()
            ends[kept] = np.clip(ends[kept] + np.maximum(step, 0.0), 0.0, 1.0)
            if (ends - before <= 4e-16 * ends).all():
                break
        return ends

    def _round(self, ends: Float64[np.ndarray, " S"]) -> Float64[np.ndarray, " S"]:
        """The probability to end within one more level."""
        new = ends.copy()
        weights = self.probs * ends[self.left] * ends[self.right]
        new[: self.nonterminals] = np.bincount(self.parents, weights, self.nonterminals)
        return new

    def _slopes(self, ends: Float64[np.ndarray, " S"], kept: Integer[np.ndarray, " K"]) -> Float64[np.ndarray, "K K"]:
        """The matrix of derivatives of `_round` by the probabilities of the kept nonterminals."""
        numbers = np.full(self.symbols, -1)
        numbers[kept] = np.arange(len(kept))
        slopes = np.zeros((len(kept), len(kept)))
        for child, other in ((self.left, self.right), (self.right, self.left)):
            rules = (numbers[self.parents] >= 0) & (numbers[child] >= 0)
            places = (numbers[self.parents[rules]], numbers[child[rules]])
            np.add.at(slopes, places, self.probs[rules] * ends[other[rules]])
        return slopes

    def _surely_end(self, generating: Bool[np.ndarray, " S"]) -> bool:
        """Whether all symbols derive words and have, in the long run, at most one nonterminal child on average."""
        if not generating.all():
            return False
        if np.isfinite(self.expected_lengths(generating)).all():
            return True
        means = self.matrix(generating)
        return len(means) <= _MOST_EIGEN and bool(np.abs(np.linalg.eigvals(means)).max() <= 1 + _EDGE)

    def matrix(self, keep: Bool[np.ndarray, " S"]) -> Float64[np.ndarray, "K K"]:
        """Entry (A, B): how many children B a node A has on average, among the kept nonterminals."""
        kept = np.flatnonzero(keep[: self.nonterminals])
        numbers = np.full(self.symbols, -1)
        numbers[kept] = np.arange(len(kept))
        means = np.zeros((len(kept), len(kept)))
        for child in (self.left, self.right):
            rules = (numbers[self.parents] >= 0) & (numbers[child] >= 0)
            np.add.at(means, (numbers[self.parents[rules]], numbers[child[rules]]), self.probs[rules])
        return means

    def expected_lengths(self, keep: Bool[np.ndarray, " S"]) -> Float64[np.ndarray, " S"]:
        """The mean number of words below each kept symbol, which must hold all it reaches; infinite for all if for one.

        E = M E + (preterminal children): a linear solve. The spectral radius of M is below 1 exactly where
        (I - M)^-1 1 has no entry below 1, as I - M is then a nonsingular M-matrix; so no eigenvalue is needed.
        """
        means = self.matrix(keep)
        kept = np.flatnonzero(keep[: self.nonterminals])
        tags = np.zeros(self.nonterminals)
        for child in (self.left, self.right):
            tags += np.bincount(self.parents, self.probs * (child >= self.nonterminals), self.nonterminals)
        lengths = np.ones(self.symbols)
        try:
            solved = np.linalg.solve(np.eye(len(kept)) - means, np.stack([np.ones(len(kept)), tags[kept]], 1))
        except np.linalg.LinAlgError:
            return np.full(self.symbols, np.inf)
        if len(kept) and not (np.isfinite(solved).all() and solved[:, 0].min() >= 1 - 1e-9 and solved.max() < 1e12):
            return np.full(self.symbols, np.inf)
        lengths[kept] = solved[:, 1]
        return lengths
