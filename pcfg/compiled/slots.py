"""Slots: what each dimension of the compiled transformer's state holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pcfg.errors import OptionError

SCORES = ("inside", "outside")


@dataclass(frozen=True)
class Slots:
    """The dimensions of a token's state, by name.

    The token of word j holds scores of all spans that end with word j. `slots["inside", "NP"]` is the slice of L
    dimensions with the inside scores of NP over words i..j, i = 0..L-1 (0 where i >= j: a nonterminal derives two words or
    more); `slots["inside", "DT"]`, of a preterminal, has one dimension, for the word itself; "outside" likewise.
    `slots["last"]` is 1 at a sentence's last word.

    Attributes:
        nonterminals, preterminals: the grammar's symbols, in its order.
        length: L, the most words of a sentence.
    """

    nonterminals: tuple[str, ...]
    preterminals: tuple[str, ...]
    length: int

    @property
    def width(self) -> int:
        """How many dimensions a state has: 1 + 2 (|N| L + |P|)."""
        return 1 + 2 * self.block

    @property
    def block(self) -> int:
        """How many dimensions the inside scores take, and as many the outside scores: |P| + |N| L."""
        return len(self.preterminals) + len(self.nonterminals) * self.length

    def tags(self, score: str) -> slice:
        """The preterminals' scores over the token's own word: |P| dimensions."""
        start = self._start(score)
        return slice(start, start + len(self.preterminals))

    def spans(self, score: str) -> slice:
        """The nonterminals' scores over spans: |N| times L dimensions, start positions running fastest."""
        return slice(self.tags(score).stop, self._start(score) + self.block)

    def __getitem__(self, key: str | tuple[str, str]) -> slice:
        if key == "last":
            return slice(0, 1)
        if not isinstance(key, tuple):
            raise OptionError(f"no slot is called {key!r}: ask for 'last' or (score, symbol), such as ('inside', 'NP')")
        score, symbol = key
        if symbol in self._tag_numbers:
            start = self.tags(score).start + self._tag_numbers[symbol]
            return slice(start, start + 1)
        if symbol not in self._span_numbers:
            raise OptionError(f"the grammar has no symbol {symbol!r}: ask for one of {', '.join(self.symbols[:20])}")
        start = self.spans(score).start + self._span_numbers[symbol] * self.length
        return slice(start, start + self.length)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Nonterminals, then preterminals: one head for each as a right child, and outside one as a left child's sibling."""
        return (*self.nonterminals, *self.preterminals)

    def names(self) -> Iterator[tuple[int, str, str | None, int | None]]:
        """(dimension, score, symbol, start) of each dimension; start is None where the span is the word itself."""
        yield 0, "last", None, None
        for score in SCORES:
            for number, tag in enumerate(self.preterminals):
                yield self.tags(score).start + number, score, tag, None
            for number, symbol in enumerate(self.nonterminals):
                for start in range(self.length):
                    yield self.spans(score).start + number * self.length + start, score, symbol, start

    def to_json(self) -> dict[str, Any]:
        """What `slots.json` holds: for each score and symbol the first dimension and how many there are."""
        described = {
            score: {symbol: [self[score, symbol].start, self[score, symbol].stop] for symbol in self.symbols}
            for score in SCORES
        }
        return {"width": self.width, "max_length": self.length, "last": [0, 1], **described}

    def _start(self, score: str) -> int:
        if score not in SCORES:
            raise OptionError(f"there are no {score!r} scores: ask for 'inside' or 'outside'")
        return 1 + SCORES.index(score) * self.block

    @cached_property
    def _tag_numbers(self) -> dict[str, int]:
        return _numbered(self.preterminals)

    @cached_property
    def _span_numbers(self) -> dict[str, int]:
        return _numbered(self.nonterminals)


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
