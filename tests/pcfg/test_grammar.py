"""Grammars: what they hold, what they refuse, and that every way in and out keeps sentences and their probabilities."""

import copy
import itertools
import json
import math
from collections import defaultdict

import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.binarization import to_binary
from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Rule, Word
from pcfg.grammars.text_format import read_rules
from pcfg.inference.chart import inside_outside
from pcfg.inference.parsing import parse
from pcfg.sampling.corpus import write_corpus
from pcfg.sampling.formats import write_text
from pcfg.sampling.sampler import sample
from pcfg.sampling.tokenizer import tokenizer
from pcfg.sentences import read_sentences
from pcfg.treebanks.trees import Tree
from surgery.files import new_folder, replace_json

ROOTS = {"S": 0.75, "N": 0.25}
BINARY = {("S", "N", "VP"): 0.5, ("S", "S", "VP"): 0.5, ("VP", "V", "N"): 1.0}
LEXICAL = {("N", "dogs"): 0.25, ("N", "cats"): 0.75, ("V", "see"): 1.0}

JOHN = """
S -> NP VP [1.0]
NP -> Det N [0.5] | NP PP [0.25] | 'John' [0.1] | 'I' [0.15]
Det -> 'the' [0.8] | 'my' [0.2]
N -> 'man' [0.5] | 'telescope' [0.5]
VP -> VP PP [0.1] | V NP [0.7] | V [0.2]
V -> 'ate' [0.35] | 'saw' [0.65]
PP -> P NP [1.0]
P -> 'with' [0.61] | 'under' [0.39]
"""


def same(one, other):
    return (one.roots, one.binary, one.lexical) == (other.roots, other.binary, other.lexical)


def sentences(rules, roots, longest):
    """{sentence: probability} of all sentences up to a length, of rules of any shape, by summing weights of word lists.

    A round applies every rule once, so that weights[A][words] is the sum over trees of one level more.
    """
    weights, change = {rule.parent: {} for rule in rules}, 1.0
    while change > 1e-16:
        new = {parent: defaultdict(float) for parent in weights}
        for rule in rules:
            found = {(): rule.probability}
            for waiting, child in zip(range(len(rule.children) - 1, -1, -1), rule.children, strict=True):
                own = {(child.text,): 1.0} if isinstance(child, Word) else weights[child]
                pairs = itertools.product(found.items(), own.items())
                found = {a + b: 0.0 for a, b in itertools.product(found, own) if len(a + b) + waiting <= longest}
                for (a, p), (b, q) in pairs:
                    if a + b in found:
                        found[a + b] += p * q
            for words, p in found.items():
                new[rule.parent][words] += p
        change = max(
            abs(p - weights[a].get(words, 0.0)) for a, own in new.items() for words, p in [((), 0), *own.items()]
        )
        weights = new
    total = defaultdict(float)
    for root, p in roots.items():
        for words, weight in weights[root].items():
            total[words] += p * weight
    return dict(total)


def rules_of(grammar):
    rules = [Rule(a, (b, c), p) for (a, b, c), p in grammar.binary.items()]
    return rules + [Rule(t, (Word(w),), p) for (t, w), p in grammar.lexical.items()]


def assert_same_sentences(grammar, rules, start, longest=4):
    mine = sentences(rules_of(grammar), grammar.roots, longest)
    theirs = sentences(rules, {start: 1.0}, longest)
    assert {words for words, p in mine.items() if p} == {words for words, p in theirs.items() if p}
    for words, p in theirs.items():
        assert mine.get(words, 0.0) == pytest.approx(p, abs=1e-12)


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


class Lexicon:
    """Every tag fits every word alike."""

    def scores(self, sentence):
        return np.ones((len(sentence), 2))


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


def test_nltk_grammars_come_and_go():
    theirs = nltk.PCFG.fromstring(JOHN)
    grammar = Grammar.from_nltk(theirs)
    assert same(grammar, Grammar.from_text(JOHN))
    assert same(grammar, Grammar.from_nltk(grammar.to_nltk()))
    rules = [
        Rule(str(p.lhs()), tuple(Word(c) if isinstance(c, str) else str(c) for c in p.rhs()), p.prob())
        for p in theirs.productions()
    ]
    assert_same_sentences(grammar, rules, "S", longest=4)


def test_nltk_finds_the_probability_of_the_best_tree():
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL)
    (tree,) = nltk.ViterbiParser(grammar.to_nltk()).parse(["cats", "see", "dogs"])
    assert tree.prob() == pytest.approx(0.75 * 0.5 * 0.75 * 0.25)


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


def test_text_form():
    text = """
    # a comment, and an empty line

    0.5 S -> S "isn't" S   # another
    .5 S -> 'a"b' 'c\\'d' '\\\\' 'e#f'
    """
    grammar = Grammar.from_text(text)
    assert set(grammar.words) == {"isn't", 'a"b', "c'd", "\\", "e#f"}
    assert same(Grammar.from_text("%start B\n1 A -> 'a'\n1.0 B -> A A"), Grammar.from_text("1 B -> A A\n1 A -> 'a'"))


NLTK_TEXTS = [
    "S -> NP VP [1.0]\nNP -> 'I'[0.5]|'you'[0.5]\nVP -> 'go'[.25]|'go' NP[.75]",
    "% start S\nVP -> 'see' City [1.0]\nCity -> 'New York' [0.5] | \"L' Aquila\"[0.5]\nS -> City VP[1]",
    "%start B\nA -> 'a' [0.5] | \\\n   'b' [0.25] |\\\n 'c'[0.25]\nB -> \\\n A A [1.0]",
    "# rounded\nS -> A A [1.0]\nA -> 'a' [0.333333] | 'b' [0.333333] | 'c' [0.333333]",
    "S -> '5\u00a0000' 'a b  c'[0.5] | '|'[0.25] | '['[0.25]",
    "S -> A[0.4]|A A[0.6]\nA -> 'x'[0.991]",
]


@pytest.mark.parametrize("text", NLTK_TEXTS)
@pytest.mark.filterwarnings("ignore:the probabilities of the rules of A sum to 0.99")
def test_texts_are_read_as_nltk_reads_them(text):
    theirs = nltk.PCFG.fromstring(text)
    rules, start = read_rules(text)
    assert start == str(theirs.start())
    assert rules == [
        Rule(str(p.lhs()), tuple(Word(c) if isinstance(c, str) else str(c) for c in p.rhs()), p.prob())
        for p in theirs.productions()
    ]
    mine = Grammar.from_text(text)
    assert same(mine, Grammar.from_nltk(theirs)) and same(mine, Grammar.from_text(mine.to_text()))


def test_rounded_probabilities_are_divided_by_their_sum_and_that_is_said():
    text = "S -> A A [1.0]\nA -> 'a' [0.33] | 'b' [0.33] | 'c' [0.335]\nB -> 'b' [0.999]"
    said = "the rules of A sum to 0.995, those of 1 more not to 1 either: each was divided by its sum"
    with pytest.warns(UserWarning, match=said):
        grammar = Grammar.from_text(text)
    assert grammar.lexical["A", "c"] == pytest.approx(0.335 / 0.995)
    with pytest.warns(UserWarning, match="rules of A sum to 0.995"):
        assert same(Grammar.from_nltk(nltk.PCFG.fromstring(text)), grammar)
    Grammar.from_text("S -> 'a' [0.3333333] | 'b' [0.3333333] | 'c' [0.3333333]")  # nothing to say


def test_a_backslash_goes_on_only_where_it_stands_for_itself():
    assert (
        read_rules("0.5 S -> 'a' \\\n'b'\n# a comment \\\n0.5 S -> 'c'")[0]
        == read_rules("0.5 S -> 'a' 'b'\n0.5 S -> 'c'")[0]
    )
    grammar = Grammar({"S": 1.0}, {("S", "A", "B\\"): 1.0}, {("A", "a"): 1.0, ("B\\", "b\\"): 1.0})
    assert same(Grammar.from_text(grammar.to_text()), grammar)
    for name in ("\\", "'"):
        odd = Grammar({"S": 1.0}, {("S", name, name): 1.0}, {(name, "b'"): 1.0})
        with pytest.raises(GrammarError, match="can't be told from others"):
            odd.to_text()


def test_words_with_spaces_stay_out_of_texts_and_brackets(tmp_path):
    grammar = Grammar.from_text("S -> 'I' City [1.0]\nCity -> 'New York' [1.0]")
    tree = parse(grammar, [["I", "New York"]])[0]
    assert tree.words() == ["I", "New York"] == list(sample(grammar, 1, seed=0)[0])
    assert sample(grammar, 1, seed=0).tree(0, plain=True) == tree
    for write in (
        lambda: sample(grammar, 1, seed=0).bracketed(0),
        lambda: write_corpus(grammar, tmp_path / "out", 3, seed=0),
        lambda: write_text(sample(grammar, 1, seed=0), tmp_path / "a.txt"),
        lambda: tokenizer(grammar),
    ):
        with pytest.raises(GrammarError, match="the word 'New York' holds a space"):
            write()
    assert not list(tmp_path.iterdir())


def test_words_with_hard_spaces_pass_through_files(tmp_path):
    grammar = Grammar.from_text("S -> Num 'euros' [1.0]\nNum -> '5\u00a0000' [0.5] | '7' [0.5]")
    (tmp_path / "a.txt").write_text("5\u00a0000 euros\n7 \t euros \n", "utf-8")
    sentences = read_sentences(tmp_path / "a.txt")
    assert sentences == [["5\u00a0000", "euros"], ["7", "euros"]]
    trees = parse(grammar, sentences)
    assert [Tree.parse(str(tree)) for tree in trees] == trees and trees[0].words() == sentences[0]
    write_corpus(grammar, tmp_path / "out", 20, seed=0)
    drawn = read_sentences(tmp_path / "out" / "train.txt")
    assert ["5\u00a0000", "euros"] in drawn and drawn == read_sentences(tmp_path / "out" / "train.jsonl")
    with pytest.raises(GrammarError, match="splits at spaces"):
        tokenizer(grammar)


def test_the_tags_of_the_penn_treebank_pass_through_text():
    tags = ["#", "''", "``", "$", ",", ":", ".", "-LRB-", "''^S", "|", "[x]"]
    grammar = Grammar(
        roots={"S": 1.0},
        binary={("S", tag, "S"): 1 / 16 for tag in tags} | {("S", "#", "#"): 5 / 16},
        lexical={(tag, tag): 1.0 for tag in tags},
    )
    assert same(Grammar.from_text(grammar.to_text()), grammar)
    with pytest.raises(GrammarError, match="the symbol 'x' can't be told from other things"):
        Grammar(roots={"'x'": 1.0}, binary={}, lexical={("'x'", "x"): 1.0}).to_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text holds no rules"),
        ("# only this", "the text holds no rules"),
        ("1.0 S -> 'a'\nS NP VP", "the text, line 2: a rule looks like 0.5 S -> NP VP"),
        ("S -> 'a'", "the text, line 1: a right-hand side has no probability"),
        ("S -> 'a' [0.5] | 'b'", "line 1: a right-hand side has no probability"),
        ("S -> 'a' [x]", "line 1: x isn't a probability"),
        ("half S -> 'a'", "line 1: half isn't a probability"),
        ("1.0 S -> ", r"the rule S -> \(nothing\) derives no word"),
        ("S -> [1.0]", r"the rule S -> \(nothing\) derives no word"),
        ("0.5 S -> 'a'\n0.4 S -> 'b' S", "the rules of S sum to 0.9"),
        ("nan S -> 'a'", "the rule S -> 'a' has the probability nan"),
        ("1.5 S -> 'a'\n-0.5 S -> 'b'", "the rule S -> 'b' has the probability -0.5"),
        ("1.0 S -> A A", "the rule S -> A A uses A, which has no rules"),
        ("%start X\n1.0 S -> 'a'", "the start symbol X has no rules"),
        ("1.0 S -> A B\n1.0 A -> B\n1.0 B -> A", "round in a circle with probability 1"),
        ("1.0 S -> S", "round in a circle with probability 1"),
        ("1.0 S -> S S", "the grammar has no words"),
        ("S -> 'a'[0.5]|''[0.5]", "the rule S -> '' has an empty word, which no sentence holds"),
        ("0.5 S -> \"\"\n0.5 S -> 'a'", "has an empty word"),
        ("S -> A A [1.0]\nA -> 'a' [0.98]", "the rules of A sum to 0.98"),
        ("S -> 'a' \\\n [0.5] | 'b'\nA -> 'a' [1]", "line 1: a right-hand side has no probability"),
    ],
)
def test_texts_that_are_no_grammars_are_refused(text, message):
    with pytest.raises(GrammarError, match=message):
        Grammar.from_text(text)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 999), st.sampled_from([0.0, 1.0, 10.0]))
def test_every_bit_survives_every_round_trip(tmp_path_factory, n, t, words, seed, temperature):
    grammar = Grammar.random(n, t, words, seed, temperature)
    path = tmp_path_factory.mktemp("grammar") / "a.pcfg.json"
    grammar.save(path)
    loaded = Grammar.load(path)
    for name in ("nonterminals", "preterminals", "words"):
        assert getattr(loaded, name) == getattr(grammar, name)
    for name in ("start", "parents", "left", "right", "rule_probs", "tags", "tokens", "word_probs"):
        assert getattr(loaded, name).tobytes() == getattr(grammar, name).tobytes()
    assert same(Grammar.from_text(grammar.to_text()), grammar)
    assert same(Grammar.from_nltk(grammar.to_nltk()), grammar)
    assert same(Grammar(grammar.roots, grammar.binary, grammar.lexical), grammar)


def test_files_that_hold_no_grammar_are_refused(tmp_path):
    path = tmp_path / "a.pcfg.json"
    with pytest.raises(GrammarError, match=r"a\.pcfg\.json can't be read: No such file"):
        Grammar.load(path)
    for text, message in (
        ("{", ": the file isn't JSON"),
        ("[]", ": the file isn't a grammar of schema 1"),
        ('{"schema": 2}', ": the file isn't a grammar of schema 1"),
        ('{"schema": 1}', " is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(GrammarError, match=rf"a\.pcfg\.json{message}"):
            Grammar.load(path)
    Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL).save(path)
    content = json.loads(path.read_text())
    assert content["binary"][0] == ["S", "S", "VP", 0.5]
    content["binary"][0][3] = 0.25
    replace_json(path, content)
    with pytest.raises(GrammarError, match=r"a\.pcfg\.json: the probabilities of the rules of S sum to 0\.75"):
        Grammar.load(path)
    content["binary"][0][0] = "Q"
    replace_json(path, content)
    with pytest.raises(GrammarError, match=r"is damaged \(KeyError 'Q'\)"):
        Grammar.load(path)


def test_random_grammars_have_the_sizes_asked_for():
    grammar = Grammar.random(3, 4, 5, seed=0)
    assert (len(grammar.nonterminals), len(grammar.preterminals), len(grammar.words)) == (3, 4, 5)
    assert len(grammar.rule_probs) == 3 * 7 * 7 and len(grammar.word_probs) == 4 * 5
    few = Grammar.random(3, 4, 5, seed=0, rules=20)
    assert len(few.rule_probs) == 20 and len(few.binary) == 20
    assert len(Grammar.random(3, 4, 5, seed=0, rules=3).rule_probs) == 3
    assert same(few, Grammar.random(3, 4, 5, seed=0, rules=20))
    assert not same(few, Grammar.random(3, 4, 5, seed=1, rules=20))
    assert np.ptp(Grammar.random(3, 4, 5, seed=0, temperature=0.0).rule_probs) == 0
    assert Grammar.random(3, 4, 5, seed=0, temperature=10.0).rule_probs.max() > 0.8
    with pytest.raises(OptionError, match="can have 3 to 147"):
        Grammar.random(3, 4, 5, seed=0, rules=2)
    with pytest.raises(OptionError, match="at least one nonterminal"):
        Grammar.random(0, 4, 5, seed=0)


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


def test_a_smoothed_lexicon_is_saved_with_its_grammar(tmp_path):
    from pcfg.treebanks.lexicon import SmoothedLexicon

    lexicon = SmoothedLexicon.count({("dogs", 0): 3.0, ("see", 1): 2.0}, {("<unk>", 0): 1.0, ("<unk>", 1): 2.0}, 2)
    grammar = Grammar(ROOTS, BINARY, LEXICAL, lexicon)
    grammar.save(tmp_path / "a.pcfg.json")
    loaded = Grammar.load(tmp_path / "a.pcfg.json")
    words = ["dogs", "see", "birds"]
    assert loaded.emissions(words).tobytes() == lexicon.scores(words).tobytes()
    content = json.loads((tmp_path / "a.pcfg.json").read_text())
    del content["lexicon"]["counts"]
    replace_json(tmp_path / "a.pcfg.json", content)
    with pytest.raises(GrammarError, match=r"a\.pcfg\.json is damaged .*counts.*at `\$\.lexicon`"):
        Grammar.load(tmp_path / "a.pcfg.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out") as staged:
        (staged / "file").write_text("x")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as staged:
        (staged / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
