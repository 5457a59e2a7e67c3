"""Transforms of trees worked by hand, and undone whatever the labels hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import TreebankError
from pcfg.treebanks.transforms import chain, is_made, transform, undo
from pcfg.treebanks.trees import Tree
from tests.support.odd_trees import ORDERS, odd_trees

FLAT = Tree.parse("(S (NP (NNP Ann)) (VP (VBZ sings) (NP (DT the) (JJ old) (JJ red) (NN song))) (. .))")


@pytest.mark.parametrize(
    "v, h, tags, expected",
    [
        (
            *(1, 0, False),
            "(S (NP+NNP Ann) (S| (VP (VBZ sings) (NP (DT the) (NP| (JJ old) (NP| (JJ red) (NN song))))) (. .)))",
        ),
        (
            *(2, 1, False),
            "(S (NP+NNP Ann) (S|NP+NNP (VP^S (VBZ sings) (NP^VP (DT the) (NP^VP|DT (JJ old) (NP^VP|JJ (JJ red) (NN song))))) (. .)))",
        ),
        (
            *(1, math.inf, True),
            "(S (NP+NNP^S Ann) (S|NP+NNP (VP (VBZ^VP sings) (NP (DT^NP the) (NP|DT (JJ^NP old) (NP|DT|JJ (JJ^NP red) (NN^NP song))))) (.^S .)))",
        ),
    ],
)
def test_transforms_by_hand(v, h, tags, expected):
    assert str(transform(FLAT, v=v, h=h, annotate_tags=tags)) == expected
    assert undo(Tree.parse(expected)) == FLAT


def test_what_stands_under_a_chain_says_its_lowest_node():
    tree = Tree.parse("(S (VP (VB go) (NP (NN home))))")
    assert str(transform(tree)) == "(S+VP (VB^VP go) (NP+NN^VP home))"


def test_orders_that_make_no_sense():
    for v, h, says in ((0, 1, "`v` is 0"), (3, 1, "`v` is 3"), (1, -1, "h is -1"), (1, 0.5, "h is 0.5")):
        with pytest.raises(TreebankError, match=says):
            transform(FLAT, v=v, h=h)
    with pytest.raises(TreebankError, match="isn't a whole parse"):
        undo(Tree.parse("(S|NP (A b) (C d))"))


@given(odd_trees, st.sampled_from(ORDERS), st.booleans())
def test_undone_whatever_signs_the_labels_hold(tree, orders, tags):
    v, h = orders
    made = transform(tree, v=v, h=h, annotate_tags=tags)
    assert undo(made) == tree
    assert all(node.is_preterminal or len(node.children) == 2 for node in made.nodes())
    assert made.words() == tree.words()


def test_what_a_label_stands_for():
    assert chain("S+VP^S") == ("S", "VP") and chain(r"A\+B^C") == ("A+B",) and chain("NN") == ("NN",)
    assert chain("NP^VP|DT") == () and is_made("NP^VP|DT")
    assert chain(r"ADVP\|PRT") == ("ADVP|PRT",) and not is_made(r"ADVP\|PRT")


@pytest.mark.real
def test_undone_on_every_tree_of_the_sample(untyped):
    code = """
import math
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank
from pcfg.treebanks.transforms import transform, undo

trees = clean_trees(nltk_treebank())
for v, h in [(1, 0), (2, 1), (2, 2), (1, math.inf)]:
    for tree in trees:
        made = transform(tree, v=v, h=h, annotate_tags=v == 2)
        assert undo(made) == tree, (v, h, str(tree))
        assert all(node.is_preterminal or len(node.children) == 2 for node in made.nodes()), (v, h, str(tree))
print(len(trees))
"""
    assert untyped(code) == "3914\n"
