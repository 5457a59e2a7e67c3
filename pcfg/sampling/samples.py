"""What was drawn from a grammar: sentences with their trees, in flat arrays."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
from pcfg.sampling.kernels import hashes
from pcfg.treebanks.trees import Tree
from surgery.files import new_folder, replace_bytes
from surgery.reporting.page import Table, Text, render
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result

_FILE, _ARRAYS = "samples.safetensors", ("words", "offsets", "steps", "numbers")
_SHOWN = 20  # sentences in a notebook
_Pieces = tuple[list[str], list[str]]


@dataclass(frozen=True, eq=False)
class Samples(Result):
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
    def summary(self) -> list[str]:
        """How many sentences and words, and how they were drawn."""
        how = {
            "free": "without a limit",
            "rejection": f"of which those above the limit, {1 - self.acceptance:.1%}, were thrown away",
            "exact": f"conditioned on the limit, which {self.acceptance:.2g} of free draws keep",
        }
        return [
            f"{number_of(len(self), 'sentence')} of {number_of(len(self.words), 'word')}, drawn by seed {self.seed} {how[self.method]}."
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row a sentence: its words, how many, and its tree in the form of what the grammar was made from."""
        rows = [[" ".join(words), len(words), str(self.tree(i, plain=True))] for i, words in enumerate(self)]
        return ["sentence", "words", "tree"], rows

    def _repr_html_(self) -> str:
        columns, rows = self.take(np.arange(min(_SHOWN, len(self)))).table()
        return render([*map(Text, self.summary), Table(f"The first {len(rows)} sentences.", columns, rows)])

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """A folder with the grammar and the arrays; it appears whole or not at all."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        note = {"method": self.method, "acceptance": repr(self.acceptance), "seed": str(self.seed)}
        with new_folder(Path(folder), overwrite=overwrite, replaces=_FILE) as staged:
            self.grammar.save(staged / GRAMMAR_FILE)
            replace_bytes(staged / _FILE, save(arrays, metadata=note))
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Samples":
        """What `save` wrote. Raises GrammarError, naming the file, for anything else."""
        file = Path(folder).expanduser() / _FILE
        try:
            with safe_open(file, "np") as opened:
                note = opened.metadata()
                arrays = {name: opened.get_tensor(name) for name in _ARRAYS}
            settings = (note["method"], float(note["acceptance"]), int(note["seed"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise GrammarError(f"{file} can't be read ({error}): name a folder that Samples.save wrote") from None
        grammar = Grammar.load(file.parent / GRAMMAR_FILE)
        return cls(grammar, arrays["words"], arrays["offsets"], arrays["steps"], *settings, arrays["numbers"])

    @property
    def lengths(self) -> Int64[np.ndarray, " count"]:
        """How many words each sentence has."""
        return np.diff(self.offsets)

    def tree(self, number: int, *, plain: bool = False) -> Tree:
        """The tree of a sentence; `plain` as for `bracketed`."""
        binary, made = len(self.grammar.rule_probs), list[tuple[Tree | str, ...]]()
        steps, labels, words = self._steps(number).tolist(), self._labels(number, plain), self[number]
        # Backwards, so that both children of a rule come before it.
        for step, names in zip(reversed(steps), reversed(labels), strict=True):
            below = (*made.pop(), *made.pop()) if step < binary else (words.pop(),)
            for name in reversed(names):
                below = (Tree(name, below),)
            made.append(below)
        (whole,) = made[0]
        for name in self._top(plain):
            whole = Tree(name, (whole,))
        return whole  # type: ignore[return-value]

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
        """What each rule writes before its children and, if it is binary, after them; nothing where labels are drawn."""
        same: dict[str, str] = {}  # one copy of each, as rules are many and labels few
        pieces = [self._piece(step, names or ()) for step, names in enumerate(labels)]
        return [same.setdefault(head, head) for head, _ in pieces], [same.setdefault(tail, tail) for _, tail in pieces]

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
        """The labels of each rule in the form of what the grammar was made from; None where one of several chains is drawn."""
        grammar, chains = self.grammar, self.grammar.chains
        if chains is None:
            return [tuple(grammar.plain_labels[grammar.symbols[head]]) for head in self._heads]
        chosen = ((pair, chains.only(pair)) for pair in self._pairs)
        return [None if chain is None else chains.labels(pair, chain) for pair, chain in chosen]

    @cached_property
    def _drawn(self) -> bool:
        """Whether any rule stands for several chains, one of which is drawn."""
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
        """The pair of symbol and body (`Shape`) of each rule, in the rules that the grammar was made from."""
        places = self.grammar.places
        return [] if places is None else np.append(places.rules, places.words).tolist()

    def _labels(self, number: int, plain: bool) -> list[tuple[str, ...]]:
        """The labels of each step of a sentence."""
        table = self._plain_labels if plain else self._own_labels
        labels = [table[step] for step in self._steps(number).tolist()]
        if plain:
            for place, names in self._draws(number).items():
                labels[place] = names
        return labels

    def _draws(self, number: int) -> dict[int, tuple[str, ...]]:
        """The drawn labels of a sentence's steps that may be one of several chains, by place."""
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


def _gather(
    values: Int32[np.ndarray, " K"], offsets: Int64[np.ndarray, " bounds"], numbers: Int64[np.ndarray, " some"]
) -> tuple[Int32[np.ndarray, " k"], Int64[np.ndarray, " ends"]]:
    """Some stretches of an array in the order given, and where each begins."""
    sizes = offsets[numbers + 1] - offsets[numbers]
    new = np.append(0, np.cumsum(sizes))
    return values[np.repeat(offsets[numbers] - new[:-1], sizes) + np.arange(new[-1])], new
