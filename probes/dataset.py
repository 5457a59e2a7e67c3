"""Dataset: the sentences that probes are trained and scored on, with targets for their spans, and their trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64, Int64

from pcfg.devices import Device
from probes.alignment import named
from probes.errors import ProbeError
from surgery.progress import Progress, silent

if TYPE_CHECKING:
    from pcfg.grammars.grammar import Grammar
    from pcfg.sampling.samples import Samples
    from pcfg.treebanks.trees import Tree

_LABELS = 12
_TEST_SHARE = 0.25
_BATCH = 48


@dataclass(frozen=True, eq=False)
class Dataset:
    """Sentences with targets for every span of two words or more that isn't the whole sentence.

    A sentence's spans come in the order of `spans_of(n)`; those of all sentences lie one after another.

    Attributes:
        trees: the true tree of each sentence: what it was made with, or the annotators'.
        labels: names of the nonterminals that are probed for, the most frequent first.
        targets: for each span, the probability of a constituent of any label, and of each of `labels`: exact marginals by
            a grammar, else 1 and 0 from the trees.
        exact: whether the targets are marginals.
        train, test: numbers of the sentences.
        grammar: the grammar, when there is one.
        bounds, span_bounds: where each sentence's words and spans begin.
    """

    sentences: tuple[tuple[str, ...], ...]
    trees: tuple["Tree", ...]
    labels: tuple[str, ...]
    targets: Float32[np.ndarray, "spans labels"]
    exact: bool
    train: Int64[np.ndarray, " train"]
    test: Int64[np.ndarray, " test"]
    grammar: "Grammar | None"

    @classmethod
    def of_grammar(
        cls,
        grammar: "Grammar",
        sentences: "Samples | Sequence[Sequence[str]]",
        *,
        seed: int = 0,
        device: Device | None = None,
        progress: Progress = silent,
    ) -> "Dataset":
        """Compute exact marginals of a grammar's sentences.

        The true tree is the one that a sentence was drawn with; where only sentences are given, a draw from the posterior
        over trees, which is distributed alike.

        Raises:
            GrammarError: a word that the grammar doesn't know.
            ProbeError: a sentence without a parse, or too few sentences.
        """
        from pcfg.inference.chart import inside_outside
        from pcfg.inference.engines import chart_numbers
        from pcfg.learning.excess_loss import generative
        from pcfg.sentences import batches, check_words

        grammar, words = generative(grammar), [tuple(sentence) for sentence in sentences]
        check_words(grammar, words, "the sentences")
        names = _frequent(grammar)
        columns = [grammar.nonterminals.index(name) for name in names]
        targets: list[np.ndarray] = [np.zeros((0, 1 + len(names)), np.float32)] * len(words)
        drawn: list[Tree | None] = [None] * len(words)
        known = hasattr(sentences, "tree")
        done, unparsed = 0, list[int]()
        for numbers in batches(words, lambda n: chart_numbers(grammar, n)):
            batch = [int(i) for i in numbers]
            chart = inside_outside(grammar, [words[i] for i in batch], device=device)
            whole = chart.span_marginals.cpu().numpy()
            each = chart.label_marginals[..., columns].cpu().numpy()
            trees = None if known else chart.sample_trees(1, seed=seed)
            for row, i in enumerate(batch):
                if not np.isfinite(float(chart.log_z[row])):
                    unparsed.append(i)
                    continue
                first, last = spans_of(len(words[i]))
                targets[i] = np.column_stack([whole[row, first, last + 1], each[row, first, last + 1]]).astype(
                    np.float32
                )
                drawn[i] = sentences.tree(i) if trees is None else trees[row][0]  # type: ignore[union-attr]
            done += len(batch)
            progress(done, len(words), "exact marginals")
        if unparsed:  # the batches aren't in order
            first_bad = min(unparsed)
            more = f", nor have {len(unparsed) - 1:,} others" if unparsed[1:] else ""
            raise ProbeError(
                f"{named(first_bad + 1, words[first_bad])} has no parse by the grammar{more}: leave out what it can't parse"
            )
        return _whole(words, drawn, names, targets, True, seed, grammar)

    @classmethod
    def of_trees(cls, trees: Sequence["Tree"], *, seed: int = 0) -> "Dataset":
        """Take targets from annotated trees, cleaned by `pcfg.treebanks.cleaning.clean_trees`: 1 for a tree's span, else 0."""
        names = _labels(trees)
        targets = []
        for tree in trees:
            length = len(tree.words())
            first, last = spans_of(length)
            table = np.zeros((length, length, 1 + len(names)), np.float32)
            for label, start, end in tree.spans():
                table[start, end - 1, 0] = 1.0
                if label in names:
                    table[start, end - 1, 1 + names.index(label)] = 1.0
            targets.append(table[first, last])
        words = [tuple(tree.words()) for tree in trees]
        return _whole(words, trees, names, targets, False, seed, None)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " sentences"]:
        """Number of words of each sentence."""
        return np.array([len(sentence) for sentence in self.sentences], np.int64)

    @cached_property
    def bounds(self) -> Int64[np.ndarray, " bounds"]:
        """Where each sentence's words begin."""
        return np.append(0, np.cumsum(self.lengths))

    @cached_property
    def span_bounds(self) -> Int64[np.ndarray, " bounds"]:
        """Where each sentence's spans begin."""
        return np.append(0, np.cumsum(np.maximum(self.lengths * (self.lengths - 1) // 2 - 1, 0)))

    def span_rows(self, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " rows"]:
        """Rows of `targets` that belong to some sentences, one after another."""
        return _ranges(self.span_bounds, numbers)

    def word_rows(self, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " rows"]:
        """Rows of words that belong to some sentences, one after another."""
        return _ranges(self.bounds, numbers)

    def ends(
        self, numbers: Int64[np.ndarray, " some"]
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
        """Rows of the first and of the last word of each span of some sentences, one sentence after another."""
        rows, left, right = self.flat(numbers)
        return rows[left], rows[right]

    def span_lengths(self, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " rows"]:
        """Number of words of each span of some sentences, one sentence after another."""
        left, right = self.ends(numbers)
        return right - left + 1

    def owners(self, numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " rows"]:
        """Place in `numbers` of the sentence that each span belongs to."""
        return np.repeat(np.arange(len(numbers)), np.diff(self.span_bounds)[numbers])

    def batches(
        self, numbers: Int64[np.ndarray, " some"], random: np.random.Generator | None = None, size: int = _BATCH
    ) -> list[Int64[np.ndarray, " batch"]]:
        """Split places in `numbers` into batches of about `size`, in order or shuffled by `random`."""
        order = np.arange(len(numbers)) if random is None else random.permutation(len(numbers))
        return np.array_split(order, -(-len(numbers) // size))

    def flat(
        self, numbers: Int64[np.ndarray, " some"], *, every: bool = False
    ) -> tuple[Int64[np.ndarray, " words"], Int64[np.ndarray, " spans"], Int64[np.ndarray, " spans"]]:
        """Rows of the words of some sentences, and the first and last word of each span as places among those rows.

        Args:
            every: whether the whole sentence is among the spans.
        """
        lengths = self.lengths[numbers].tolist()
        starts = (np.cumsum(lengths) - lengths).tolist()
        pairs = [(_pairs_of(n) if every else spans_of(n)) for n in lengths]
        left = np.concatenate([pair[0] + start for pair, start in zip(pairs, starts, strict=True)])
        right = np.concatenate([pair[1] + start for pair, start in zip(pairs, starts, strict=True)])
        return self.word_rows(numbers), left, right

    def full(self, numbers: Int64[np.ndarray, " some"], values: np.ndarray) -> list[Float64[np.ndarray, "_ _"]]:
        """Put values of spans into one table a sentence: entry (i, j) for words i to j; 1 for the whole sentence, 0 elsewhere."""
        tables, first = [], 0
        for i in numbers:
            n = int(self.lengths[i])
            left, right = spans_of(n)
            table = np.zeros((n, n))
            table[left, right] = values[first : first + len(left)]
            table[0, n - 1] = 1.0
            first += len(left)
            tables.append(table)
        return tables


@cache
def _pairs_of(n: int) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    return np.triu_indices(n, 1)


@cache
def spans_of(n: int) -> tuple[Int64[np.ndarray, " spans"], Int64[np.ndarray, " spans"]]:
    """First and last word of each span of two words or more in a sentence of n, without the whole sentence."""
    first, last = np.triu_indices(n, 1)
    kept = last - first < n - 1
    return first[kept], last[kept]


def check_pairs(trees: Sequence["Tree"], sentences: Sequence[Sequence[str]]) -> None:
    """Raise ProbeError where trees aren't those of the sentences, naming the first that disagrees."""
    if len(trees) != len(sentences):
        raise ProbeError(f"there are {len(trees)} trees and {len(sentences)} sentences: each sentence needs one tree")
    for number, (tree, sentence) in enumerate(zip(trees, sentences, strict=True), 1):
        words = tree.words()
        if words != list(sentence):
            place = next(
                (i for i, (a, b) in enumerate(zip(words, sentence, strict=False)) if a != b),
                min(len(words), len(sentence)),
            )
            raise ProbeError(
                f"tree {number} and sentence {number} disagree at word {place + 1}: {_word(words, place)} in the tree, {_word(sentence, place)} in the sentence"
            )


def _word(words: Sequence[str], place: int) -> str:
    return repr(words[place]) if place < len(words) else "nothing"


def _frequent(grammar: "Grammar") -> tuple[str, ...]:
    """The nonterminals that are used most, in expectation."""
    from pcfg.learning.pruning_by_use import expected_uses

    order = np.argsort(-expected_uses(grammar), kind="stable")[:_LABELS]
    return tuple(grammar.nonterminals[i] for i in order)


def _labels(trees: Sequence["Tree"]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for tree in trees:
        for label, start, end in tree.spans():
            if end - start > 1:
                counts[label] = counts.get(label, 0) + 1
    return tuple(sorted(counts, key=lambda label: (-counts[label], label))[:_LABELS])


def _whole(
    words: list[tuple[str, ...]],
    trees: "Sequence[Tree | None]",
    names: tuple[str, ...],
    per_sentence: list[np.ndarray],
    exact: bool,
    seed: int,
    grammar: "Grammar | None",
) -> Dataset:
    """Split into training and test sentences; all copies of a sentence go to the same side."""
    usable = [i for i, sentence in enumerate(words) if len(sentence) > 2]
    different = sorted({words[i] for i in usable})
    if len(different) < 8:
        raise ProbeError(
            f"{len(different)} different sentences of three words or more are too few to train probes on some and test them on others: give at least 8"
        )
    order = np.random.default_rng(seed).permutation(len(different))
    held_out = {different[i] for i in order[: max(2, round(_TEST_SHARE * len(different)))]}
    test = np.array([number for number, i in enumerate(usable) if words[i] in held_out], np.int64)
    train = np.array([number for number, i in enumerate(usable) if words[i] not in held_out], np.int64)
    kept = tuple(tree for i in usable if (tree := trees[i]) is not None)
    targets = np.concatenate([per_sentence[i] for i in usable])
    return Dataset(tuple(words[i] for i in usable), kept, names, targets, exact, train, test, grammar)


def _ranges(bounds: Int64[np.ndarray, " bounds"], numbers: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " rows"]:
    counts = np.diff(bounds)[numbers]
    starts = np.repeat(bounds[numbers] - np.append(0, np.cumsum(counts))[:-1], counts)
    return starts + np.arange(counts.sum())
