"""The probability that a sentence begins with given words."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from pcfg.grammars.grammar import Grammar
from pcfg.grammars.pruning import pruned_arrays
from pcfg.sparse import engine as sparse
from pcfg.sparse.engine import SparseChart


def prefix_log_z(grammar: Grammar, prefixes: Sequence[Sequence[str]]) -> Float64[np.ndarray, " batch"]:
    """Log probability that a sentence begins with each prefix (a whole sentence begins with itself).

    By sums over left corners (Jelinek & Lafferty 1991, Computational Linguistics 17(3)). Where trees may go on for ever,
    sentences are those that end. Everything is summed in logs. The closure over left corners costs some tens of products
    of matrices of all nonterminals, once for all prefixes.

    Raises GrammarError for an unknown word.
    """
    ends = grammar.branching.ending()
    ending = math.log(grammar.start @ ends)
    # Given that trees end, whatever stands to the right of the prefix has probability 1.
    proper = Grammar.of_arrays(**pruned_arrays(grammar))
    tags = [grammar.preterminals.index(name) for name in proper.preterminals]
    corners, rules = _LeftCorners(proper), proper.compiled
    log_probs = np.full(len(prefixes), ending)
    for row, prefix in enumerate(prefixes):
        scores = grammar.emissions(prefix)[:, tags]
        if len(prefix):
            log_probs[row] += corners.log_prefix(sparse.inside_outside(rules, proper.start, scores), scores)
    return log_probs


class _LeftCorners:
    """Sums over chains of left corners, and the recursion over positions of a prefix."""

    def __init__(self, grammar: Grammar) -> None:
        inner, self.grammar = len(grammar.nonterminals), grammar
        step = np.zeros((inner, len(grammar.start)))
        np.add.at(step, (grammar.parents, grammar.left), grammar.rule_probs)
        with np.errstate(divide="ignore"):
            self.log_closure = np.log(_closure(step[:, :inner]))
            self.log_tags = np.log(step[:, inner:])
            self.log_probs = np.log(grammar.rule_probs)
            self.log_start = np.log(grammar.start)
        self.heads, self.first = np.unique(grammar.parents, return_index=True)

    def log_prefix(self, chart: SparseChart, scores: Float64[np.ndarray, "n T"]) -> float:
        """Log probability, given the start distribution, of beginning with the chart's words.

        `begins[A, i]`: that what A derives begins with the words from i on, and has at least one word more or none.
        """
        n, inner, symbols = chart.n, len(self.grammar.nonterminals), len(self.grammar.start)
        items = chart.items
        begins = np.full((symbols, n), -np.inf)
        with np.errstate(divide="ignore"):
            begins[inner:, n - 1] = np.log(scores[n - 1])
        if inner:
            begins[:inner, n - 1] = _times(self.log_closure, _times(self.log_tags, begins[inner:, n - 1]))
        log_inside, by_start = chart.log_inside, np.searchsorted(items.starts, np.arange(n + 1))
        for i in range(n - 2, -1, -1):
            here = slice(by_start[i], by_start[i + 1])
            inside = np.full((symbols, n - i - 1), -np.inf)  # of words i..m-1, m from i + 1
            whole = items.ends[here] == n  # then nothing is left for the sibling to begin with
            inside[items.symbols[here][~whole], items.ends[here][~whole] - i - 1] = log_inside[here][~whole]
            if inner:
                begins[:inner, i] = _times(self.log_closure, self._split(inside, begins[:, i + 1 :]))
        return float(np.logaddexp.reduce(self.log_start + begins[:, 0]))

    def _split(
        self, inside: Float64[np.ndarray, "S m"], begins: Float64[np.ndarray, "S m"]
    ) -> Float64[np.ndarray, " N"]:
        """Log sum over rules and splits of a whole left child beside a right child that has begun."""
        grammar = self.grammar
        parts = self.log_probs + np.logaddexp.reduce(inside[grammar.left] + begins[grammar.right], 1)
        sums = np.full(len(grammar.nonterminals), -np.inf)
        sums[self.heads] = np.logaddexp.reduceat(parts, self.first)
        return sums


def _closure(step: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, "N N"]:
    """(I - step)^-1 = (I + step)(I + step^2)(I + step^4)...: sums of positive numbers, so each entry is exact to rounding."""
    total, power = np.eye(len(step)) + step, step
    for _ in range(64):
        power = power @ power
        new = total + power @ total
        if (new == total).all():
            break
        total = new
    return total


def _times(log_matrix: Float64[np.ndarray, "N x"], log_vector: Float64[np.ndarray, " x"]) -> Float64[np.ndarray, " N"]:
    """A matrix times a vector, all in logs."""
    return np.logaddexp.reduce(log_matrix + log_vector, 1)
