"""How far the parses of two grammars are apart: KL divergence between their posteriors over trees."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int32
from numpy.typing import NDArray

from pcfg.errors import GrammarError
from pcfg.grammars.binarization import Origin
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside


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
        divergence = np.maximum(0.0, ratio - log_p + log_q)
    divergence[lacking > 0] = math.inf
    divergence[np.isneginf(log_p)] = math.nan
    return divergence


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
