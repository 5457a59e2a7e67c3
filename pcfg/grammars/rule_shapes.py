"""What rules of any shape are but for their probabilities: numbered symbols, what chains of unary rules lead to, names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int64

from pcfg.grammars.rules import Children, Word, plain_labels, symbol_names

Body = tuple[int, int] | str  # what stands at the end of a chain: two symbols, or a word


class Shape:
    """Rules without their probabilities: numbered symbols, and bodies (what stands at the end of a chain), made binary.

    Attributes:
        rules: parents and children, each once; `start`: the start symbol; `folded`: whether it is a distribution over roots.
        symbols: names (K); `made`: those that only the rests of long rules brought about.
        bodies: of B right-hand sides, the numbers of two symbols or a word; `spelled`: which are words.
        unary, direct, roots: columns (symbol, symbol or body, rule): rules to a symbol, rules to a body, and roots; rule -1
            is one that was made, of probability 1.
        first, body: the bodies that chains from each symbol come to, as rows of a sparse matrix K x B (`first` as indptr).
    """

    def __init__(self, rules: Sequence[tuple[str, Children]], start: str) -> None:
        self.rules, self.start = tuple(rules), start
        own = [children for parent, children in rules if parent == start]
        self.folded = all(len(children) == 1 and isinstance(children[0], str) for children in own) and not any(
            start in children for _, children in rules
        )
        self._names = _Names(rules)
        self.numbers: dict[str, int] = {}
        self.made = set[str]()
        self.bodies: list[Body] = []
        self._body_numbers: dict[Body, int] = {}
        unary, direct, roots = (list[tuple[int, int, int]]() for _ in range(3))
        for number, (parent, children) in enumerate(rules):
            if self.folded and parent == start:
                roots.append((0, self._number(str(children[0])), number))
            elif len(children) == 1 and isinstance(children[0], str):
                unary.append((self._number(parent), self._number(children[0]), number))
            else:
                self._add(parent, children, number, direct)
        if not self.folded:
            roots.append((0, self._number(start), -1))
        self.symbols = tuple(self.numbers)
        self.unary, self.direct, self.roots = (
            np.array(rows, np.int64).reshape(-1, 3).T for rows in (unary, direct, roots)
        )
        self.spelled = np.array([isinstance(body, str) for body in self.bodies], bool)
        self._close()
        self.halves = self._halves()

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _body(self, body: Body) -> int:
        if body not in self._body_numbers:
            self._body_numbers[body] = len(self.bodies)
            self.bodies.append(body)
        return self._body_numbers[body]

    def _add(self, parent: str, children: Children, number: int, direct: list[tuple[int, int, int]]) -> None:
        """A rule to a word, or to two children or more."""
        if len(children) == 1:
            direct.append((self._number(parent), self._body(str(children[0].text)), number))  # type: ignore[union-attr]
            return
        if len(children) == 2 and isinstance(children[0], str) and isinstance(children[1], str):  # nearly all rules
            body = self._number(children[0]), self._number(children[1])
            direct.append((self._number(parent), self._body(body), number))
            return
        named = []
        for child in children:
            if isinstance(child, Word):
                name, new = self._names.get(("word", child.text), f"/{child.text}")
                if new:
                    direct.append((self._number(name), self._body(child.text), -1))
                named.append(name)
            else:
                named.append(child)
        while len(named) > 2:
            rest, new = self._names.get(("rest", *named[1:]), "/" + "+".join(named[1:]).removeprefix("/"))
            self.made.add(rest)
            direct.append((self._number(parent), self._body((self._number(named[0]), self._number(rest))), number))
            if not new:
                return
            parent, named, number = rest, named[1:], -1
        direct.append((self._number(parent), self._body((self._number(named[0]), self._number(named[1]))), number))

    def _close(self) -> None:
        symbols, bodies = len(self.symbols), len(self.bodies)
        self.chained = np.unique(self.unary[:2])  # the symbols that are in unary rules
        place = np.searchsorted(self.chained, self.unary[:2])
        steps = np.eye(len(self.chained), dtype=bool)
        steps[place[0], place[1]] = True
        self.linked = linked(steps)
        pattern = _pattern(self.direct[0], self.direct[1], (symbols, bodies))
        if len(self.chained):
            rows, columns = np.nonzero(self.linked)
            links = _pattern(self.chained[rows], self.chained[columns], (symbols, symbols))
            pattern = pattern + links @ pattern
        pattern.sort_indices()
        self.first, self.body = pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64)
        self.symbol = np.repeat(np.arange(symbols), np.diff(self.first))

    def _halves(self) -> list[tuple[str, str]]:
        """The name of each symbol over phrases and over words: two names where it has both."""
        return [
            (name, self._names.get(("tag", name), f"{name}/1")[0] if some and not every else name)
            for name, some, every in zip(self.symbols, *self._over_words, strict=True)
        ]

    @cached_property
    def _over_words(self) -> tuple[list[bool], list[bool]]:
        """Whether chains from each symbol come to some word, and to words alone."""
        words = np.bincount(self.symbol[self.spelled[self.body]], minlength=len(self.symbols))
        return (words > 0).tolist(), (words == np.diff(self.first)).tolist()

    @cached_property
    def split(self) -> Bool[np.ndarray, " K"]:
        """Which symbols became two."""
        return np.array([phrase != word for phrase, word in self.halves], bool)

    @cached_property
    def half_of(self) -> dict[str, tuple[int, int]]:
        """Symbol and half of each name in the binary grammar."""
        table: dict[str, tuple[int, int]] = {}
        some, every = self._over_words
        for number, (phrase, word) in enumerate(self.halves):
            table[phrase] = number, int(every[number])
            table[word] = number, int(some[number])
        return table

    @cached_property
    def labels(self) -> tuple[tuple[str, ...], ...]:
        """The labels of each symbol in trees of the rules' own shape; the rest of a long rule has none."""
        roots = set(self.roots[1].tolist())
        return tuple(
            plain_labels(name, over_word=False) or ((name,) if number in roots else ())
            for number, name in enumerate(self.symbols)
        )

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """The label of each symbol right over a word."""
        return tuple(plain_labels(name, over_word=True)[0] for name in self.symbols)

    def pairs(self, symbols: Int64[np.ndarray, " k"], bodies: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """The numbers of pairs of symbol and body that chains lead between; -1 where there is no such chain."""
        codes, wanted = self._codes, symbols * len(self.bodies) + bodies
        places = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.where(codes[places] == wanted, places, -1)

    def pair(self, symbol: int, body: int) -> int:
        """The number of one symbol and one body; -1 without a chain."""
        low, high = int(self.first[symbol]), int(self.first[symbol + 1])
        place = low + int(np.searchsorted(self.body[low:high], body))
        return place if place < high and self.body[place] == body else -1

    @cached_property
    def _codes(self) -> Int64[np.ndarray, " pairs"]:
        return self.symbol * len(self.bodies) + self.body

    @cached_property
    def hops(self) -> Int64[np.ndarray, "3 hops"]:
        """Every way to lengthen a chain at its top by a unary rule: the longer chain's pair, the shorter one's, the rule."""
        parents, children, rules = self.unary
        counts = self.first[children + 1] - self.first[children]
        rest = np.repeat(self.first[children] - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(counts.sum())
        return np.stack([self.pairs(np.repeat(parents, counts), self.body[rest]), rest, np.repeat(rules, counts)])

    @cached_property
    def children(self) -> dict[int, list[tuple[int, int]]]:
        """Child and rule of each symbol's unary rules."""
        below = defaultdict(list)
        for parent, child, rule in self.unary.T.tolist():
            below[parent].append((child, rule))
        return dict(below)

    def body_number(self, body: Body) -> int:
        """The number of a body; -1 for none."""
        return self._body_numbers.get(body, -1)


class _Names:
    """Names for symbols made here, none of which is taken."""

    def __init__(self, rules: Iterable[tuple[str, Children]]) -> None:
        self._taken = set(symbol_names(rules))
        self._made: dict[object, str] = {}

    def get(self, key: object, wanted: str) -> tuple[str, bool]:
        """The name for a key, and whether it is new."""
        if key in self._made:
            return self._made[key], False
        wanted = re.sub(r"\s", "_", wanted.replace("(", "-LRB-").replace(")", "-RRB-"))
        while wanted in self._taken:
            wanted += "/"
        self._taken.add(wanted)
        self._made[key] = wanted
        return wanted, True


def _pattern(
    rows: Int64[np.ndarray, " k"], columns: Int64[np.ndarray, " k"], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape)


def linked(steps: Bool[np.ndarray, "K K"]) -> Bool[np.ndarray, "K K"]:
    """Which entries a power of the matrix, whose diagonal is true, may fill."""
    while True:
        more = (steps.astype(np.float32) @ steps.astype(np.float32)) > 0
        if (more == steps).all():
            return steps
        steps = more
