"""Decoding, tree numbers and intervals against enumeration, plain loops and the project's own scorer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.treebanks.evalb import left_branching, right_branching, score_unlabelled
from pcfg.treebanks.trees import Tree
from probes.decoding import (
    Reference,
    branching,
    lca_depths,
    minimum_risk,
    split_at_gaps,
    tree_distances,
)
from probes.intervals import bootstrap, pearson, r_squared, ratio, spearman, squares


def all_trees(start, end):
    """Every binary tree over words start..end-1, as sets of spans."""
    if end - start == 1:
        return [frozenset()]
    return [
        left | right | {(start, end)}
        for middle in range(start + 1, end)
        for left in all_trees(start, middle)
        for right in all_trees(middle, end)
    ]


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_minimum_risk_finds_the_best_of_all_trees(n, seed):
    table = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    found = frozenset(map(tuple, minimum_risk([table])[0].tolist()))
    gain = {tree: sum(table[start, end - 1] for start, end in tree) for tree in all_trees(0, n)}
    assert found in gain
    assert gain[found] == pytest.approx(max(gain.values()))


def test_minimum_risk_of_many_sentences_is_that_of_each_alone():
    random = np.random.default_rng(0)
    tables = [np.triu(random.random((n, n)), 1) for n in (2, 5, 5, 3, 7, 1)]
    together = minimum_risk(tables)
    for table, spans in zip(tables, together, strict=True):
        assert spans.tolist() == minimum_risk([table])[0].tolist()


TREES = [
    "(S (NP (DT the) (NN dog)) (VP (VBZ sees) (NP (DT a) (JJ small) (NN cat))) (. .))",
    "(S (NP (NP (DT a) (NN cat)) (PP (IN in) (NP (DT a) (NN hat)))) (VP (VBZ sleeps)))",
    "(S (NP (PRP it)) (VP (VBZ is)))",
    "(X (A a) (Y (Y (B b) (C c)) (D d)))",
]


@pytest.mark.parametrize("make", [left_branching, right_branching])
def test_f1_is_the_scorers(make):
    for text in TREES:
        gold = Tree.parse(text)
        wanted = score_unlabelled([gold], [make(gold.words())])
        spans = np.array([(start, end) for _, start, end in make(gold.words()).spans()]).reshape(-1, 2)
        found = Reference.of(gold, punctuation=False).f1(spans)
        assert found == (pytest.approx(wanted.f1s[0]) if wanted.f1s else None)


def test_punctuation_counts_in_a_grammars_own_trees():
    gold = Tree.parse("(S (A a) (B b) (. .))")
    nothing = np.zeros((0, 2), np.int64)
    assert Reference.of(gold, punctuation=False).f1(nothing) is None  # two words are left
    assert Reference.of(gold, punctuation=True).f1(nothing) == 1.0


def walk_depths(tree):
    """Depth of the lowest common ancestor of neighbours, and distances, by walking paths from the root."""
    paths = []

    def visit(node, path):
        if node.is_preterminal:
            paths.append(path)
            return
        for child in node.children:
            # a chain of one child counts as one node
            visit(child, path if len(node.children) == 1 else (*path, id(node)))

    visit(tree, ())
    common = [[sum(a == b for a, b in zip(p, q, strict=False)) for q in paths] for p in paths]
    return paths, common


@pytest.mark.parametrize("text", [*TREES, "(S (NP (NP (DT the) (NN dog))) (VP (VBZ runs)))"])
def test_depths_and_distances_are_those_of_a_walk(text):
    tree = Tree.parse(text)
    paths, common = walk_depths(tree)
    assert lca_depths(tree).tolist() == [common[i][i + 1] - 1 for i in range(len(paths) - 1)]
    wanted = [
        [0 if i == j else len(paths[i]) + len(paths[j]) - 2 * common[i][j] + 2 for j in range(len(paths))]
        for i in range(len(paths))
    ]
    assert tree_distances(tree).tolist() == wanted


@given(st.integers(2, 7), st.integers(0, 1000))
def test_lca_depths_spell_their_tree(n, seed):
    spans = branching(n, "random", np.random.default_rng(seed))
    made = {tuple(span) for span in spans.tolist()}

    def tree(start, end):
        if end - start == 1:
            return Tree("X", (f"w{start}",))
        middle = next(
            m for m in range(start + 1, end) if {(s, e) for s, e in ((start, m), (m, end)) if e - s > 1} <= made
        )
        return Tree("X", (tree(start, middle), tree(middle, end)))

    found = split_at_gaps(-lca_depths(tree(0, n)).astype(float))
    assert {tuple(span) for span in found.tolist()} == made


def test_branching_trees():
    random = np.random.default_rng(0)
    assert {tuple(s) for s in branching(4, "right", random).tolist()} == {(0, 4), (1, 4), (2, 4)}
    assert {tuple(s) for s in branching(4, "left", random).tolist()} == {(0, 4), (0, 3), (0, 2)}
    assert len(branching(1, "left", random)) == 0


@given(st.integers(0, 1000))
def test_statistics_of_sums_are_those_of_the_rows(seed):
    random = np.random.default_rng(seed)
    wanted, owners = random.random(40), np.sort(random.integers(0, 6, 40))
    predicted = wanted + 0.3 * random.normal(size=40)
    sums = squares(predicted, wanted, owners, 6).sum(0)
    assert r_squared(sums) == pytest.approx(
        1 - ((predicted - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum()
    )
    assert pearson(sums) == pytest.approx(np.corrcoef(predicted, wanted)[0, 1])


def test_bootstrap_is_that_of_a_plain_loop():
    random = np.random.default_rng(1)
    stats = np.stack([random.random((2, 30)), np.ones((2, 30))], 2)
    value, low, high, seeds = bootstrap(stats, ratio, 7)
    assert value == pytest.approx(stats[..., 0].mean())
    assert seeds == pytest.approx(tuple(stats[..., 0].mean(1)))
    means = [stats[:, random.integers(30, size=30), 0].mean() for _ in range(4000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)


def test_what_never_changes_has_no_correlation():
    flat, wanted = np.ones(5), np.arange(5.0)
    assert spearman(flat, wanted) == 0.0
    assert pearson(squares(flat, wanted, np.zeros(5, int), 1).sum(0)) == 0.0
    assert np.isnan(r_squared(squares(wanted, flat, np.zeros(5, int), 1).sum(0)))
