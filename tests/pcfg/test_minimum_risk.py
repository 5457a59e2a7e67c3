"""Minimum-risk trees against every tree there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import OptionError, TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.inference.minimum_risk import PlainLabels, mbr_tree, minimum_risk_tree
from pcfg.treebanks.transforms import undo
from pcfg.treebanks.trees import Tree


def bracketings(start, end):
    """All sets of spans that cross nowhere, as trees of any number of children: each set without the whole span."""
    if end - start == 1:
        return [frozenset()]
    found = set()
    for middle in range(start + 1, end):
        for left, right in product(bracketings(start, middle), bracketings(middle, end)):
            for more in product((0, 1), repeat=2):
                spans = {span for span, on in zip(((start, middle), (middle, end)), more, strict=True) if on}
                found.add(left | right | spans)
    return list(found)


def worth(marginals, cost, spans):
    """What a bracketing brings: each span, and the whole, bears whichever set of labels brings most."""
    n = len(marginals)
    every = {*spans, (0, n), *((i, i + 1) for i in range(n))}
    subsets = list(product((0, 1), repeat=marginals.shape[2]))
    return sum(
        max(sum(on * (marginals[span][k] - cost) for k, on in enumerate(chosen)) for chosen in subsets)
        for span in every
    )


def value(tree, labels, marginals, cost):
    return sum(marginals[start, end, labels.index(label)] - cost for label, start, end in tree.spans())


@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 0.2, 0.4, 0.7]))
def test_no_tree_brings_more(seed, n, cost):
    random = np.random.default_rng(seed)
    labels = ["NP", "S", "VP"]
    marginals = random.random((n, n + 1, 3)) ** 3
    words = [f"w{i}" for i in range(n)]
    tree = mbr_tree(words, ["T"] * n, marginals, labels, cost)
    assert tree.words() == words and tree.tags() == ["T"] * n
    best = max(worth(marginals, cost, spans) for spans in bracketings(0, n))
    top = marginals[0, n]
    if n > 1 and (top <= cost).all():
        best += top.max() - cost  # a root there must be
    assert value(tree, labels, marginals, cost) == pytest.approx(best, abs=1e-12)
    assert len(set(tree.spans())) == len(tree.spans())


def test_a_dear_label_leaves_a_flat_tree_with_the_likeliest_root():
    marginals = np.full((3, 4, 2), 0.1)
    marginals[0, 3] = 0.2, 0.3
    tree = mbr_tree(["a", "b", "c"], ["A", "B", "C"], marginals, ["S", "FRAG"], 0.4)
    assert str(tree) == "(FRAG (A a) (B b) (C c))"


def test_a_chain_stands_in_the_order_of_its_depths():
    plain = PlainLabels.of_symbols(["S+VP", "VP", "NP^S", "NP^S|NP"], ["NP+NN^S", "NN", "VB"])
    assert plain.labels == ("NP", "S", "VP") and plain.tags == ("NN", "VB")
    marginals, tags = np.zeros((2, 3, 4)), np.array([[0.0, 0.4, 0.6], [0.7, 0.3, 0.0]])
    marginals[0, 2] = 0.5, 0.3, 0.0, 0.2  # S over VP half the time, VP alone, and what binarisation made
    tree = minimum_risk_tree(["go", "home"], marginals, tags, plain, 0.4)
    assert str(tree) == "(S (VP (VB go) (NP (NN home))))"
    phrases, _ = plain.sum_phrases(marginals, tags)
    assert phrases[0, 2] == pytest.approx([0.0, 0.5, 0.8]) and phrases[1, 2] == pytest.approx([0.7, 0.0, 0.0])
    assert plain.sum_tags(tags) == pytest.approx(np.array([[0.4, 0.6], [1.0, 0.0]]))


def test_a_certain_parse_comes_back_with_its_binarisation_undone():
    # The marginals of one tree are 1 on its items: the answer is that tree, undone by `undo`, which knows nothing of this.
    text = "(S (NP+NN^S dogs) (S|NP (VP^S (VB^VP chase) (NP+PRP^VP it)) (.^S .)))"
    nonterminals, preterminals = ["S", "S|NP", "VP^S"], [".^S", "NP+NN^S", "NP+PRP^VP", "VB^VP"]
    marginals, tags = np.zeros((4, 5, 3)), np.zeros((4, 4))
    for label, start, end in Tree.parse(text).spans():
        marginals[start, end, nonterminals.index(label)] = 1.0
    for word, tag in enumerate(Tree.parse(text).tags()):
        tags[word, preterminals.index(tag)] = 1.0
    plain = PlainLabels.of_symbols(nonterminals, preterminals)
    tree = minimum_risk_tree(["dogs", "chase", "it", "."], marginals, tags, plain, 0.4)
    assert tree == undo(Tree.parse(text))
    assert str(tree) == "(S (NP (NN dogs)) (VP (VB chase) (NP (PRP it))) (. .))"


def test_one_word():
    plain = PlainLabels.of_symbols(["S"], ["NP+NN", "NN"])
    for share, expected in ((0.9, "(NP (NN rain))"), (0.1, "(NN rain)")):
        tree = minimum_risk_tree(["rain"], np.zeros((1, 2, 1)), np.array([[share, 1 - share]]), plain, 0.4)
        assert str(tree) == expected


def test_what_does_not_fit():
    plain = PlainLabels.of_symbols(["S"], ["NN"])
    for words in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(TreebankError, match=f"a sentence of {len(words)} words"):
            minimum_risk_tree(words, np.zeros((2, 3, 1)), np.ones((2, 1)), plain, 0.4)
    with pytest.raises(OptionError, match="between 0 and 1"):
        mbr_tree(["a"], ["A"], np.zeros((1, 2, 1)), ["S"], 1.5)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("S -> X C [0.65] | Y C [0.35]\nX -> A B [1.0]\nY -> A B [1.0]\nC -> 'c' [1.0]", "(S {} (C c))"),
        ("S -> X [0.65] | Y [0.35]\nX -> A B [1.0]\nY -> A B [1.0]", "(S {})"),  # with chains, whose labels differ
    ],
)
def test_a_charts_labels_are_put_where_they_are_likelier_than_their_price(rules, expected):
    grammar = Grammar.from_text(f"{rules}\nA -> 'a' [1.0]\nB -> 'b' [1.0]")
    chart = inside_outside(grammar, [["a", "b", "c"] if "'c'" in rules else ["a", "b"]], device="cpu")
    words = "(A a) (B b)"
    for cost, put in ((0.3, {f"(X (Y {words}))", f"(Y (X {words}))"}), (0.5, {f"(X {words})"}), (0.7, {words})):
        assert str(chart.mbr_trees(cost)[0]) in {expected.format(labels) for labels in put}, cost
