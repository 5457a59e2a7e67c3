"""The grammar of a treebank: relative frequencies by hand, rare words, the means of the trees."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.induction import induce
from pcfg.treebanks.transforms import chain
from pcfg.treebanks.trees import Tree
from tests.support.odd_trees import ORDERS, odd_trees

BANK = [
    Tree.parse(text)
    for text in (
        "(S (NP (DT the) (NN dog)) (VP (VBD saw) (NP (DT the) (NN cat))))",
        "(S (NP (DT the) (NN cat)) (VP (VBD slept)))",
        "(S (NP (NP (DT a) (NN dog)) (PP (IN of) (NP (NN fame)))) (VP (VBD slept)))",
        "(FRAG (NN dog))",
    )
]


def named(induced):
    """Rules and lexical rules by name, with their probabilities."""
    arrays = induced.arrays()
    symbols = induced.nonterminals + induced.preterminals
    rules = {
        (symbols[a], symbols[b], symbols[c]): p
        for a, b, c, p in zip(*(arrays[key] for key in ("parents", "left", "right", "rule_probs")), strict=True)
    }
    words = {
        (induced.preterminals[t], induced.words[w]): p
        for t, w, p in zip(arrays["tags"], arrays["tokens"], arrays["word_probs"], strict=True)
    }
    return rules, words, dict(zip(symbols, arrays["start"], strict=True))


def test_relative_frequencies_by_hand():
    induced = induce(BANK, v=1, h=1, min_count=1, smooth_lexicon=False, annotate_tags=False)
    rules, words, start = named(induced)
    assert rules == {
        ("S", "NP", "VP"): 1 / 3,
        ("S", "NP", "VP+VBD"): 2 / 3,
        ("VP", "VBD", "NP"): 1.0,
        ("NP", "DT", "NN"): 4 / 5,
        ("NP", "NP", "PP"): 1 / 5,
        ("PP", "IN", "NP+NN"): 1.0,
    }
    assert words["NN", "dog"] == 1 / 2 and words["NN", "cat"] == 1 / 2 and words["FRAG+NN", "dog"] == 1.0
    assert words["DT", "the"] == 3 / 4
    assert {name: p for name, p in start.items() if p} == {"S": 3 / 4, "FRAG+NN": 1 / 4}
    assert induced.lexicon is None and (induced.trees, induced.tokens) == (4, 14)


def test_from_trees_takes_ours_and_nltks_as_they_stand():
    text = "( (S (NP-SBJ (DT The) (NN dog)) (VP (VBZ sees) (NP (-NONE- *))) (. .)) )"
    options = {"h": 2, "v": 1, "min_count": 1, "smooth_lexicon": False}
    expected = Grammar.of_arrays(**induce(clean_trees([Tree.parse(text)]), **options).arrays())
    for tree in (Tree.parse(text), Tree.parse(text).to_nltk()):
        grammar = Grammar.from_trees([tree], **options)
        assert (grammar.binary, grammar.lexical, grammar.roots) == (expected.binary, expected.lexical, expected.roots)
        assert grammar.transformed and grammar.pruned().transformed and not Grammar.from_text("1 S -> 'a'").transformed
    with pytest.raises(TreebankError, match="no trees"):
        Grammar.from_trees([])


def test_rare_words_become_signatures_that_are_not_rare():
    _, words, _ = named(induce(BANK, v=1, min_count=2, smooth_lexicon=False, annotate_tags=False))
    # a, saw, of, fame come once each: four lower-case words, so <unk:lower> fits four.
    assert {word for _, word in words} == {"the", "dog", "cat", "slept", "<unk:lower>"}
    assert words["DT", "<unk:lower>"] == 1 / 4 and words["IN", "<unk:lower>"] == 1.0


def test_a_label_over_words_here_and_over_nodes_there():
    bank = [Tree.parse("(S (NP rain) (NP (NN snow) (NN ball)))"), Tree.parse("(S (A b) (S (A b) (C d)))")]
    induced = induce(bank, v=1, min_count=1, annotate_tags=False)
    assert not set(induced.nonterminals) & set(induced.preterminals)
    assert ("NP^", "rain") in named(induced)[1] and chain("NP^") == ("NP",)


def test_no_trees_no_grammar():
    with pytest.raises(TreebankError, match="no trees"):
        induce([])


def expected_length(arrays):
    """By the linear system e = 1 for tags, e_A = sum of p (e_B + e_C); also the spectral radius of its matrix."""
    size, inner = len(arrays["start"]), len(arrays["nonterminals"])
    matrix = np.zeros((size, size))
    np.add.at(matrix, (arrays["parents"], arrays["left"]), arrays["rule_probs"])
    np.add.at(matrix, (arrays["parents"], arrays["right"]), arrays["rule_probs"])
    ones = np.where(np.arange(size) < inner, 0.0, 1.0)
    return arrays["start"] @ np.linalg.solve(np.eye(size) - matrix, ones), matrix[:inner, :inner]


@given(st.lists(odd_trees, min_size=1, max_size=6), st.sampled_from(ORDERS), st.booleans())
def test_probabilities_sum_to_1_and_lengths_have_the_mean_of_the_trees(trees, orders, tags):
    v, h = orders
    arrays = induce(trees, v=v, h=h, min_count=2, annotate_tags=tags).arrays()
    assert arrays["start"].sum() == pytest.approx(1)
    for heads, probs in (("parents", "rule_probs"), ("tags", "word_probs")):
        sums = np.bincount(arrays[heads], arrays[probs])
        np.testing.assert_allclose(sums, 1, rtol=1e-12)
    for columns in (("parents", "left", "right"), ("tags", "tokens")):
        rows = list(zip(*(arrays[column].tolist() for column in columns), strict=True))
        assert rows == sorted(set(rows))
    mean = np.mean([len(tree.words()) for tree in trees])
    assert expected_length(arrays)[0] == pytest.approx(mean, rel=1e-9)


@given(st.lists(odd_trees, min_size=1, max_size=6))
def test_without_smoothing_the_lexicon_is_the_grammar_turned_round(trees):
    # P(t|w) / P(t) = P(w|t) / P(w): with k = 0 and all words kept, the scores times P(w) are the lexical rules.
    induced = induce(trees, min_count=1, k=0.0)
    counts = Counter(word for tree in trees for word in tree.words())
    for word, count in counts.items():
        column = {tag: p for (tag, form), p in named(induced)[1].items() if form == word}
        expected = [column.get(tag, 0.0) for tag in induced.preterminals]
        found = induced.lexicon.scores([word])[0] * count / induced.tokens
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.real
def test_the_sample_is_counted_as_evalb_and_kim_et_al_count_it(untyped):
    # On the test trees of 40 words or fewer. EVALB itself, compiled, finds 8,270 brackets in the trees without functions.
    code = """
from pcfg.treebanks.evalb import right_branching, score_labelled, score_unlabelled
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank

for gold in (nltk_treebank(), clean_trees(nltk_treebank(), collapse=False)):
    gold = [tree for tree in gold[3414:] if len(clean_trees([tree])[0].words()) <= 40]
    parses = [right_branching(clean_trees([tree])[0].words()) for tree in gold]
    f1s = [score_unlabelled(gold, parses, kim=kim).f1 for kim in (False, True)]
    print(score_labelled(gold, parses).gold, *(f"{100 * f1:.2f}" for f1 in f1s))
"""
    assert untyped(code) == "8270 40.12 40.60\n" * 2


@pytest.mark.real
def test_the_grammar_of_the_sample(untyped, tmp_path):
    code = """
import pickle, sys
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.induction import induce
from pcfg.treebanks.nltk_sample import nltk_treebank

train = clean_trees(nltk_treebank())[:3414]
found = [induce(train, v=v, h=1, smooth_lexicon=False, annotate_tags=False).arrays() for v in (1, 2)]
with open(sys.argv[1], "wb") as file:
    pickle.dump((sum(len(tree.words()) for tree in train) / len(train), found), file)
"""
    untyped(code, tmp_path / "made.pickle")
    mean, found = pickle.loads((tmp_path / "made.pickle").read_bytes())
    assert mean == pytest.approx(24.100, abs=5e-4)
    for arrays in found:
        length, matrix = expected_length(arrays)
        assert length == pytest.approx(mean, rel=1e-9)
        if len(matrix) < 600:  # larger ones take seconds
            assert 0.9 < np.abs(np.linalg.eigvals(matrix)).max() < 0.97
