"""Decoding: trees from numbers for spans or for gaps between words, and their F1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from pcfg.inference.minimum_risk import best_splits
from pcfg.treebanks.evalb import PUNCTUATION, inner_spans, places, span_f1
from pcfg.treebanks.trees import Tree

SpanArray = Int64[np.ndarray, "_ 2"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Spans of a sentence's true tree that count in F1: not those of one word or of the whole sentence.

    Attributes:
        before: how many counted words stand before each place between words.
    """

    before: tuple[int, ...]
    spans: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, tree: Tree, *, punctuation: bool) -> "Reference":
        """Take a tree's spans; punctuation counts as words in a grammar's own trees and is dropped in treebanks'."""
        before = places(tree.tags(), () if punctuation else PUNCTUATION)
        return cls(tuple(before), frozenset(inner_spans(tree.spans(), before)))

    def f1(self, spans: SpanArray) -> float | None:
        """F1 of spans (first word, place after the last); None for fewer than three words, which have no span that counts."""
        if self.before[-1] < 3:
            return None
        inner = inner_spans(((None, start, end) for start, end in spans.tolist()), self.before)
        return span_f1(set(self.spans), inner)


def minimum_risk(tables: Sequence[Float64[np.ndarray, "_ _"]]) -> list[SpanArray]:
    """Find each sentence's binary tree of highest expected recall (Goodman 1996), the one whose spans' numbers have the highest sum.

    Args:
        tables: entry (i, j) is the probability of a constituent over words i to j.
    """
    trees: list[SpanArray] = [np.zeros((0, 2), np.int64)] * len(tables)
    lengths = np.array([len(table) for table in tables])
    for n in np.unique(lengths).tolist():
        same = np.flatnonzero(lengths == n)
        gains = np.zeros((len(same), n, n + 1))
        gains[:, :, 1:] = np.triu(np.stack([tables[int(i)] for i in same]), 1)  # words are in every tree
        splits = best_splits(gains)
        for row, i in enumerate(same):
            trees[i] = _walk(n, splits[row])
    return trees


def split_at_gaps(scores: Float64[np.ndarray, " gaps"]) -> SpanArray:
    """Split spans from the top down at the gap between words with the highest score; return the tree's spans."""
    n = len(scores) + 1
    splits = np.zeros((n, n + 1), np.int64)
    for start in range(n):
        best = start
        for end in range(start + 2, n + 1):  # words start..end-1, gaps start..end-2
            if scores[end - 2] > scores[best]:
                best = end - 2
            splits[start, end] = best + 1
    return _walk(n, splits)


def _walk(n: int, splits: Int64[np.ndarray, "n places"]) -> SpanArray:
    todo, spans = [(0, n)], list[tuple[int, int]]()
    while todo:
        start, end = todo.pop()
        if end - start > 1:
            spans.append((start, end))
            middle = int(splits[start, end])
            todo += [(start, middle), (middle, end)]
    return np.array(spans, np.int64).reshape(-1, 2)


def branching(n: int, kind: str, random: np.random.Generator) -> SpanArray:
    """Spans of a `left`- or `right`-branching tree, or of a `random` one whose spans split at even odds."""
    scores = {"right": -np.arange(n - 1.0), "left": np.arange(n - 1.0)}.get(kind)
    if scores is not None:
        return split_at_gaps(scores)
    splits = np.array(
        [[random.integers(start + 1, end) if end - start > 1 else 0 for end in range(n + 1)] for start in range(n)]
    ).reshape(n, n + 1)
    return _walk(n, splits)


def lca_depths(tree: Tree) -> Int64[np.ndarray, " gaps"]:
    """Depth of the lowest common ancestor of each word and the next; the root's is 0, a chain of one child one node."""
    n, depths = len(tree.words()), np.zeros(len(tree.words()) - 1, np.int64)
    for start, end in sorted({(start, end) for _, start, end in tree.spans()}):
        if end - start > 1 and end - start < n:
            depths[start : end - 1] += 1
    return depths


def tree_distances(tree: Tree) -> Float64[np.ndarray, "n n"]:
    """Edges between each two words in the tree, chains of one child counting as one node."""
    n = len(tree.words())
    spans = {(start, end) for _, start, end in tree.spans() if end - start > 1} | {(0, n)}
    inside = np.zeros((n, n))  # nodes that hold both words
    for start, end in spans:
        inside[start:end, start:end] += 1
    depth = np.diag(inside)
    distances = depth[:, None] + depth[None, :] - 2 * inside + 2
    np.fill_diagonal(distances, 0.0)
    return distances
