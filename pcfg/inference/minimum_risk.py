"""The tree of most expected gain: labelled recall with a price on each label (after Goodman 1996, section 3).

A grammar's symbols carry parents, sisters and collapsed chains. Recall counts the plain labels that they stand for, so
marginals are summed over the symbols of each label first; nodes that binarisation added have no label and don't count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from pcfg.errors import OptionError, TreebankError
from pcfg.treebanks.transforms import chain
from pcfg.treebanks.trees import Tree


@dataclass(frozen=True, eq=False)
class PlainLabels:
    """Which plain labels each symbol of a grammar stands for.

    Attributes:
        labels: phrase labels; `tags`: labels over words.
        symbols, phrases, depths: symbol number, label number and place in the symbol's chain (0 at the top), one entry
            for each label of each symbol; a label that comes twice in a chain counts once, where it is highest.
        word_tags: of each preterminal, the number of its tag.
    """

    labels: tuple[str, ...]
    tags: tuple[str, ...]
    symbols: Int64[np.ndarray, " entries"]
    phrases: Int64[np.ndarray, " entries"]
    depths: Int64[np.ndarray, " entries"]
    word_tags: Int64[np.ndarray, " T"]

    @classmethod
    def of_symbols(
        cls,
        nonterminals: Sequence[str],
        preterminals: Sequence[str],
        chain_of: Callable[[str], Sequence[str]] = chain,
    ) -> "PlainLabels":
        """From symbol names; `chain_of` gives the labels that a name stands for, top first."""
        chains = [tuple(chain_of(name)) for name in nonterminals]
        over_words = [tuple(chain_of(name)) for name in preterminals]
        phrases = [*chains, *(names[:-1] for names in over_words)]
        labels = tuple(sorted({label for names in phrases for label in names}))
        tags = tuple(sorted({names[-1] for names in over_words}))
        entries = [
            (symbol, labels.index(label), names.index(label))
            for symbol, names in enumerate(phrases)
            for label in dict.fromkeys(names)
        ]
        numbers, places, depths = np.array(entries, np.int64).reshape(-1, 3).T
        return cls(
            labels, tags, numbers, places, depths, np.array([tags.index(names[-1]) for names in over_words], np.int64)
        )

    def sum_phrases(
        self, label_marginals: Float64[np.ndarray, "n places N"], tag_posteriors: Float64[np.ndarray, "n T"]
    ) -> tuple[Float64[np.ndarray, "n places K"], Float64[np.ndarray, "n places K"]]:
        """Marginals of plain labels, and each one's expected place in its chain times that marginal."""
        inner, place = label_marginals.shape[2], np.arange(len(label_marginals))
        summed = []
        for weight in (1.0, self.depths):
            table = np.zeros((inner + tag_posteriors.shape[1], len(self.labels)))
            table[self.symbols, self.phrases] = weight
            summed.append(label_marginals @ table[:inner])
            summed[-1][place, place + 1] += tag_posteriors @ table[inner:]
        return summed[0], summed[1]

    def sum_tags(self, tag_posteriors: Float64[np.ndarray, "n T"]) -> Float64[np.ndarray, "n tags"]:
        """Marginals of plain tags from those of preterminals over each word."""
        table = np.zeros((len(self.word_tags), len(self.tags)))
        table[np.arange(len(self.word_tags)), self.word_tags] = 1.0
        return tag_posteriors @ table


def minimum_risk_tree(
    words: Sequence[str],
    label_marginals: Float64[np.ndarray, "n places N"],
    tag_posteriors: Float64[np.ndarray, "n T"],
    plain: PlainLabels,
    cost: float,
) -> Tree:
    """`mbr_tree` from what a chart gives: marginals of nonterminals [n, n + 1, N] and of each word's preterminal [n, T].

    Raises OptionError for a cost outside 0..1, TreebankError when the marginals aren't those of the words.
    """
    n = len(words)
    if not n or label_marginals.shape[:2] != (n, n + 1) or len(tag_posteriors) != n:
        raise TreebankError(f"marginals of shape {label_marginals.shape} aren't those of a sentence of {n} words")
    phrases, depths = plain.sum_phrases(label_marginals, tag_posteriors)
    tags = [plain.tags[best] for best in plain.sum_tags(tag_posteriors).argmax(axis=1)]
    return mbr_tree(words, tags, phrases, plain.labels, cost, depths)


def check_cost(cost: float) -> None:
    """Raise OptionError for what can't be the cost of a label."""
    if not 0 <= cost <= 1:
        raise OptionError(f"the `cost` of a label is {cost}: it must lie between 0 and 1")


def mbr_tree(
    words: Sequence[str],
    tags: Sequence[str],
    marginals: Float64[np.ndarray, "n places K"],
    labels: Sequence[str],
    cost: float,
    depths: Float64[np.ndarray, "n places K"] | None = None,
) -> Tree:
    """The tree that maximises the sum, over its labelled spans, of marginal minus cost.

    A span can bear several labels (a chain) or none; one without goes, so nodes have as many children as it takes. The
    root of two words or more always has a label, the best one when none pays.

    Args:
        marginals: [n, n + 1, K], expected number of each label over words i..j-1, j > i.
        cost: the price of a label, from 0 to 1. At 0 every label that is possible is put; .3 to .4 gives the best F1 on the Penn
            Treebank.
        depths: marginal times expected place in the chain: orders the labels of one span, likelier first without it.
    """
    check_cost(cost)
    n = len(words)
    gains = np.maximum(marginals - cost, 0.0).sum(axis=2)
    split = best_splits(gains[None])[0]
    done: list[tuple[Tree, ...]] = []
    todo = [(0, n, False)]
    while todo:
        start, end, ready = todo.pop()
        if end - start == 1:
            below: tuple[Tree, ...] = (Tree(tags[start], (words[start],)),)
        elif ready:
            right, left = done.pop(), done.pop()
            below = left + right
        else:
            middle = int(split[start, end])
            todo += [(start, end, True), (middle, end, False), (start, middle, False)]
            continue
        here = marginals[start, end]
        chosen = np.flatnonzero(here > cost)
        if not len(chosen) and end - start == n > 1:
            chosen = here.argmax(keepdims=True)
        order = -here[chosen] if depths is None else depths[start, end, chosen] / np.maximum(here[chosen], 1e-300)
        for label in chosen[np.argsort(-order, kind="stable")]:  # from the bottom up
            below = (Tree(labels[label], below),)
        done.append(below)
    return done[0][0]


def best_splits(gains: Float64[np.ndarray, "batch n places"]) -> Int64[np.ndarray, "batch n places"]:
    """Where each span of each sentence splits in its binary tree of most gain; the leftmost of equals.

    Args:
        gains: what a tree gains by a node over words i..j-1, at [i, j], for sentences of n words; places are n + 1.
    """
    batch, n, places = gains.shape
    best, splits = np.zeros((batch, n, places)), np.zeros((batch, n, places), np.int64)
    word = np.arange(n)
    best[:, word, word + 1] = gains[:, word, word + 1]
    for width in range(2, n + 1):
        start = np.arange(n - width + 1)
        middle = start[:, None] + np.arange(1, width)[None]
        sums = best[:, start[:, None], middle] + best[:, middle, (start + width)[:, None]]
        splits[:, start, start + width] = start + 1 + sums.argmax(2)
        best[:, start, start + width] = gains[:, start, start + width] + sums.max(2)
    return splits
