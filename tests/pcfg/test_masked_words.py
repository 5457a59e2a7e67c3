"""Masked words against their definition: the sentence's probability with each word put there, from the list of all trees."""

import itertools
import math

import numpy as np
import pytest

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.inference.masked_words import masked_log_prob, masked_posteriors, tag_posteriors, word_posteriors
from tests.support.enumeration import all_trees, random_sentence, sparse_grammar


def weights_of(grammar, sentence, positions):
    """Probability of the sentence with every choice of words at the positions."""
    found = np.zeros((len(grammar.words),) * len(positions))
    for choice in itertools.product(range(len(grammar.words)), repeat=len(positions)):
        filled = list(sentence)
        for position, word in zip(positions, choice, strict=True):
            filled[position] = grammar.words[word]
        found[choice] = math.fsum(p for _, p in all_trees(grammar, filled))
    return found


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("seed", range(12))
def test_each_word_given_all_others(engine, seed):
    grammar = sparse_grammar(seed)
    sentences = [random_sentence(grammar, 100 * seed + i) for i in range(3)]
    logs = masked_log_prob(grammar, sentences, engine=engine)
    for sentence, found, log in zip(sentences, word_posteriors(grammar, sentences, engine=engine), logs, strict=True):
        for i, word in enumerate(sentence):
            weights = weights_of(grammar, sentence, [i])
            expected = weights / (weights.sum() or 1)
            assert np.abs(found[i] - expected).max() < 1e-12
            here = expected[grammar.words.index(word)]
            assert (
                math.isnan(log[i])
                if not weights.any()
                else log[i] == pytest.approx(math.log(here) if here else -math.inf)
            )


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("seed", range(8))
def test_several_masks_alone_and_together(engine, seed):
    grammar = sparse_grammar(seed)
    sentence = random_sentence(grammar, seed, 4)
    for positions in ([2], [3, 0], [0, 1, 3], [0, 1, 2, 3]):
        weights = weights_of(grammar, sentence, positions)
        hidden = ["<mask>" if i in positions else word for i, word in enumerate(sentence)]
        found = masked_posteriors(grammar, hidden, positions, joint=True, engine=engine)
        total = weights.sum()
        assert found.log_z == pytest.approx(math.log(total), abs=1e-12) if total else found.log_z == -math.inf
        joint = weights / (total or 1)
        assert np.abs(found.joint_words - joint).max() < 1e-12
        for axis in range(len(positions)):
            others = tuple(a for a in range(len(positions)) if a != axis)
            assert np.abs(found.words[axis] - joint.sum(others)).max() < 1e-12
            assert np.abs(found.tags[axis] - found.joint_tags.sum(others)).max() < 1e-12


def test_one_pass_equals_a_chart_for_each_mask():
    grammar = Grammar.random(4, 5, 6, 2, temperature=3.0)
    sentences = [random_sentence(grammar, n, n) for n in (13, 1, 6)]
    for sentence, found in zip(sentences, word_posteriors(grammar, sentences), strict=True):
        alone = np.concatenate([masked_posteriors(grammar, sentence, [i]).words for i in range(len(sentence))])
        assert np.abs(found - alone).max() < 1e-12
        assert found.sum(1) == pytest.approx(np.ones(len(sentence)), abs=1e-12)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("odd", [1e-13, 1e-306])
def test_a_place_that_hardly_weighs_beside_others_is_as_exact(odd, engine):
    # Masking "odd" frees a probability 1e13 times that which masking another word does; or more than a marginal can hold.
    grammar = Grammar(
        {"S": 1.0},
        {("S", "A", "B"): 1.0},
        {("A", "odd"): odd, ("A", "usual"): 1 - odd, ("B", "x"): 0.25, ("B", "y"): 0.75},
    )
    (found,) = word_posteriors(grammar, [["odd", "x"]], engine=engine)
    columns = [grammar.words.index(word) for word in ("odd", "usual", "x", "y")]
    expected = [[odd, 1 - odd, 0, 0], [0, 0, 0.25, 0.75]]
    assert found[:, columns] == pytest.approx(np.array(expected), abs=1e-14)


def test_one_impossible_word_leaves_a_posterior_where_it_stands_only():
    grammar = Grammar({"S": 1.0}, {("S", "A", "B"): 1.0}, {("A", "a"): 1.0, ("B", "b"): 0.5, ("B", "c"): 0.5})
    (found,) = word_posteriors(grammar, [["a", "a"]])
    assert found.tolist() == [[0, 0, 0], [0, 0.5, 0.5]]
    (logs,) = masked_log_prob(grammar, [["a", "a"]])
    assert math.isnan(logs[0]) and logs[1] == -math.inf
    assert word_posteriors(grammar, [[]])[0].shape == (0, 3)


def test_tags_at_a_mask_are_those_of_a_word_that_says_nothing():
    # A word that every tag has with the same probability tells as much as a mask.
    grammar = Grammar.random(3, 3, 2, 0)
    wild = grammar.replaced(
        words=(*grammar.words, "any"),
        tags=np.append(grammar.tags, range(3)),
        tokens=np.append(grammar.tokens, [2] * 3),
        word_probs=np.append(grammar.word_probs / 2, [0.5] * 3),
    )
    sentence = ["w0", "w1", "w1"]
    (found,) = tag_posteriors(wild, [sentence])
    for i in range(3):
        chart = inside_outside(wild, [[*sentence[:i], "any", *sentence[i + 1 :]]])
        assert found[i] == pytest.approx(chart.tag_posteriors[0, i].numpy(), abs=1e-13)


def test_what_cant_be_masked_is_refused(monkeypatch):
    grammar = Grammar.random(2, 2, 2, 0)
    for positions in ([], [0, 0], [2], [-1]):
        with pytest.raises(OptionError, match="different positions from 0 to 1"):
            masked_posteriors(grammar, ["w0", "w1"], positions)
    with pytest.raises(GrammarError, match="'zebra'"):
        masked_posteriors(grammar, ["zebra", "w1"], [1])
    with pytest.raises(OptionError, match="joint=True"):
        _ = masked_posteriors(grammar, ["w0", "w1"], [1]).joint_words
    monkeypatch.setattr("pcfg.inference.masked_words._MOST_CHARTS", 1)
    with pytest.raises(OptionError, match="2 charts: mask fewer words"):
        masked_posteriors(grammar, ["w0", "w1"], [0, 1], joint=True)


def test_a_grammar_of_single_words():
    grammar = Grammar({"A": 0.6, "B": 0.4}, {}, {("A", "x"): 0.5, ("A", "y"): 0.5, ("B", "x"): 1.0})
    for found in (word_posteriors(grammar, [["x"]])[0][0], masked_posteriors(grammar, ["x"], [0]).words[0]):
        assert found == pytest.approx([0.7, 0.3])
