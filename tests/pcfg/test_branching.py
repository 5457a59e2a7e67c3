"""Trees as a branching process: expected lengths, the probability to end, pruning, against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar
from tests.support.sentences_of_rules import (
    BINARY,
    LEXICAL,
    ROOTS,
    Lexicon,
    rules_of,
    same,
    sentences,
)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.4, 0.49])
def test_expected_length_against_its_closed_form(p):
    """S -> S S (p) | T T (1 - p): E = 2 p E + 2 (1 - p)."""
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): p, ("S", "T", "T"): 1 - p}, {("T", "t"): 1.0})
    assert grammar.expected_length == pytest.approx(2 * (1 - p) / (1 - 2 * p))
    assert grammar.spectral_radius == pytest.approx(2 * p)
    grammar.check_proper()


@pytest.mark.parametrize("p", [0.5, 0.6, 0.999])
def test_an_infinite_expected_length_is_refused_by_name_and_pruned_gives_the_trees_that_end(p):
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): p, ("S", "T", "T"): 1 - p}, {("T", "t"): 1.0})
    assert math.isinf(grammar.expected_length)
    with pytest.raises(GrammarError, match="the expected length of a sentence is infinite"):
        grammar.check_proper()
    if p > 0.5:  # q = p q^2 + 1 - p has the least root (1 - p) / p, and then S -> S S gets p q
        pruned = grammar.pruned()
        assert pruned.binary["S", "S", "S"] == pytest.approx(1 - p, rel=1e-9)
        pruned.check_proper()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 999), st.floats(0, 5))
def test_expected_length_is_infinite_exactly_where_the_spectral_radius_is_1_or_more(n, t, seed, temperature):
    grammar = Grammar.random(n, t, 1, seed, temperature)
    if abs(grammar.spectral_radius - 1) > 1e-6:
        assert math.isfinite(grammar.expected_length) == (grammar.spectral_radius < 1)


def test_useless_symbols_are_named_and_pruned():
    grammar = Grammar(
        roots={"S": 1.0},
        binary={
            ("S", "N", "N"): 0.5,
            ("S", "LOOP", "N"): 0.25,
            ("S", "S", "N"): 0.25,
            ("LOOP", "LOOP", "N"): 1.0,
            ("FAR", "X", "X"): 1.0,
        },
        lexical={("N", "n"): 1.0, ("N", "never"): 0.0, ("X", "x"): 1.0},
    )
    assert grammar.useless == ("LOOP", "FAR", "X")
    pruned = grammar.pruned()
    assert pruned.symbols == ("S", "N") and pruned.words == ("n",) and pruned.useless == ()
    given_that_it_ends = sentences(rules_of(grammar), grammar.roots, 8)
    total = 2 / 3  # q = q / 4 + 1 / 2
    for words, p in sentences(rules_of(pruned), pruned.roots, 8).items():
        assert p == pytest.approx(given_that_it_ends[words] / total)


def test_pruning_what_has_nothing_useless_changes_no_bit():
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL)
    assert same(grammar.pruned(), grammar)
    spare = Grammar(ROOTS, BINARY | {("X", "N", "N"): 1.0}, LEXICAL)
    assert spare.useless == ("X",) and same(spare.pruned(), grammar)


def test_a_lexicon_keeps_all_its_tags():
    grammar = Grammar(ROOTS, BINARY, LEXICAL | {("X", "x"): 1.0}, Lexicon())
    assert grammar.pruned().preterminals == ("N", "V", "X")


@pytest.mark.parametrize("temperature", [8.0, 10.0, 20.0, 40.0])
def test_the_probability_to_end_of_peaked_grammars(temperature):
    for seed in range(20):
        grammar = Grammar.random(5, 5, 3, seed, temperature=temperature, rules=60)
        ends = grammar.branching.ending()
        sums = np.bincount(
            grammar.parents, grammar.rule_probs * ends[grammar.left] * ends[grammar.right], len(grammar.nonterminals)
        )
        assert sums == pytest.approx(ends[: len(grammar.nonterminals)], rel=1e-13, abs=0)
        left = grammar.pruned()
        assert left.branching.ending() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(("going", "expected"), [(0.5, 1.0), (0.5 + 1e-13, 1.0), (0.6, 2 / 3), (0.999, 0.001 / 0.999)])
def test_the_probability_to_end_in_closed_form(going, expected):
    # q = going q^2 + (1 - going), whose least solution is (1 - going) / going from one half on.
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): going, ("S", "T", "T"): 1 - going}, {("T", "a"): 1.0})
    assert grammar.branching.ending()[0] == pytest.approx(expected, rel=1e-9)
    rare = Grammar({"S": 1.0}, {("S", "S", "S"): 1 - 1e-17, ("S", "T", "T"): 1e-17}, {("T", "a"): 1.0})
    assert rare.branching.ending()[0] == pytest.approx(1e-17, rel=1e-12)
