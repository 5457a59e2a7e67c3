"""How near parses come to gold trees, by the two conventions that people publish; every result says which it is."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pcfg.errors import TreebankError
from pcfg.treebanks.cleaning import OUTER, clean
from pcfg.treebanks.trees import Tree, read_parses, read_trees
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, load_json
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result

_FILE = "score.json"
PUNCTUATION = frozenset([",", ":", "``", "''", "."])
_DELETED = PUNCTUATION | OUTER - {""}  # of labels once they are cut: EVALB counts what is then empty
_KIM = PUNCTUATION | {"-LRB-", "-RRB-", "$", "#"}  # what is left of Penn's tags are those of Kim et al.'s script
_EVALB = (
    "labelled F1, EVALB: over the corpus; traces, functions, punctuation and TOP deleted, tags don't count, ADVP is PRT, "
    "no parse scores 0"
)
_WHOLE_LABELS = _EVALB.replace("EVALB", "as EVALB but of whole labels").replace("functions, ", "")
_UNSUPERVISED = (
    "unlabelled F1, unsupervised, this project's: mean over sentences of three words or more; punctuation deleted, one-word "
    "and whole-sentence spans dropped, a span counts once, no parse scores 0"
)
_UNSUPERVISED_KIM = (
    "unlabelled F1, unsupervised, Kim et al. 2019's: mean over sentences of two words or more, two words scoring 1; "
    "punctuation, -LRB-, -RRB-, $ and # deleted, one-word and whole-sentence spans dropped, a span counts once, no parse "
    "scores 0"
)


class _Score(Result):
    """What the two scores share: a sentence, and a file that holds every number."""

    @property
    def summary(self) -> list[str]:
        """The score with its convention, in a sentence."""
        return [str(self)]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """A folder with `score.json`; it appears whole or not at all."""
        with new_folder(Path(folder), overwrite=overwrite, replaces=_FILE) as staged:
            replace_json(staged / _FILE, {"score": type(self).__name__, **msgspec.to_builtins(self)})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Any:
        """What `save` wrote. Raises TreebankError, naming the file, for anything else."""
        file = Path(folder) / _FILE
        try:
            return load_json(file, cls)
        except (OSError, JsonError) as error:
            raise TreebankError(
                f"{file} can't be read ({error}): name a folder that {cls.__name__}.save wrote"
            ) from None


@dataclass(frozen=True)
class LabelledScore(_Score):
    """Labelled brackets in common, summed over the corpus.

    Attributes:
        convention: what was counted.
        sentences: how many; `unparsed` of them have no parse, `complete` have every bracket right and none beside.
        matched, predicted, gold: numbers of brackets.
        valid: the same of the sentences that EVALB itself counts: those with a parse, some word that isn't punctuation, and
            the same words tagged as punctuation in both trees.
    """

    convention: str
    sentences: int
    unparsed: int
    complete: int
    matched: int
    predicted: int
    gold: int
    valid: "LabelledScore | None" = None

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

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row for all sentences, and one for those that EVALB itself counts."""
        columns = ["sentences", "unparsed", "complete", "matched", "predicted", "gold", "precision", "recall", "f1"]
        scores = {"all sentences": self} | ({} if self.valid is None else {"EVALB's own": self.valid})
        return ["of", *columns], [[of, *(getattr(score, name) for name in columns)] for of, score in scores.items()]

    def __str__(self) -> str:
        said = (
            f"{100 * self.f1:.2f} {self.convention} ({self._shares}; "
            f"{number_of(self.sentences, 'sentence')}, {self.unparsed} without a parse)"
        )
        left = 0 if self.valid is None else self.sentences - self.valid.sentences
        if self.valid is None or not left:
            return said
        why = "without a parse, or as punctuation is tagged otherwise in the parse"
        return f"{said}; EVALB itself leaves {left} out, {why}: {100 * self.valid.f1:.2f} ({self.valid._shares})"

    @property
    def _shares(self) -> str:
        shares = (100 * share for share in (self.precision, self.recall, self.complete_match))
        return "precision {:.2f}, recall {:.2f}, complete match {:.2f}".format(*shares)


@dataclass(frozen=True)
class UnlabelledScore(_Score):
    """Spans in common, as a mean over sentences.

    Attributes:
        convention: what was counted.
        f1s: each counted sentence's F1, in order.
        skipped: shorter sentences than the convention counts, their punctuation deleted.
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

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The F1 of each counted sentence."""
        return ["counted sentence", "f1"], [[number, f1] for number, f1 in enumerate(self.f1s, 1)]

    def __str__(self) -> str:
        return (
            f"{100 * self.f1:.2f} {self.convention} ({number_of(len(self.f1s), 'sentence')}, {self.unparsed} without a parse, "
            f"{self.skipped} shorter ones left out)"
        )


def score_labelled(gold: Sequence[Tree], parses: Sequence[Tree | None], *, keep_labels: bool = False) -> LabelledScore:
    """Labelled precision, recall and F1 as EVALB counts them (with its COLLINS.prm).

    Of trees as they stand: traces go, with what holds nothing else; labels are cut at the first - or =; a node over just a
    node of its own label counts like any other. Brackets that come twice count twice, as far as both trees have them.
    Beyond EVALB, a word is punctuation when its *gold* tag says so, in both trees, so that a wrong tag can't shift the
    others, and ROOT, S1 and a bracket without a label go as TOP does.

    Args:
        parses: one for each gold tree, None for no parse.
        keep_labels: compare labels whole, for symbols such as NT-1 and NT-2.

    Raises TreebankError when the numbers of trees or the words differ, and for an empty bank.
    """
    everything, valid = Counter[str](), Counter[str]()
    for wanted, parse in _pairs(gold, parses):
        before = places(wanted.tags(), PUNCTUATION)
        reference = _brackets(wanted, before, keep_labels)
        brackets = Counter[tuple[str, int, int]]() if parse is None else _brackets(parse, before, keep_labels)
        counts = {
            "sentences": 1,
            "unparsed": int(parse is None),
            "complete": int(parse is not None and brackets == reference),
            "matched": (brackets & reference).total(),
            "predicted": brackets.total(),
            "gold": reference.total(),
        }
        everything.update(counts)
        if parse is not None and before[-1] and places(parse.tags(), PUNCTUATION) == before:
            valid.update(counts)
    convention = _WHOLE_LABELS if keep_labels else _EVALB
    return _total(convention, everything, _total(convention, valid, None))


def _total(convention: str, counts: Counter[str], valid: LabelledScore | None) -> LabelledScore:
    names = ("sentences", "unparsed", "complete", "matched", "predicted", "gold")
    sentences, unparsed, complete, matched, predicted, gold = (counts[name] for name in names)
    return LabelledScore(convention, sentences, unparsed, complete, matched, predicted, gold, valid)


def score_unlabelled(gold: Sequence[Tree], parses: Sequence[Tree | None], *, kim: bool = False) -> UnlabelledScore:
    """Unlabelled F1 as published for unsupervised parsers (Kim, Dyer & Rush 2019, section 4.1), of trees as they stand.

    Args:
        parses: one for each gold tree, None for no parse.
        kim: count as their published script does: -LRB-, -RRB-, $ and # are deleted like punctuation, and a sentence of two
            words scores 1 instead of being left out.

    Raises: as `score_labelled`.
    """
    deleted, shortest = (_KIM, 2) if kim else (PUNCTUATION, 3)
    f1s: list[float] = []
    skipped = unparsed = 0
    for wanted, parse in _pairs(gold, parses):
        before = places(wanted.tags(), deleted)
        if before[-1] < shortest:
            skipped += 1
            continue
        reference = inner_spans(wanted.spans(), before)
        if parse is None:
            unparsed += 1
            f1s.append(0.0)
            continue
        f1s.append(span_f1(reference, inner_spans(parse.spans(), before)))
    return UnlabelledScore(_UNSUPERVISED_KIM if kim else _UNSUPERVISED, tuple(f1s), skipped, unparsed)


def read_pairs(gold: str | Path, parses: str | Path) -> tuple[list[Tree], list[Tree | None]]:
    """Gold trees and their parses from files, as `score_labelled` takes them; see `read_parses`.

    Lines that are empty in both files are no sentences; nor are empty lines of a gold file that has more of them than the
    other, and those at the end of the parses that go beyond the gold trees.
    """
    wanted, given = read_parses(gold), read_parses(parses)
    if len(wanted) != len(given):
        trees = read_trees(gold)
        while len(given) > len(trees) and given[-1] is None:
            given.pop()
        return trees, given
    both = [(tree, parse) for tree, parse in zip(wanted, given, strict=True) if tree or parse]
    for number, (tree, _) in enumerate(both, 1):
        if tree is None:
            raise TreebankError(f"{gold}: there is no tree for parse {number} of {parses}: leave the parse out")
    return [tree for tree, _ in both if tree], [parse for _, parse in both]


def _pairs(gold: Sequence[Tree], parses: Sequence[Tree | None]) -> list[tuple[Tree, Tree | None]]:
    """Each gold tree with its parse, without traces."""
    if not gold:
        raise TreebankError("there are no gold trees to score against")
    if len(gold) != len(parses):
        raise TreebankError(
            f"there are {len(gold)} gold trees and {len(parses)} parses: each sentence needs one of both, and an empty line "
            "is a sentence without a parse"
        )
    pairs = []
    for number, (wanted, parse) in enumerate(zip(gold, parses, strict=True), 1):
        tree, parsed = (each and clean(each, collapse=False, cut_labels=False) for each in (wanted, parse))
        if tree is None:
            raise TreebankError(f"gold tree {number} holds no words: leave it out")
        if parsed is not None and parsed.words() != tree.words():
            raise TreebankError(
                f"sentence {number} isn't the same in both: gold {_begin(tree)!r}, parse {_begin(parsed)!r}"
            )
        pairs.append((tree, parsed))
    return pairs


def _begin(tree: Tree) -> str:
    words = tree.words()
    return " ".join(words[:8]) + (" ..." if len(words) > 8 else f" ({len(words)} words)")


def _brackets(tree: Tree, before: Sequence[int], keep_labels: bool) -> Counter[tuple[str, int, int]]:
    """Labelled spans over the words that count, without TOP."""
    brackets = Counter[tuple[str, int, int]]()
    for label, start, end in tree.spans():
        name = label if keep_labels else re.split("[-=]", label, maxsplit=1)[0]
        if before[start] < before[end] and label and name not in _DELETED:
            brackets["ADVP" if name == "PRT" else name, before[start], before[end]] += 1
    return brackets


def inner_spans(spans: Iterable[tuple[object, int, int]], before: Sequence[int]) -> set[tuple[int, int]]:
    """Spans over the words that count (see `places`), each once, without those of one word and of the whole sentence.

    Args:
        spans: anything, first word, place after the last, as `Tree.spans` gives them.
    """
    counted = {(before[start], before[end]) for _, start, end in spans}
    return {(start, end) for start, end in counted if 1 < end - start < before[-1]}


def span_f1(reference: set[tuple[int, int]], parsed: set[tuple[int, int]]) -> float:
    """F1 of two sets of spans; 1 for two that are empty: the tree is flat, and rightly so."""
    size = len(reference) + len(parsed)
    return 2 * len(reference & parsed) / size if size else 1.0


def places(tags: Sequence[str], deleted: Collection[str]) -> list[int]:
    """How many words of other tags than those deleted stand before each place between words."""
    before = [0]
    for tag in tags:
        before.append(before[-1] + (tag not in deleted))
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
