"""Sentences and their trees drawn from a grammar: fast, the same for the same seed, with length limits done right."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.sampling.kernels import build_aliases, draw_by_length, draw_freely, fill_lengths, hashes, rules_by_length
from pcfg.treebanks.trees import Tree

METHODS = ("auto", "rejection", "exact")
# Share of free draws within the limit below which conditioning on lengths is faster than throwing away.
_SCARCE = 0.2
_MOST_DRAWS = 1e10  # of which all but a few are thrown away
_MOST_BYTES = 2 << 30  # for the tables of exact conditioning
_Pieces = tuple[list[str], list[str]]
_BLOCK = 1 << 16  # sentences drawn between two looks at the room that is left


@dataclass(frozen=True, eq=False)
class Samples:
    """Sentences with their trees, in flat arrays; a sequence of word lists.

    Attributes:
        grammar: what they were drawn from.
        words: word numbers of all sentences, one after another.
        offsets: sentence i is words[offsets[i]:offsets[i + 1]].
        steps: each tree's rules in the order of a leftmost derivation, 2 n - 1 for n words: r is binary rule r, and
            R + l is lexical rule l. Sentence i's begin at 2 offsets[i] - i.
        method: how they were drawn: "free" (no limit), "rejection" (free draws above the limit thrown away) or "exact"
            (every choice conditioned on the length). The last two have the same distribution.
        acceptance: the share of free draws that is within the limit.
        seed: what they were drawn with; `numbers`: each sentence's among all draws of that seed. Of a node that may stand for
            several chains of unary rules, they say which.
    """

    grammar: Grammar
    words: Int32[np.ndarray, " W"]
    offsets: Int64[np.ndarray, " bounds"]
    steps: Int32[np.ndarray, " K"]
    method: Literal["free", "rejection", "exact"]
    acceptance: float
    seed: int
    numbers: Int64[np.ndarray, " count"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> list[str]:
        """The words of a sentence."""
        number = range(len(self))[number]
        names = self.grammar.words
        return [names[word] for word in self.words[self.offsets[number] : self.offsets[number + 1]].tolist()]

    def __iter__(self) -> Iterator[list[str]]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> Int64[np.ndarray, " count"]:
        """How many words each sentence has."""
        return np.diff(self.offsets)

    def tree(self, number: int, *, plain: bool = False) -> Tree:
        """The tree of a sentence; `plain` as for `bracketed`."""
        grammar, binary, made = self.grammar, len(self.grammar.rule_probs), list[tuple[Tree | str, ...]]()
        steps, labels = self._steps(number).tolist(), self._labels(number, plain)
        for step, names in zip(
            steps[::-1], labels[::-1], strict=True
        ):  # backwards: both children of a rule come before it
            below = (*made.pop(), *made.pop()) if step < binary else (grammar.words[grammar.tokens[step - binary]],)
            for name in reversed(names):
                below = (Tree(name, below),)
            made.append(below)
        (found,) = made[0]
        for name in self._top(plain):
            found = Tree(name, (found,))
        return found  # type: ignore[return-value]

    def bracketed(self, number: int, *, plain: bool = False) -> str:
        """The tree of a sentence in one line of brackets, as in `str(samples.tree(number))` but faster.

        Args:
            plain: in the form of what the grammar was made from, instead of in its symbols. A node that may stand for several
                chains of unary rules is one of them, drawn with its probability: the same one whenever it is asked for.
        """
        binary, steps = len(self.grammar.rule_probs), self._steps(number).tolist()
        heads, tails = self._plain_pieces if plain else self._pieces
        drawn = self._draws(number) if plain else {}
        if drawn:  # then each node has its own pieces, those of rules before those of words
            nodes = sorted(range(len(steps)), key=lambda place: steps[place] >= binary)
            pieces = [
                self._piece(steps[k], drawn[k]) if k in drawn else (heads[steps[k]], tails[steps[k]]) for k in nodes
            ]
            heads, tails = [head for head, _ in pieces], [tail for _, tail in pieces]
            steps, binary = np.argsort(nodes).tolist(), len(nodes) // 2
        written: list[str] = []
        missing: list[int] = []  # how many children each open bracket still waits for
        closing: list[str] = []  # and what closes it
        for step in steps:
            written.append(heads[step])
            if step < binary:
                missing.append(2)
                closing.append(tails[step])
                continue
            while missing:
                missing[-1] -= 1
                if missing[-1]:
                    break
                missing.pop()
                written.append(closing.pop())
        if plain and (top := self._top(plain)):
            return f"({top[0]}{''.join(written)})"
        return "".join(written)[1:]

    def take(self, numbers: Int64[np.ndarray, " some"]) -> "Samples":
        """Some of the sentences, in the order given."""
        words, offsets = _gather(self.words, self.offsets, numbers)
        steps, _ = _gather(self.steps, 2 * self.offsets - np.arange(len(self.offsets)), numbers)
        return replace(self, words=words, offsets=offsets, steps=steps, numbers=self.numbers[numbers])

    def split(self, shares: dict[str, float], seed: int) -> dict[str, "Samples"]:
        """Parts that share no sentence, such as {"train": 0.9, "test": 0.1}.

        Which part a sentence goes to depends on its words and the seed only: all its repetitions go there, from
        whichever shard. So the shares are those of different sentences, on average.
        """
        edges = np.cumsum(list(shares.values()))
        if not len(edges) or min(shares.values()) <= 0 or abs(edges[-1] - 1) > 1e-9:
            raise OptionError(f"the shares {shares} must be above 0 and sum to 1")
        part = np.searchsorted(edges[:-1], hashes(self.words, self.offsets, np.uint64(seed % 2**64)), side="right")
        return {name: self.take(np.flatnonzero(part == i)) for i, name in enumerate(shares)}

    @cached_property
    def _pieces(self) -> _Pieces:
        return self._written(self._own_labels)

    @cached_property
    def _plain_pieces(self) -> _Pieces:
        return self._written(self._plain_labels)

    def _written(self, labels: Sequence[tuple[str, ...] | None]) -> _Pieces:
        """What each step writes, and what each binary rule writes after its children; nothing where that is drawn."""
        same: dict[str, str] = {}  # one copy of each, as rules are many and labels few
        found = [self._piece(step, names or ()) for step, names in enumerate(labels)]
        return [same.setdefault(head, head) for head, _ in found], [same.setdefault(tail, tail) for _, tail in found]

    def _piece(self, step: int, labels: Sequence[str]) -> tuple[str, str]:
        opened, closed, binary = (
            "".join(f" ({label}" for label in labels),
            ")" * len(labels),
            len(self.grammar.rule_probs),
        )
        if step < binary:
            return opened, closed
        word = self.grammar.words[self.grammar.tokens[step - binary]]
        if re.search(r"\s", word, re.ASCII):
            raise GrammarError(
                f"the word {word!r} holds a space, and can't be written between brackets: take tree() instead"
            )
        word = word.replace("(", "-LRB-").replace(")", "-RRB-")
        return f"{opened} {word}{closed}", ""

    @cached_property
    def _own_labels(self) -> list[tuple[str, ...] | None]:
        return [(self.grammar.symbols[head],) for head in self._heads]

    @cached_property
    def _plain_labels(self) -> list[tuple[str, ...] | None]:
        """What each step is called in the form of what the grammar was made from; None where it may be several things."""
        grammar, chains = self.grammar, self.grammar.chains
        if chains is None:
            return [tuple(grammar.plain_labels[grammar.symbols[head]]) for head in self._heads]
        found = ((pair, chains.only(pair)) for pair in self._pairs)
        return [None if chain is None else chains.labels(pair, chain) for pair, chain in found]

    @cached_property
    def _drawn(self) -> bool:
        """Whether any of those is."""
        return bool(self._drawn_steps.any())

    @cached_property
    def _drawn_steps(self) -> Bool[np.ndarray, " steps"]:
        return np.array([names is None for names in self._plain_labels], bool)

    @property
    def _heads(self) -> list[int]:
        grammar = self.grammar
        return np.append(grammar.parents, grammar.tags + len(grammar.nonterminals)).tolist()

    @cached_property
    def _pairs(self) -> list[int]:
        """Symbol and body that each step has in the rules that the grammar was made from."""
        places = self.grammar.places
        return [] if places is None else np.append(places.rules, places.words).tolist()

    def _labels(self, number: int, plain: bool) -> list[tuple[str, ...]]:
        """What each step of a sentence is called."""
        table = self._plain_labels if plain else self._own_labels
        labels = [table[step] for step in self._steps(number).tolist()]
        if plain:
            for place, names in self._draws(number).items():
                labels[place] = names
        return labels

    def _draws(self, number: int) -> dict[int, tuple[str, ...]]:
        """What the steps of a sentence that may be called several things are called, by their places."""
        chains = self.grammar.chains
        if chains is None or not self._drawn:
            return {}
        steps = self._steps(number)
        places = np.flatnonzero(self._drawn_steps[steps]).tolist()
        # Its own generator, so that a sentence's chains don't depend on which others are looked at; numpy's takes longer to make.
        random = Random((self.seed % 2**64 << 64) + int(self.numbers[number]))
        pairs = [self._pairs[step] for step in steps[places].tolist()]
        return {
            place: chains.labels(pair, chains.draw(pair, random)) for place, pair in zip(places, pairs, strict=True)
        }

    def _top(self, plain: bool) -> tuple[str, ...]:
        return self.grammar.chains.top if plain and self.grammar.chains is not None else ()

    def _steps(self, number: int) -> Int32[np.ndarray, " k"]:
        number = range(len(self))[number]
        return self.steps[2 * self.offsets[number] - number : 2 * self.offsets[number + 1] - number - 1]


def sample(
    grammar: Grammar,
    count: int,
    *,
    seed: int,
    max_length: int | None = None,
    method: str = "auto",
    first: int = 0,
) -> Samples:
    """Draw sentences with their trees.

    With a limit, they follow the grammar's distribution given that a sentence has at most so many words, by one of two
    methods: "rejection" throws free draws above the limit away; "exact" draws a length first and conditions every
    choice on it, which costs tables of (binary rules) x (limit) numbers. "auto" takes the second where fewer than a
    fifth of the free draws are within the limit. The result says which was taken.

    Sentence i depends on the seed and i only, so shards drawn apart are those of one large draw.

    Args:
        first: number of the first sentence: `sample(g, 10, seed=0, first=90)` gives the last 10 of `sample(g, 100, seed=0)`.

    Raises GrammarError where no limit is given and the expected length is infinite, and where no sentence is within it.
    """
    if count < 0 or first < 0:
        raise OptionError(f"{min(count, first)} sentences can't be drawn: count and first must be 0 or more")
    if method not in METHODS:
        raise OptionError(f"{method} isn't a method of sampling: name one of {', '.join(METHODS)}")
    if max_length is None:
        if method != "auto":
            raise OptionError(f"{method} sampling needs a max_length")
        grammar.check_proper()
        return _sample_freely(grammar, count, seed, first, None, 1.0)
    lengths = inside_lengths(grammar, max_length)
    acceptance = float((grammar.start @ lengths).sum())
    if not acceptance:
        raise GrammarError(f"the grammar has no sentence of {max_length} words or fewer: allow longer ones")
    if method == "rejection" and count > _MOST_DRAWS * acceptance:
        raise GrammarError(
            f"{acceptance:.2g} of free draws have {max_length} words or fewer, so throwing the others away would take for "
            "ever: use method='exact', or allow longer sentences"
        )
    if method == "rejection" or (method == "auto" and acceptance >= _SCARCE):
        return _sample_freely(grammar, count, seed, first, max_length, acceptance)
    return _sample_by_length(grammar, count, seed, first, lengths, acceptance)


def length_distribution(grammar: Grammar, max_length: int) -> Float64[np.ndarray, " lengths"]:
    """The probability that a sentence has 0, 1, ... max_length words; what is missing from 1 is that it has more."""
    return grammar.start @ inside_lengths(grammar, max_length)


def inside_lengths(grammar: Grammar, max_length: int) -> Float64[np.ndarray, "S lengths"]:
    """The probability that each symbol derives so many words.

    One pass over lengths; products for a pair of children are shared by all rules over it: O(pairs L^2 + R L).
    """
    if max_length < 1:
        raise OptionError(f"a limit of {max_length} words leaves no sentence: allow 1 or more")
    pairs, number = _pairs(grammar)
    found = np.zeros((len(grammar.symbols), max_length + 1))
    found[len(grammar.nonterminals) :, 1] = 1.0
    fill_lengths(grammar.parents, grammar.rule_probs, pairs, number, found)
    return found


def _pairs(grammar: Grammar) -> tuple[Int32[np.ndarray, "pairs 2"], Int64[np.ndarray, " R"]]:
    """The different pairs of children, and each rule's."""
    symbols = len(grammar.symbols)
    codes, number = np.unique(grammar.left.astype(np.int64) * symbols + grammar.right, return_inverse=True)
    return np.stack([codes // symbols, codes % symbols], 1).astype(np.int32), number.astype(np.int64)


def _sample_freely(
    grammar: Grammar, count: int, seed: int, first: int, limit: int | None, acceptance: float
) -> Samples:
    tables = (*_alternatives(grammar), grammar.left, grammar.right, grammar.tokens, _cumulative(grammar.start))
    most = np.iinfo(np.int32).max // 4 if limit is None else limit
    guess = grammar.expected_length if limit is None else float(limit)

    def draw(begin: int, words: np.ndarray, steps: np.ndarray, offsets: np.ndarray) -> int:
        return draw_freely(*tables, np.uint64(seed % 2**64), first + begin, most, words, steps, offsets)

    numbers = np.arange(first, first + count)
    return Samples(
        grammar, *_fill(draw, count, guess), "free" if limit is None else "rejection", acceptance, seed, numbers
    )


def _sample_by_length(
    grammar: Grammar,
    count: int,
    seed: int,
    first: int,
    lengths: Float64[np.ndarray, "S lengths"],
    acceptance: float,
) -> Samples:
    need = 8 * len(grammar.rule_probs) * lengths.shape[1]
    if need > _MOST_BYTES:
        raise GrammarError(
            f"conditioning {len(grammar.rule_probs):,} rules on up to {lengths.shape[1] - 1:,} words takes "
            f"{need / 2**30:.1f} GiB: give a lower limit, or method='rejection' ({acceptance:.2g} of the draws are kept)"
        )
    pairs, number = _pairs(grammar)
    bounds = np.searchsorted(grammar.parents, np.arange(len(grammar.nonterminals) + 1))
    rules = rules_by_length(bounds, grammar.rule_probs, pairs, number, lengths)
    roots = _cumulative((grammar.start[:, None] * lengths).ravel())
    tables = (rules, bounds, roots, lengths, grammar.left, grammar.right, *_alternatives(grammar), grammar.tokens)

    def draw(begin: int, words: np.ndarray, steps: np.ndarray, offsets: np.ndarray) -> int:
        return draw_by_length(*tables, np.uint64(seed % 2**64), first + begin, words, steps, offsets)

    numbers = np.arange(first, first + count)
    return Samples(grammar, *_fill(draw, count, float(lengths.shape[1])), "exact", acceptance, seed, numbers)


def _fill(draw: Callable[..., int], count: int, guess: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw blocks of sentences, each into room that doubles until the next sentence fits."""
    words: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    offsets = [np.zeros(1, np.int64)]
    done, room = 0, int(min(count, _BLOCK) * min(guess, 64.0)) + 64
    while done < count:
        block = (
            np.empty(room, np.int32),
            np.empty(2 * room, np.int32),
            np.zeros(min(count - done, _BLOCK) + 1, np.int64),
        )
        drawn = draw(done, *block)
        if not drawn:
            room *= 2
            continue
        ends = block[2][1 : drawn + 1]
        words.append(block[0][: ends[-1]].copy())
        steps.append(block[1][: 2 * ends[-1] - drawn].copy())
        offsets.append(ends + offsets[-1][-1])
        done += drawn
    empty = [np.empty(0, np.int32)]
    return np.concatenate(words or empty), np.concatenate(offsets), np.concatenate(steps or empty)


def _alternatives(grammar: Grammar) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walker's alias tables over all rules, binary ones first: where each symbol's begin, thresholds, aliases."""
    n, binary = len(grammar.nonterminals), len(grammar.rule_probs)
    heads = np.append(grammar.parents, grammar.tags + n)
    bounds = np.searchsorted(heads, np.arange(len(grammar.symbols) + 1))
    threshold = np.append(grammar.rule_probs, grammar.word_probs)
    alias = np.arange(binary + len(grammar.word_probs), dtype=np.int32)
    build_aliases(bounds, threshold, alias)
    return bounds, threshold, alias


def _cumulative(weights: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    sums = np.cumsum(weights)
    return sums / sums[-1]


def _gather(
    values: Int32[np.ndarray, " K"], offsets: Int64[np.ndarray, " bounds"], numbers: Int64[np.ndarray, " some"]
) -> tuple[Int32[np.ndarray, " k"], Int64[np.ndarray, " ends"]]:
    """The stretches with these numbers, one after another."""
    sizes = offsets[numbers + 1] - offsets[numbers]
    new = np.append(0, np.cumsum(sizes))
    return values[np.repeat(offsets[numbers] - new[:-1], sizes) + np.arange(new[-1])], new
