"""Scores against cases worked by hand and against a plain count over strings and index sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import TreebankError
from pcfg.treebanks.evalb import (
    PUNCTUATION,
    left_branching,
    random_branching,
    read_pairs,
    right_branching,
    score_labelled,
    score_unlabelled,
)
from pcfg.treebanks.trees import Tree

GOLD = Tree.parse(
    "(S (NP (DT the) (NN cat)) (VP (VBD saw) (NP (NP (DT a) (NN dog)) (PP (IN in) (NP (NN town))))) (. .))"
)
#              brackets: S 0-7, NP 0-2, VP 2-7, NP 3-7, NP 3-5, PP 5-7, NP 6-7
ATTACHED_HIGH = Tree.parse(
    "(S (NP (DT the) (NN cat)) (VP (VBD saw) (NP (DT a) (NN dog)) (PP (IN in) (NP (NN town)))) (. .))"
)


# The valid pairs of EVALB's own sample/sample.gld and sample.tst, whose gold tree is SAMPLE unless another is given, with
# what EVALB counts: matched, gold and predicted brackets. (Of pair 19, "This" for "this", its parameter file makes one.)
SAMPLE = "(S (A (P this)) (B (Q is) (A (R a) (T test))))"
LONG = f"(S {' '.join([SAMPLE[3:-1]] * 11)})"
PAIRS = [
    (SAMPLE, 4, 4, 4),
    ("(S (A (P this)) (B (Q is) (C (R a) (T test))))", 3, 4, 4),
    ("(S (A (P this)) (B (Q is) (A (R a) (U test))))", 4, 4, 4),
    ("(S (C (P this)) (B (Q is) (A (R a) (U test))))", 3, 4, 4),
    ("(S (A (P this)) (B (Q is) (R a) (A (T test))))", 3, 4, 4),
    ("(S (A (P this) (Q is)) (A (R a) (T test)))", 2, 4, 3),
    ("(S (P this) (Q is) (R a) (T test))", 1, 4, 1),
    ("(P this) (Q is) (R a) (T test)", 0, 4, 0),
    ("(S (A (P this)) (B (Q is) (A (A (R a) (T test)))))", 4, 4, 5),
    ("(S (A (P this)) (B (Q is) (A (A (A (A (A (R a) (T test))))))))", 4, 4, 8),
    (f"(TOP {SAMPLE})", 4, 4, 4),
    ("(S (A (P this)) (B (Q is) (A (R a) (TT test))))", 4, 4, 4),
    (SAMPLE, 4, 4, 4, SAMPLE.replace("(A (P", "(A-SBJ-1 (P").replace("(B", "(B-WHATEVER")),
    (LONG, 34, 34, 34, LONG),
    *((f"{SAMPLE[:-1]} {more})", 4, 4, 4, f"{SAMPLE[:-1]} {more})") for more in ("(-NONE- *)", "(: *)")),
]


def test_evalbs_own_sample(tmp_path):
    for name, rows in (("one", PAIRS), ("skipped", [*PAIRS[:8], ("", 0, 0, 0), *PAIRS[8:], ("(())", 0, 0, 0)])):
        (tmp_path / name).write_text("".join(f"{row[0]}\n" for row in rows))
        (tmp_path / "gold").write_text("".join(f"{row[4] if len(row) > 4 else SAMPLE}\n" for row in rows))
        gold, parses = read_pairs(tmp_path / "gold", tmp_path / name)
        for row, *pair in zip(rows, gold, parses, strict=True):
            score = score_labelled(*([each] for each in pair))
            if pair[1] is None:  # what EVALB calls a skipped sentence, and leaves out
                assert (score.unparsed, score.gold, score.valid.gold) == (1, 4, 0)
            else:
                assert (score.matched, score.gold, score.predicted) == row[1:4], row
        valid = score_labelled(gold, parses).valid
        assert (valid.sentences, valid.matched, valid.gold, valid.predicted) == (16, 82, 94, 91)
        shares = (valid.recall, valid.precision, valid.f1, valid.complete_match)
        assert [f"{100 * share:.2f}" for share in shares] == ["87.23", "90.11", "88.65", "50.00"]
    everything = score_labelled(gold, parses)
    assert (everything.sentences, everything.gold, everything.f1) == (18, 102, 2 * 82 / (102 + 91))
    assert (
        "EVALB itself leaves 2 out, without a parse, or as punctuation is tagged otherwise in the parse: 88.65 (precision"
        in str(everything)
    )
    assert "EVALB itself" not in str(score_labelled(gold[:3], parses[:3]))


def test_trees_are_scored_as_they_stand():
    raw = Tree.parse("(TOP (S-TPC-1 (NP-SBJ (-NONE- *)) (VP (VB go) (NP=2 (NP (NN home))) (SBAR (-NONE- 0)))))")
    parse = Tree.parse("(S (VP (VB go) (NP (NN home))))")
    score = score_labelled([raw], [parse])
    assert (score.matched, score.gold, score.predicted) == (3, 4, 3)
    assert score_unlabelled([Tree("TOP", (GOLD,))], [Tree("S", (GOLD, Tree("-NONE-", ("*",))))]).f1s == (1.0,)
    with pytest.raises(TreebankError, match="gold tree 2 holds no words"):
        score_labelled([parse, Tree.parse("(S (-NONE- *))")], [parse, parse])


def test_labels_with_hyphens_are_compared_whole_when_asked():
    gold, parse = (
        Tree.parse("(NT-1 (T-1 a) (NT-2 (T-1 b) (T-2 c)))"),
        Tree.parse("(NT-1 (T-1 a) (NT-1 (T-1 b) (T-2 c)))"),
    )
    assert score_labelled([gold], [parse]).matched == 2  # as EVALB
    whole = score_labelled([gold], [parse], keep_labels=True)
    assert (whole.matched, whole.gold) == (1, 2) and "whole labels" in whole.convention


def test_kim_et_al_delete_more_and_count_two_words():
    gold = Tree.parse("(S (NP (NN a) (QP ($ $) (CD b) (CD c))) (VP (VB d)) (. .))")
    parse = Tree.parse("(S (NN a) (X ($ $) (X (CD b) (CD c))) (VB d) (. .))")
    # Ours, a $ b c d: gold 0-4 and 1-4; the parse 1-4 and 2-4. Without $, a b c d: gold 0-3 and 1-3, the parse 1-3 twice.
    assert score_unlabelled([gold], [parse]).f1s == (2 * 1 / 4,)
    assert score_unlabelled([gold], [parse], kim=True).f1s == (2 * 1 / 3,)
    two, one = Tree.parse("(S (A a) (B b) (. .))"), Tree.parse("(S (A a) (-LRB- -LRB-))")
    found = score_unlabelled([two, one, gold], [two, one, gold], kim=True)
    assert (found.f1s, found.skipped) == ((1.0, 1.0), 1)
    assert (score_unlabelled([two, one, gold], [two, one, gold])).skipped == 2
    assert "Kim et al. 2019's" in str(found) and "this project's" in str(score_unlabelled([gold], [gold]))


def test_files_line_by_line_and_otherwise(tmp_path):
    def pairs(gold, parses):
        (tmp_path / "gold").write_text(gold)
        (tmp_path / "parses").write_text(parses)
        wanted, found = read_pairs(tmp_path / "gold", tmp_path / "parses")
        return list(map(str, wanted)), [tree and str(tree) for tree in found]

    a, b = "(S (A a))", "(S (B b))"
    assert pairs(f"{a}\n{b}\n", f"\n{b}\n") == ([a, b], [None, b])
    assert pairs(f"{a}\r\n{b}\r\n", f"{a}\r\n\r\n") == ([a, b], [a, None])
    assert pairs("(S\n  (A a))\n\n(S\n (B b))\n", f"{a}\n(())\n") == ([a, b], [a, None])  # gold in a treebank's layout
    assert pairs(f"{a}\n\n{b}\n", f"{a}\n{b}\n\n\n") == ([a, b], [a, b])  # the layout's empty lines, and the end's
    assert pairs(f"{a}\n\n{b}\n", f"{a}\n\n{b}\n") == ([a, b], [a, b])  # no sentence in either
    assert pairs(f"{a} {b}\n", f"{a}\n{b}\n") == ([a, b], [a, b])
    with pytest.raises(TreebankError, match="there is no tree for parse 2"):
        pairs(f"{a}\n\n", f"{a}\n{b}\n")


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
    assert score.valid.sentences == 0  # for EVALB the sentence has another length here than there
    assert score_labelled([gold, GOLD], [Tree.parse(str(gold).replace("(. ", "(: ")), GOLD]).valid.sentences == 2


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
