"""Questions about grammars and sentences beyond one chart: divergence of two grammars' parses, probability of a prefix."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int32
from numpy.typing import NDArray

from pcfg.errors import GrammarError
from pcfg.grammars.binarization import Origin
from pcfg.grammars.grammar import Grammar
from pcfg.grammars.pruning import pruned_arrays
from pcfg.inference.chart import inside_outside
from pcfg.sparse import engine as sparse
from pcfg.sparse.engine import SparseChart


def kl(grammar_p: Grammar, grammar_q: Grammar, sentences: Sequence[Sequence[str]]) -> Float64[np.ndarray, " batch"]:
    """KL(P(tree | sentence) || Q(tree | sentence)) for each sentence, in nats.

    Infinite where p has a parse that q hasn't; NaN where p has none. The grammars must have the same symbols, in any
    order; rules and words may differ. Computed from p's expected rule counts, so exact up to rounding. Where the rules that
    both were made from are known, it is over trees of those, with their unary chains; else over trees in their symbols.

    Raises GrammarError for other symbols, or an unknown word.
    """
    place = _same_symbols(grammar_p, grammar_q)
    inner = len(grammar_p.nonterminals)
    tags = place[inner:] - inner
    chart_p, chart_q = inside_outside(grammar_p, sentences), inside_outside(grammar_q, sentences)
    words = [_log_ratio(p, q[:, tags]) for p, q in zip(chart_p.emissions, chart_q.emissions, strict=True)]
    start = _log_ratio(grammar_p.start, grammar_q.start[place])
    rules = _log_ratio(grammar_p.rule_probs, _matched(grammar_p, grammar_q, place))
    own = _of_rules(grammar_p.origin, grammar_q.origin)
    if own is not None:  # a start symbol over roots may have any name in either
        start = _log_ratio(_roots(grammar_p), _roots(grammar_q)[place])

    def expected(part: Callable[[NDArray], NDArray]) -> Float64[np.ndarray, " batch"]:
        if own is not None:
            _, binary, lexical = chart_p.of_rules(part(own))
            return chart_p.expected(part(start), binary, lexical)
        return chart_p.expected(part(start), part(rules), [part(ratios) for ratios in words])

    ratio = expected(lambda ratios: np.where(np.isinf(ratios), 0.0, ratios))
    lacking = expected(lambda ratios: np.isinf(ratios).astype(np.float64))
    log_p, log_q = (chart.log_z.cpu().double().numpy() for chart in (chart_p, chart_q))
    with np.errstate(invalid="ignore"):
        found = np.maximum(0.0, ratio - log_p + log_q)
    found[lacking > 0] = math.inf
    found[np.isneginf(log_p)] = math.nan
    return found


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
    found = np.full(len(prefixes), ending)
    for row, prefix in enumerate(prefixes):
        scores = grammar.emissions(prefix)[:, tags]
        if len(prefix):
            found[row] += corners.log_prefix(sparse.inside_outside(rules, proper.start, scores), scores)
    return found


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
        found = np.full(len(grammar.nonterminals), -np.inf)
        found[self.heads] = np.logaddexp.reduceat(parts, self.first)
        return found


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


def _same_symbols(grammar_p: Grammar, grammar_q: Grammar) -> Int32[np.ndarray, " S"]:
    """The number in q of each of p's symbols."""
    for kind in ("nonterminals", "preterminals"):
        own, other = set(getattr(grammar_p, kind)), set(getattr(grammar_q, kind))
        if own != other:
            name = min(own ^ other)
            raise GrammarError(
                f"the grammars differ in their {kind}: only one has {name}, so their trees can't be compared"
            )
    numbers = {name: i for i, name in enumerate(grammar_q.symbols)}
    return np.array([numbers[name] for name in grammar_p.symbols], np.int32)


def _matched(grammar_p: Grammar, grammar_q: Grammar, place: Int32[np.ndarray, " S"]) -> Float64[np.ndarray, " R"]:
    """What q gives to each of p's binary rules."""
    columns = (grammar_q.parents.tolist(), grammar_q.left.tolist(), grammar_q.right.tolist())
    given = dict(zip(zip(*columns, strict=True), grammar_q.rule_probs.tolist(), strict=True))
    wanted = (place[column].tolist() for column in (grammar_p.parents, grammar_p.left, grammar_p.right))
    return np.array([given.get(rule, 0.0) for rule in zip(*wanted, strict=True)], np.float64)


def _of_rules(p: Origin | None, q: Origin | None) -> Float64[np.ndarray, " rules"] | None:
    """log p / q of the rules that p's grammar was made from, where both grammars' are known."""
    if p is None or q is None:
        return None
    given = {rule[:2]: rule.probability for rule in q.rules}
    return _log_ratio(p.probs, np.array([given.get(rule, 0.0) for rule in p.shape.rules]))


def _roots(grammar: Grammar) -> Float64[np.ndarray, " S"]:
    """The probability of the rule that makes each symbol a root, of a grammar whose rules are known."""
    return grammar.places.starts(grammar.origin)  # type: ignore[union-attr,arg-type]


def _log_ratio(p: Float64[np.ndarray, "..."], q: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """log p / q: 0 where p is 0, infinite where only q is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, np.log(p) - np.log(q), 0.0)
