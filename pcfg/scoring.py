"""How near parses come to gold trees, by the two conventions that people publish; every result says which it is."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pcfg.errors import TreebankError
from pcfg.trees import Tree

PUNCTUATION = frozenset([",", ":", "``", "''", "."])
_OUTER = frozenset(["TOP", "ROOT", "S1", ""])
_EVALB = (
    "labelled F1, EVALB: over the corpus; punctuation and TOP deleted, tags don't count, ADVP is PRT, no parse scores 0"
)
_UNSUPERVISED = (
    "unlabelled F1, unsupervised: mean over sentences; punctuation deleted, one-word and whole-sentence spans dropped, "
    "a span counts once, no parse scores 0"
)


@dataclass(frozen=True)
class LabelledScore:
    """Labelled brackets in common, summed over the corpus.

    Attributes:
        convention: what was counted.
        sentences: how many; `unparsed` of them have no parse, `complete` have every bracket right and none beside.
        matched, predicted, gold: numbers of brackets.
    """

    convention: str
    sentences: int
    unparsed: int
    complete: int
    matched: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of the predicted brackets that are gold; 0 when nothing was predicted."""
        return self.matched / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of the gold brackets that were predicted; 0 when there are none."""
        return self.matched / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.matched / (self.predicted + self.gold) if self.predicted + self.gold else 0.0

    @property
    def complete_match(self) -> float:
        """Share of sentences with every bracket right and none beside."""
        return self.complete / self.sentences if self.sentences else 0.0

    def __str__(self) -> str:
        return (
            f"{100 * self.f1:.2f} {self.convention} (precision {100 * self.precision:.2f}, recall {100 * self.recall:.2f}, "
            f"complete match {100 * self.complete_match:.2f}; {self.sentences} sentences, {self.unparsed} without a parse)"
        )


@dataclass(frozen=True)
class UnlabelledScore:
    """Spans in common, as a mean over sentences.

    Attributes:
        convention: what was counted.
        f1s: each counted sentence's F1, in order.
        skipped: sentences of fewer than three words without punctuation, which have only trivial spans.
        unparsed: counted sentences without a parse.
    """

    convention: str
    f1s: tuple[float, ...]
    skipped: int
    unparsed: int

    @property
    def f1(self) -> float:
        """Mean over the counted sentences; 0 when there are none."""
        return sum(self.f1s) / len(self.f1s) if self.f1s else 0.0

    def __str__(self) -> str:
        return (
            f"{100 * self.f1:.2f} {self.convention} ({len(self.f1s)} sentences, {self.unparsed} without a parse, "
            f"{self.skipped} shorter than three words left out)"
        )


def score_labelled(gold: Sequence[Tree], parses: Sequence[Tree | None]) -> LabelledScore:
    """Labelled precision, recall and F1 as EVALB counts them (with its COLLINS.prm).

    A word is punctuation when its *gold* tag says so, in both trees, so that a wrong tag can't shift the others.
    Brackets that come twice count twice, as far as both trees have them.

    Args:
        parses: one for each gold tree, None for no parse. Both as `clean` leaves them.

    Raises TreebankError when the numbers of trees or the words differ, and for an empty bank.
    """
    _check_pairs(gold, parses)
    unparsed = complete = matched = predicted = total = 0
    for wanted, parse in zip(gold, parses, strict=True):
        reference = _brackets(wanted, wanted.tags())
        found = Counter[tuple[str, int, int]]() if parse is None else _brackets(parse, wanted.tags())
        unparsed += parse is None
        complete += parse is not None and found == reference
        matched += (found & reference).total()
        predicted += found.total()
        total += reference.total()
    return LabelledScore(_EVALB, len(gold), unparsed, complete, matched, predicted, total)


def score_unlabelled(gold: Sequence[Tree], parses: Sequence[Tree | None]) -> UnlabelledScore:
    """Unlabelled F1 as published for unsupervised parsers (Kim, Dyer & Rush 2019, section 4.1).

    Args and Raises: as `score_labelled`.
    """
    _check_pairs(gold, parses)
    f1s: list[float] = []
    skipped = unparsed = 0
    for wanted, parse in zip(gold, parses, strict=True):
        tags = wanted.tags()
        length = sum(tag not in PUNCTUATION for tag in tags)
        if length < 3:
            skipped += 1
            continue
        reference = _inner_spans(wanted, tags, length)
        if parse is None:
            unparsed += 1
            f1s.append(0.0)
            continue
        found = _inner_spans(parse, tags, length)
        size = len(reference) + len(found)
        f1s.append(2 * len(reference & found) / size if size else 1.0)  # flat, and rightly so
    return UnlabelledScore(_UNSUPERVISED, tuple(f1s), skipped, unparsed)


def _check_pairs(gold: Sequence[Tree], parses: Sequence[Tree | None]) -> None:
    if not gold:
        raise TreebankError("there are no gold trees to score against")
    if len(gold) != len(parses):
        raise TreebankError(
            f"there are {len(gold)} gold trees and {len(parses)} parses: each sentence needs one of both"
        )
    for number, (wanted, parse) in enumerate(zip(gold, parses, strict=True), 1):
        if parse is not None and parse.words() != wanted.words():
            raise TreebankError(
                f"sentence {number} isn't the same in both: gold {_begin(wanted)!r}, parse {_begin(parse)!r}"
            )


def _begin(tree: Tree) -> str:
    words = tree.words()
    return " ".join(words[:8]) + (" ..." if len(words) > 8 else f" ({len(words)} words)")


def _brackets(tree: Tree, gold_tags: Sequence[str]) -> Counter[tuple[str, int, int]]:
    """Labelled spans over the words that aren't punctuation, without TOP."""
    before = _places(gold_tags)
    return Counter(
        ("ADVP" if label == "PRT" else label, before[start], before[end])
        for label, start, end in tree.spans()
        if label not in _OUTER and before[start] < before[end]
    )


def _inner_spans(tree: Tree, gold_tags: Sequence[str], length: int) -> set[tuple[int, int]]:
    before = _places(gold_tags)
    spans = {(before[start], before[end]) for _, start, end in tree.spans()}
    return {(start, end) for start, end in spans if 1 < end - start < length}


def _places(gold_tags: Sequence[str]) -> list[int]:
    """How many words that aren't punctuation stand before each place between words."""
    before = [0]
    for tag in gold_tags:
        before.append(before[-1] + (tag not in PUNCTUATION))
    return before


# -- baselines -------------------------------------------------------------------------------------------------------


def right_branching(words: Sequence[str]) -> Tree:
    """Every word pairs with all that follow it."""
    return _branch(words, lambda start, end: start + 1)


def left_branching(words: Sequence[str]) -> Tree:
    """Every word pairs with all that precede it."""
    return _branch(words, lambda start, end: end - 1)


def random_branching(words: Sequence[str], random: np.random.Generator) -> Tree:
    """Each span splits at a place drawn evenly from those it has (which doesn't make all trees equally likely)."""
    return _branch(words, lambda start, end: int(random.integers(start + 1, end)))


def _branch(words: Sequence[str], split: Callable[[int, int], int]) -> Tree:
    if not words:
        raise TreebankError("a sentence of no words has no tree")
    todo, order = [(0, len(words))], list[tuple[int, int, int]]()
    while todo:
        start, end = todo.pop()
        middle = split(start, end) if end - start > 1 else start
        order.append((start, middle, end))
        if end - start > 1:
            todo += [(start, middle), (middle, end)]
    made: dict[tuple[int, int], Tree] = {}
    for start, middle, end in reversed(order):  # parts come before the whole
        if end - start == 1:
            made[start, end] = Tree("X", (words[start],))
        else:
            made[start, end] = Tree("X", (made[start, middle], made[middle, end]))
    return made[0, len(words)]
