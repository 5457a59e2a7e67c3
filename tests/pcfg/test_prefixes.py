"""Prefix probabilities against sums over sentences."""

import itertools
import math

import numpy as np
import pytest

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.inference.prefixes import prefix_log_z
from tests.support.enumeration import all_trees, random_sentence, sparse_grammar

LONGEST = 5


def finite_grammar(seed):
    """Random, of sentences of one to five words: a node's children are always of later layers."""
    random = np.random.default_rng(seed)
    binary, tags = {}, ("T", "U")
    for parent, pairs in (
        ("S", [(b, c) for b in ("X", "T", "U") for c in ("Y", "T", "U")]),
        ("X", [("Y", "T"), ("T", "Y"), ("T", "U"), ("U", "Y")]),
        ("Y", [(b, c) for b in tags for c in tags]),
    ):
        chosen = [pairs[i] for i in random.choice(len(pairs), 3, replace=False)]
        if parent == "S":
            chosen = list(dict.fromkeys([*chosen, ("X", "Y")]))
        binary |= dict(zip([(parent, *pair) for pair in chosen], random.dirichlet(np.ones(len(chosen))), strict=True))
    lexical = {(tag, word): p for tag in tags for word, p in zip("abc", random.dirichlet(np.ones(3)), strict=True)}
    return Grammar({"S": 0.8, "T": 0.2}, binary, lexical)


@pytest.mark.parametrize("seed", range(10))
def test_a_prefix_is_worth_the_sentences_that_begin_with_it(seed):
    grammar = finite_grammar(seed)
    prefixes = [(), ("a",), ("b", "c"), ("c", "a", "b")]
    expected = [0.0] * len(prefixes)
    for n in range(1, LONGEST + 1):
        for sentence in itertools.product("abc", repeat=n):
            probability = math.fsum(p for _, p in all_trees(grammar, sentence))
            for i, prefix in enumerate(prefixes):
                expected[i] += probability * (sentence[: len(prefix)] == prefix)
    assert expected[0] == pytest.approx(1.0), "these are all sentences"
    assert np.exp(prefix_log_z(grammar, prefixes)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_a_prefix_ends_there_or_goes_on(seed):
    grammar = sparse_grammar(seed)
    prefixes = [random_sentence(grammar, 10 * seed + i) for i in range(3)]
    for prefix in prefixes:
        longer = np.exp(prefix_log_z(grammar, [[*prefix, word] for word in grammar.words])).sum()
        whole = math.exp(float(inside_outside(grammar, [prefix]).log_z[0]))
        assert math.exp(prefix_log_z(grammar, [prefix])[0]) == pytest.approx(longer + whole, abs=1e-12)


def test_where_trees_may_not_end_only_sentences_that_do_count():
    # Two thirds grow: a tree ends with probability 1/2 (the smaller root of q = 1/3 + 2/3 q^2).
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): 2 / 3, ("S", "A", "A"): 1 / 3}, {("A", "a"): 0.5, ("A", "b"): 0.5})
    found = np.exp(prefix_log_z(grammar, [[], ["a"], ["b"], ["a", "b"]]))
    assert found == pytest.approx([0.5, 0.25, 0.25, 0.125])


def test_a_long_prefix_doesnt_underflow_and_an_impossible_one_is_minus_infinity():
    grammar = Grammar(
        {"S": 1.0}, {("S", "A", "S"): 0.5, ("S", "A", "A"): 0.5}, {("A", "a"): 1e-9, ("A", "b"): 1 - 1e-9}
    )
    found = prefix_log_z(grammar, [["a"] * 60, ["b"]])
    # Sentences of 60 words or more: all but those of 2 to 59.
    assert found == pytest.approx([60 * math.log(1e-9) + 58 * math.log(0.5), math.log1p(-1e-9)])
    one = Grammar({"S": 1.0}, {("S", "A", "B"): 1.0}, {("A", "a"): 1.0, ("B", "b"): 1.0})
    assert prefix_log_z(one, [["a", "a"], ["a"], ["a", "b"], ["a", "b", "a"]]).tolist() == [-math.inf, 0, 0, -math.inf]
    assert prefix_log_z(Grammar({"A": 1.0}, {}, {("A", "a"): 1.0}), [["a"], ["a", "a"]]).tolist() == [0, -math.inf]
    with pytest.raises(GrammarError, match="'zebra'"):
        prefix_log_z(one, [["zebra"]])
