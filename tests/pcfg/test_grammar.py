"""Grammars: symbols and words by number, unknown words, what is refused, random ones, copies."""

import copy
import math

import numpy as np
import pytest

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from tests.support.sentences_of_rules import (
    BINARY,
    LEXICAL,
    ROOTS,
    Lexicon,
    same,
)


def test_symbols_are_told_apart_by_use_and_rules_sorted():
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL)
    assert grammar.nonterminals == ("S", "VP") and grammar.preterminals == ("N", "V")
    assert grammar.words == ("dogs", "cats", "see") and grammar.symbols == ("S", "VP", "N", "V")
    assert grammar.start.tolist() == [0.75, 0, 0.25, 0]
    assert grammar.parents.tolist() == [0, 0, 1] and grammar.left.tolist() == [0, 2, 3]
    assert grammar.right.tolist() == [1, 1, 2] and grammar.rule_probs.tolist() == [0.5, 0.5, 1]
    assert grammar.tags.tolist() == [0, 0, 1] and grammar.tokens.tolist() == [0, 1, 2]
    assert grammar.word_probs.tolist() == [0.25, 0.75, 1]
    assert (grammar.roots, grammar.binary, grammar.lexical) == (ROOTS, BINARY, LEXICAL)


def test_words_alone_are_a_grammar():
    grammar = Grammar(roots={"N": 1.0}, binary={}, lexical={("N", "dogs"): 1.0})
    assert grammar.nonterminals == () and grammar.expected_length == 1 and grammar.spectral_radius == 0
    assert same(Grammar.from_text(grammar.to_text()), grammar)


def test_emissions_and_unknown_words():
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL)
    assert grammar.emissions(["cats", "see", "dogs"]).tolist() == [[0.75, 0], [0, 1], [0.25, 0]]
    assert grammar.emissions([]).shape == (0, 2)
    with pytest.raises(GrammarError, match=r"'birds' \(number 3 of its sentence\) is unknown"):
        grammar.emissions(["cats", "see", "birds"])
    with pytest.raises(GrammarError, match="split it into words"):
        grammar.emissions("cats")


def test_signatures_serve_without_the_plainest_of_them():
    grammar = Grammar({"N": 1.0}, {}, {("N", "dogs"): 0.5, ("N", "<unk:lower>"): 0.5})
    assert grammar.words[grammar.number_of("birds", 0)] == "<unk:lower>"
    with pytest.raises(GrammarError, match=r"'1989' \(number 1 of its sentence\) is unknown"):
        grammar.emissions(["1989"])


def test_unknown_words_become_signatures_where_there_are_some():
    lexical = {("N", "dogs"): 0.5, ("N", "<unk:number>"): 0.3, ("N", "<unk>"): 0.2, ("V", "see"): 1.0}
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=lexical)
    assert grammar.emissions(["dogs", "12", "birds"])[:, 0].tolist() == [0.5, 0.3, 0.2]


def test_a_lexicon_answers_in_place_of_the_words():
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL, lexicon=Lexicon())
    assert grammar.emissions(["birds"]).tolist() == [[1, 1]]
    assert grammar.replaced(lexicon=None).emissions(["cats"]).tolist() == [[0.75, 0]]


BAD = [
    ({}, {}, {}, "the grammar has no words"),
    ({"S": 0.5}, BINARY, LEXICAL, "the probabilities of the roots sum to 0.5: they must sum to 1"),
    (ROOTS, BINARY | {("VP", "V", "N"): 0.9}, LEXICAL, "the rules of VP sum to 0.9"),
    (ROOTS, BINARY, LEXICAL | {("V", "see"): 1.00001}, "the rules of V sum to 1.00001"),
    (ROOTS, BINARY | {("VP", "V", "N"): math.nan}, LEXICAL, "the rule VP -> V N has the probability nan"),
    (ROOTS, BINARY | {("VP", "V", "N"): math.inf}, LEXICAL, "the rule VP -> V N has the probability inf"),
    (ROOTS, BINARY | {("S", "N", "VP"): -0.5}, LEXICAL, "the rule S -> N VP has the probability -0.5"),
    (ROOTS, BINARY, LEXICAL | {("N", "dogs"): -0.25}, "the rule N -> 'dogs' has the probability -0.25"),
    ({"S": 2.0, "N": -1.0}, BINARY, LEXICAL, "the root N has the probability -1"),
    (ROOTS, BINARY, LEXICAL | {("VP", "run"): 1.0}, "VP has binary and lexical rules"),
    (ROOTS, BINARY | {("VP", "V", "X"): 0.0}, LEXICAL, "the rule VP -> V X uses X, which has no rules"),
    ({"X": 1.0}, BINARY, LEXICAL, "the symbol X has no rules"),
    (ROOTS, BINARY, LEXICAL | {("V", ""): 0.0}, "the word '' can't be used"),
    (ROOTS, BINARY, LEXICAL | {("V", " "): 0.0}, "the word ' ' can't be used"),
    (ROOTS, BINARY, LEXICAL | {("V", "New\nYork"): 0.0}, r"the word 'New\\nYork' can't be used: .* line break"),
    (ROOTS, BINARY, LEXICAL | {("(X", "x"): 1.0}, r"the symbol '\(X' can't be used"),
    ({"S": 1.0}, {("S", "S", "S"): 1.0}, LEXICAL, "no root derives a sentence"),
]


@pytest.mark.parametrize(("roots", "binary", "lexical", "message"), BAD)
def test_what_is_no_grammar_is_refused(roots, binary, lexical, message):
    with pytest.raises(GrammarError, match=message):
        Grammar(roots=roots, binary=binary, lexical=lexical)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonterminals": ("S", "N")}, "the symbol N comes twice"),
        ({"words": ("dogs", "dogs", "see")}, "the word dogs comes twice"),
        ({"start": [1.0, 0, 0]}, "start holds 3 numbers where 4 are needed"),
        ({"word_probs": [0.5, 0.5]}, "the lexical rules' columns have different lengths"),
        ({"parents": [0, 0]}, "the binary rules' columns have different lengths"),
        ({"right": [1, 1, 7]}, "right holds numbers outside 0..3"),
        ({"tokens": [0, -1, 2]}, "tokens holds numbers outside 0..2"),
        ({"left": [2, 2, 3]}, "the rule S -> N VP comes twice"),
        ({"tokens": [0, 0, 2]}, "the rule N -> 'dogs' comes twice"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(GrammarError, match=message):
        Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL).replaced(**changes)


def test_sums_may_be_off_by_rounding():
    Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL | {("V", "see"): 1 + 9e-7})


def test_random_grammars_have_the_sizes_asked_for():
    grammar = Grammar.random(3, 4, 5, seed=0)
    assert (len(grammar.nonterminals), len(grammar.preterminals), len(grammar.words)) == (3, 4, 5)
    assert len(grammar.rule_probs) == 3 * 7 * 7 and len(grammar.word_probs) == 4 * 5
    few = Grammar.random(3, 4, 5, seed=0, rules=20)
    assert len(few.rule_probs) == 20 and len(few.binary) == 20
    assert len(Grammar.random(3, 4, 5, seed=0, rules=3).rule_probs) == 3
    assert same(few, Grammar.random(3, 4, 5, seed=0, rules=20))
    assert not same(few, Grammar.random(3, 4, 5, seed=1, rules=20))
    flat, peaked = (Grammar.random(3, 4, 5, seed=0, temperature=temperature) for temperature in (0.0, 10.0))
    assert np.ptp(flat.rule_probs) == np.ptp(flat.word_probs) == 0
    assert flat.start == pytest.approx([0.9 / 3] * 3 + [0.1 / 4] * 4)
    assert peaked.rule_probs.max() > 0.8 and peaked.word_probs.max() > 0.8 and peaked.start.max() > 0.8
    with pytest.raises(OptionError, match="can have 3 to 147"):
        Grammar.random(3, 4, 5, seed=0, rules=2)
    with pytest.raises(OptionError, match="at least one nonterminal"):
        Grammar.random(0, 4, 5, seed=0)


def test_a_grammar_and_its_charts_can_be_copied_and_sent_elsewhere():
    grammar = Grammar.random(3, 3, 3, 0, rules=20)
    for engine in ("sparse", "dense"):
        chart = inside_outside(grammar, [["w0"] * 5], engine=engine)
        log_z = chart.log_z
        other = copy.deepcopy(chart)  # by the same means as to another process
        assert other.log_z.tolist() == log_z.tolist() and other.entropy() == chart.entropy()
        assert str(other.best_trees()) == str(chart.best_trees())


def test_a_grammar_prints_in_a_line():
    said = repr(Grammar.random(20, 45, 1000, 0, rules=900))
    assert (
        said.startswith("Grammar(20 nonterminals, 45 preterminals, 1,000 words, 900 binary and ") and "\n" not in said
    )
