"""Words that a treebank grammar has seen seldom or never: signatures, and a smoothed lexicon."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
from jaxtyping import Float64, Int32

from pcfg.errors import TreebankError
from pcfg.treebanks.trees import bracket_forms

UNKNOWN = "<unk>"
_Number = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_ENDINGS = ("ing", "ion", "ity", "est", "ed", "er", "ly", "al", "s", "y")


def signatures(word: str, position: int) -> tuple[str, ...]:
    """The classes that an unknown word's form falls into, from fine to coarse; the last, `<unk>`, takes every word.

    The parts: capitals (and whether they may come from standing first), digits, hyphen, ending.

    Args:
        position: of the word in its sentence, from 0.
    """
    letters = [c for c in word if c.isalpha()]
    hyphen = ["hyphen"] if "-" in word[1:-1] else []
    ending: list[str] = []
    if any(c.isdigit() for c in word):
        kind = "number-letter" if letters else "year" if re.fullmatch(r"(19|20)\d\d", word) else "number"
    elif letters:
        kind = _case(word, position)
        ending = [end for end in _ENDINGS if len(word) > len(end) + 2 and word.lower().endswith(end)][:1]
    else:
        kind = "sign"
    named = ("-".join(parts) for parts in ([kind, *hyphen, *ending], [kind, *hyphen], [kind]))
    return (*dict.fromkeys(f"<unk:{name}>" for name in named), UNKNOWN)


def _case(word: str, position: int) -> str:
    if word.islower():
        return "lower"
    if word.isupper() and len(word) > 1:
        return "upper"
    if word[0].isupper():
        return "first" if position == 0 else "capital"
    return "mixed"


def known_form(word: str, position: int, vocabulary: Collection[str]) -> str:
    """The word itself when the vocabulary has it, else its finest signature there.

    Raises TreebankError, naming word and position, when the vocabulary has neither.
    """
    if word in vocabulary:
        return word
    for signature in signatures(word, position):
        if signature in vocabulary:
            return signature
    raise TreebankError(
        f"the word {word!r} (number {position + 1} of its sentence) is unknown and the grammar has no signature for it: "
        "induce with a min_count above 1, or leave the sentence out"
    )


def frequent_signatures(rare: Iterable[tuple[str, int]], min_count: int) -> set[str]:
    """The signatures that fit at least `min_count` of the rare words (word and position), and `<unk>` if there are any."""
    counts = Counter(signature for word, position in rare for signature in signatures(word, position))
    return {signature for signature, count in counts.items() if count >= min_count or signature == UNKNOWN}


class LexiconJson(TypedDict):
    """What `SmoothedLexicon.to_json` gives."""

    words: list[str]
    signatures: list[str]
    tag_probs: list[float]
    forms: list[_Number]
    tags: list[_Number]
    counts: list[float]
    k: float


@dataclass(frozen=True, eq=False)
class SmoothedLexicon:
    """How well each tag fits a word: P(t|w) / P(t), with P(t|w) = (c(t, w) + k P(t|signature of w)) / (c(w) + k).

    By Bayes' rule this is P(w|t) up to a factor P(w) that is the same for every parse of a sentence: all posteriors
    stay right, but log Z is no likelihood, as the scores don't sum to 1 over words.

    Attributes:
        forms: the words, then the signatures.
        word_count: how many of the forms are words.
        tag_probs: P(t).
        rows, tags, counts: c(t, form), sorted by form; the stretch of a form is found in `bounds`.
        k: how many sightings the signature is worth.
    """

    forms: tuple[str, ...]
    word_count: int
    tag_probs: Float64[np.ndarray, " T"]
    rows: Int32[np.ndarray, " entries"]
    tags: Int32[np.ndarray, " entries"]
    counts: Float64[np.ndarray, " entries"]
    k: float

    @classmethod
    def count(
        cls,
        words: Mapping[tuple[str, int], int | float],
        signed: Mapping[tuple[str, int], int | float],
        tag_count: int,
        k: int | float = 1.0,
    ) -> "SmoothedLexicon":
        """From the counts of (word, tag number), and of (signature, tag number) among rare words."""
        forms = tuple(sorted({word for word, _ in words})) + tuple(sorted({name for name, _ in signed}))
        word_count = len({word for word, _ in words})
        word_numbers = {form: i for i, form in enumerate(forms[:word_count])}
        signature_numbers = {form: i for i, form in enumerate(forms[word_count:], word_count)}
        entries = sorted(
            [(word_numbers[word], tag, count) for (word, tag), count in words.items()]
            + [(signature_numbers[name], tag, count) for (name, tag), count in signed.items()]
        )
        totals = np.zeros(tag_count)
        for (_, tag), count in words.items():
            totals[tag] += count
        rows, tags, counts = (np.array(column) for column in zip(*entries, strict=True))
        return cls(
            forms,
            word_count,
            totals / totals.sum(),
            rows.astype(np.int32),
            tags.astype(np.int32),
            counts.astype(np.float64),
            float(k),
        )

    def __repr__(self) -> str:
        signs = len(self.forms) - self.word_count
        return (
            f"<SmoothedLexicon: {self.word_count:,} words and {signs:,} signatures over {len(self.tag_probs):,} tags>"
        )

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Words and signatures by name. Where a text holds a word that is spelled like a signature, the word wins."""
        named = {form: i for i, form in enumerate(self.forms[self.word_count :], self.word_count)}
        return {**named, **{form: i for i, form in enumerate(self.forms[: self.word_count])}}

    @cached_property
    def bounds(self) -> np.ndarray:
        """Form i's entries are bounds[i]:bounds[i + 1]."""
        return np.searchsorted(self.rows, np.arange(len(self.forms) + 1))

    def scores(self, sentence: Sequence[str]) -> Float64[np.ndarray, "n T"]:
        """P(t|w) / P(t) for each word and tag; ( is taken for -LRB- where that is known and it isn't, and so on.

        Raises TreebankError for an unknown word that fits no signature, with its position.
        """
        scores = np.zeros((len(sentence), len(self.tag_probs)))
        for position, word in enumerate(sentence):
            scores[position] = self.posterior(word, position)
        return scores / self.tag_probs

    def posterior(self, word: str, position: int) -> Float64[np.ndarray, " T"]:
        """P(t|w) of a word at a position (from 0) of its sentence; raises as `scores`."""
        if word not in self.numbers:
            word = next((form for form in bracket_forms(word) if form in self.numbers), word)
        number = self.numbers.get(word, -1)
        seen = self._counts(number) if 0 <= number < self.word_count else np.zeros(len(self.tag_probs))
        total = seen.sum()
        signature = next((name for name in signatures(word, position) if self._is_signature(name)), None)
        if total and (signature is None or not self.k):
            return seen / total
        alike = self._counts(self.numbers[signature or known_form(word, position, ())])  # the latter raises
        return (seen + self.k * alike / alike.sum()) / (total + self.k) if total else alike / alike.sum()

    def _is_signature(self, name: str) -> bool:
        return self.numbers.get(name, -1) >= self.word_count

    def _counts(self, number: int) -> Float64[np.ndarray, " T"]:
        dense = np.zeros(len(self.tag_probs))
        stretch = slice(self.bounds[number], self.bounds[number + 1])
        dense[self.tags[stretch]] = self.counts[stretch]
        return dense

    def to_json(self) -> dict[str, Any]:
        """The tables as JSON, to the last bit."""
        return {
            "words": list(self.forms[: self.word_count]),
            "signatures": list(self.forms[self.word_count :]),
            "tag_probs": self.tag_probs.tolist(),
            "forms": self.rows.tolist(),
            "tags": self.tags.tolist(),
            "counts": self.counts.tolist(),
            "k": self.k,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SmoothedLexicon":
        """Read what `to_json` gave. Raises TreebankError when something is missing or doesn't fit together."""
        try:
            words, named = content["words"], content["signatures"]
            made = cls(
                (*map(str, words), *map(str, named)),
                len(words),
                np.asarray(content["tag_probs"], np.float64),
                np.asarray(content["forms"], np.int32),
                np.asarray(content["tags"], np.int32),
                np.asarray(content["counts"], np.float64),
                float(content["k"]),
            )
            made._check()
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise TreebankError(
                f"the lexicon in the grammar file is damaged ({error!r}): induce the grammar again"
            ) from None
        return made

    def _check(self) -> None:
        forms, tags = len(self.forms), len(self.tag_probs)
        sound = (
            len(self.rows) == len(self.tags) == len(self.counts)
            and (np.diff(self.rows) >= 0).all()
            and (not len(self.rows) or (self.rows.min() >= 0 and self.rows.max() < forms))
            and (not len(self.tags) or (self.tags.min() >= 0 and self.tags.max() < tags))
            and len(np.unique(self.rows)) == forms
            and np.isfinite(self.counts).all()
            and (self.counts > 0).all()
            and np.isfinite(self.tag_probs).all()
            and (self.tag_probs > 0).all()
            and self.k >= 0
        )
        if not sound:
            raise TreebankError(
                "the lexicon in the grammar file is damaged (its tables don't fit): induce the grammar again"
            )
