"""Scores against cases worked by hand and against a plain count over strings and index sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import TreebankError
from pcfg.scoring import (
    PUNCTUATION,
    left_branching,
    random_branching,
    right_branching,
    score_labelled,
    score_unlabelled,
)
from pcfg.trees import Tree

GOLD = Tree.parse(
    "(S (NP (DT the) (NN cat)) (VP (VBD saw) (NP (NP (DT a) (NN dog)) (PP (IN in) (NP (NN town))))) (. .))"
)
#              brackets: S 0-7, NP 0-2, VP 2-7, NP 3-7, NP 3-5, PP 5-7, NP 6-7
ATTACHED_HIGH = Tree.parse(
    "(S (NP (DT the) (NN cat)) (VP (VBD saw) (NP (DT a) (NN dog)) (PP (IN in) (NP (NN town)))) (. .))"
)


def test_one_bracket_missing():
    score = score_labelled([GOLD], [ATTACHED_HIGH])
    assert (score.matched, score.predicted, score.gold, score.complete, score.unparsed) == (6, 6, 7, 0, 0)
    assert (score.precision, score.recall, score.f1) == (1.0, 6 / 7, 12 / 13)
    assert "EVALB" in str(score) and "92.31 labelled" in str(score)
    unlabelled = score_unlabelled([GOLD], [ATTACHED_HIGH])
    # Without the full stop: 0-2, 2-7, 3-7, 3-5, 5-7 against the same without 3-7; S is the whole, NP 6-7 one word.
    assert unlabelled.f1s == (2 * 4 / 9,)
    assert "unsupervised" in str(unlabelled)


def test_labels_count_only_where_they_should():
    renamed = Tree.parse(str(GOLD).replace("(PP", "(ADJP"))
    assert score_labelled([GOLD], [renamed]).matched == 6
    assert score_unlabelled([GOLD], [renamed]).f1 == 1.0
    retagged = Tree.parse(str(GOLD).replace("(NN town)", "(NNP town)"))
    assert score_labelled([GOLD], [retagged]).complete_match == 1.0
    assert score_labelled([Tree("TOP", (GOLD,))], [GOLD]).complete_match == 1.0


def test_punctuation_does_not_move_brackets():
    # The full stop and quotes inside the phrase or outside it: the same brackets, whatever tag the parser gave them.
    gold = Tree.parse("(S (`` ``) (NP (PRP I)) (VP (VBD slept)) ('' '') (. .))")
    parse = Tree.parse("(S (NP (NN ``) (PRP I)) (VP (VBD slept) (PRT ('' '')) (. .)))")
    score = score_labelled([gold], [parse])
    assert (score.matched, score.predicted, score.gold, score.complete) == (3, 3, 3, 1)  # PRT held nothing but a quote


def test_a_chain_and_brackets_that_come_twice():
    gold = Tree.parse("(S (NP (NP (NN rain))) (VP (VBZ falls)))")
    once = Tree.parse("(S (NP (NN rain)) (VP (VBZ falls)))")
    thrice = Tree.parse("(S (NP (NP (NP (NN rain)))) (VP (VBZ falls)))")
    assert [score_labelled([gold], [parse]).matched for parse in (once, gold, thrice)] == [3, 4, 4]
    assert [score_labelled([gold], [parse]).predicted for parse in (once, gold, thrice)] == [3, 4, 5]
    assert [score_labelled([gold], [parse]).complete for parse in (once, gold, thrice)] == [0, 1, 0]


def test_particles_count_as_adverbs():
    gold = Tree.parse("(VP (VB get) (PRT (RP up)))")
    assert score_labelled([gold], [Tree.parse("(VP (VB get) (ADVP (RP up)))")]).f1 == 1.0


def test_no_parse_scores_nothing():
    score = score_labelled([GOLD, GOLD], [None, GOLD])
    assert (score.matched, score.predicted, score.gold, score.unparsed, score.complete) == (7, 7, 14, 1, 1)
    assert (score.precision, score.recall, score.complete_match) == (1.0, 0.5, 0.5)
    assert score_unlabelled([GOLD, GOLD], [None, GOLD]).f1s == (0.0, 1.0)
    nothing = score_labelled([GOLD], [None])
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


def test_corpus_and_sentence_means_differ():
    flat = Tree.parse("(S (DT a) (NN b) (NN c))")
    deep = Tree.parse("(S (DT a) (NP (NN b) (NN c)))")
    # One sentence all right, one with 3 gold brackets of which the flat parse has 2 (of 1 + 1 in all).
    assert score_labelled([deep, GOLD], [flat, GOLD]).f1 == 2 * 8 / (8 + 9)
    assert score_unlabelled([deep, GOLD], [flat, GOLD]).f1s == (0.0, 1.0)
    assert score_unlabelled([flat], [flat]).f1s == (1.0,)
    assert score_unlabelled([flat], [deep]).f1s == (0.0,)


def test_sentences_too_short_to_tell():
    short = Tree.parse("(S (DT a) (NN b) (. .))")
    score = score_unlabelled([short, GOLD], [short, GOLD])
    assert (score.skipped, score.f1s) == (1, (1.0,))
    assert score_unlabelled([short], [short]).f1 == 0.0


def test_pairs_that_do_not_fit():
    with pytest.raises(TreebankError, match=r"1 gold trees and 2 parses"):
        score_labelled([GOLD], [GOLD, GOLD])
    with pytest.raises(TreebankError, match="no gold trees"):
        score_unlabelled([], [])
    with pytest.raises(
        TreebankError, match=r"sentence 2 isn't the same in both: gold 'the cat saw a dog in town . .8 words"
    ):
        score_labelled([GOLD, GOLD], [GOLD, Tree.parse("(A b)")])


def test_baselines():
    words = ["a", "b", "c", "d"]
    assert str(right_branching(words)) == "(X (X a) (X (X b) (X (X c) (X d))))"
    assert str(left_branching(words)) == "(X (X (X (X a) (X b)) (X c)) (X d))"
    assert str(right_branching(["a"])) == "(X a)"
    assert len(right_branching(["a"] * 5000).words()) == 5000
    with pytest.raises(TreebankError, match="no words"):
        left_branching([])


def test_random_splits_are_even_and_repeatable():
    words = ["a", "b", "c", "d"]
    random = np.random.default_rng(0)
    drawn = [random_branching(words, random) for _ in range(3000)]
    assert all(tree.words() == words for tree in drawn)
    # The first split falls after word 1, 2 or 3, each a third of the time: 1,000 times, give or take 5 sd of 26.
    firsts = [len(tree.children[0].words()) for tree in drawn]
    assert all(abs(firsts.count(size) - 1000) < 130 for size in (1, 2, 3))
    assert random_branching(words, np.random.default_rng(7)) == random_branching(words, np.random.default_rng(7))


def grow(shape, tags, random):
    """A random tree over words 0, 1, ... whose tags are given; nodes of one to four children."""
    nodes = [Tree(tag, (f"w{i}",)) for i, tag in enumerate(tags)]
    while len(nodes) > 1 or nodes[0].is_preterminal:
        size = min(len(nodes), int(random.integers(1, 5)))
        first = int(random.integers(len(nodes) - size + 1))
        nodes[first : first + size] = [Tree(str(random.choice(shape)), tuple(nodes[first : first + size]))]
    return nodes[0]


def plain_brackets(tree, deleted):
    """Label and the very words below, in order: no arithmetic on positions."""
    found = []

    def visit(node):
        if node.is_preterminal:
            return [] if node.children[0] in deleted else [node.children[0]]
        below = [word for child in node.children for word in visit(child)]
        if below and node.label != "TOP":
            found.append(({"PRT": "ADVP"}.get(node.label, node.label), tuple(below)))
        return below

    return found, visit(tree)


@given(st.integers(0, 10**6))
def test_against_a_plain_count(seed):
    random = np.random.default_rng(seed)
    tags = [str(tag) for tag in random.choice(["NN", "VB", ",", "."], random.integers(1, 9), p=[0.4, 0.3, 0.2, 0.1])]
    gold = grow(["S", "NP", "PRT", "TOP"], tags, random)
    parse = grow(["S", "NP", "ADVP", "TOP"], [str(tag) for tag in random.choice(["NN", ","], len(tags))], random)
    deleted = {f"w{i}" for i, tag in enumerate(tags) if tag in PUNCTUATION}
    (wanted, kept), (found, _) = plain_brackets(gold, deleted), plain_brackets(parse, deleted)
    left, matched = list(found), 0
    for bracket in wanted:
        if bracket in left:
            left.remove(bracket)
            matched += 1
    score = score_labelled([gold], [parse])
    assert (score.matched, score.predicted, score.gold) == (matched, len(found), len(wanted))
    assert score.complete == (sorted(found) == sorted(wanted))

    def inner(tree):
        every = plain_brackets(Tree.parse(str(tree).replace("(TOP", "(X")), deleted)[0]
        return {words for _, words in every if 1 < len(words) < len(kept)}

    unlabelled = score_unlabelled([gold], [parse])
    if len(kept) < 3:
        assert unlabelled.skipped == 1
    else:
        both, size = len(inner(gold) & inner(parse)), len(inner(gold)) + len(inner(parse))
        assert unlabelled.f1s == (2 * both / size if size else 1.0,)
