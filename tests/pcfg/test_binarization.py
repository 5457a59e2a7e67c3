"""Rules of any shape made binary: every sentence keeps its probability, trees get the rules' shape again."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.grammars.binarization import to_binary
from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Rule, Word
from pcfg.inference.chart import inside_outside
from pcfg.inference.parsing import parse
from tests.support.sentences_of_rules import (
    assert_same_sentences,
)


def test_rules_of_any_shape_keep_every_sentence_and_its_probability():
    rules = [
        Rule("S", ("A", Word("and"), "B", "A"), 0.25),
        Rule("S", ("B", Word("and"), "B", "A"), 0.25),
        Rule("S", ("A",), 0.25),
        Rule("S", (Word("x"), Word("x")), 0.25),
        Rule("A", ("B",), 0.5),
        Rule("A", ("A",), 0.125),
        Rule("A", (Word("a"),), 0.25),
        Rule("A", ("B", "B"), 0.125),
        Rule("B", ("A",), 0.25),
        Rule("B", (Word("b"),), 0.5),
        Rule("B", (Word("a"),), 0.25),
    ]
    grammar = Grammar(*to_binary(rules, "S"))
    assert_same_sentences(grammar, rules, "S", longest=5)
    assert "/B+A" in grammar.nonterminals and "/and" in grammar.preterminals and "A/1" in grammar.preterminals
    assert sum(rest.startswith("/and+") for rest in grammar.nonterminals) == 1  # shared by both long rules


def test_names_made_for_symbols_avoid_those_in_use():
    text = "0.5 S -> /x 'x' S\n0.5 S -> 'y'\n1.0 /x -> 'z'"
    grammar = Grammar.from_text(text)
    assert set(grammar.preterminals) == {"/x", "/x/", "S/1"}
    assert grammar.lexical == {("/x", "z"): 1.0, ("/x/", "x"): 1.0, ("S/1", "y"): 1.0}


def test_symbols_of_unary_chains_only_disappear():
    grammar = Grammar.from_text("1.0 TOP -> S 'x'\n1.0 S -> A\n1.0 A -> B 'x'\n1.0 B -> 'b'")
    assert set(grammar.symbols) == {"TOP", "S", "B", "/x"}


def test_a_top_symbol_with_unary_rules_is_the_distribution_over_roots():
    grammar = Grammar.from_text("0.3 ROOT -> S\n0.7 ROOT -> N\n1.0 S -> N N\n1.0 N -> 'n'")
    assert grammar.roots == {"S": 0.3, "N": 0.7} and "ROOT" not in grammar.symbols


@st.composite
def anything(draw):
    """Proper rules of any shape over three symbols, with unary cycles; each symbol can end."""
    rules = []
    child = st.sampled_from(["A", "B", "C", Word("a"), Word("b")])
    for parent in "ABC":
        shapes = draw(st.lists(st.lists(child, min_size=1, max_size=3).map(tuple), max_size=3, unique=True))
        shapes = [shape for shape in shapes if shape != (Word("a"),)]
        weights = [draw(st.integers(1, 4)) for _ in shapes]
        total = sum(weights) + 6
        rules += [Rule(parent, shape, w / total) for shape, w in zip(shapes, weights, strict=True)]
        rules.append(Rule(parent, (Word("a"),), 6 / total))
    return rules


@given(anything())
def test_any_proper_rules_keep_every_sentence_and_its_probability(rules):
    assert_same_sentences(Grammar(*to_binary(rules, "A")), rules, "A", longest=3)


def test_trees_have_the_shape_of_the_rules_again():
    rules = """1 S -> NP VP PP
        0.6 NP -> Det N
        0.4 NP -> 'her'
        0.3 VP -> 'ran'
        0.7 VP -> 'saw' NP
        1 PP -> 'now'
        1 Det -> 'the'
        1 N -> 'dog'"""
    grammar = Grammar.from_text(rules)
    chart = inside_outside(grammar, [["the", "dog", "saw", "her", "now"], ["her", "ran", "now"]])
    expected = ["(S (NP (Det the) (N dog)) (VP (/saw saw) (NP her)) (PP now))", "(S (NP her) (VP ran) (PP now))"]
    assert [str(grammar.undo(tree)) for tree in chart.best_trees()] == expected
    assert [str(tree) for tree in chart.mbr_trees()] == expected
    assert [str(tree) for tree in parse(grammar, chart.sentences)] == expected
    assert parse(grammar, chart.sentences, binary=True) == chart.best_trees()
    own = Grammar(roots={"/S": 1.0}, binary={("/S", "A", "A"): 1.0}, lexical={("A", "a"): 1.0})
    assert str(own.undo(inside_outside(own, [["a", "a"]]).best_trees()[0])) == "(/S (A a) (A a))"  # a root stays


UNARY = """
1.0 S -> A6 E
0.43690546332669766 A0 -> A0
0.12669580470474107 A0 -> A1
0.43639873196856123 A0 -> 'a' 'a'
0.9141940991814622 A1 -> A0
0.0858059008185378 A1 -> 'b' 'b'
0.4540639906071432 A2 -> A0
0.3513364061693492 A2 -> A3
0.1945996032235076 A2 -> 'c' 'c'
1.0 A3 -> 'd' 'd'
1.0 A4 -> 'e' 'e'
0.4544520886861077 A5 -> A4
0.33177289734110677 A5 -> A0
0.21377501397278553 A5 -> 'f' 'f'
0.3366997309604694 A6 -> A0
0.6633002690395306 A6 -> 'g' 'g'
0.5 E -> A2 A5
0.5 E -> 'x'
"""


def test_chains_that_rounding_would_make_are_not_there():
    found = inside_outside(Grammar.from_text(UNARY), [["d", "d", "x"], ["c", "c", "x"], ["g", "g", "x"]])
    assert found.log_z.tolist() == pytest.approx([-math.inf, -math.inf, math.log(0.6633002690395306 / 2)])
