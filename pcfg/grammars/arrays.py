"""A binary grammar as arrays: what files hold and what engines, samplers and transforms work on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32

from pcfg.errors import GrammarError, TreebankError
from pcfg.grammars.binarization import Origin, Places
from pcfg.grammars.branching import Branching
from pcfg.treebanks.lexicon import signatures
from pcfg.treebanks.trees import bracket_forms


@dataclass(frozen=True, eq=False, repr=False)
class GrammarArrays:
    """Symbols and words by number, the rules over them in columns, and what can be read off these.

    Symbols are numbered jointly: nonterminals 0..N-1, then preterminals N..N+T-1 (S = N + T). A nonterminal heads
    binary rules, a preterminal lexical ones; both may be children of binary rules, and roots. So a nonterminal derives
    two words or more, a preterminal one.

    Attributes:
        nonterminals, preterminals, words: names in the order of their numbers.
        start: probability of each symbol to be the root.
        parents, left, right, rule_probs: the binary rules, sorted by parent, left, right.
        tags, tokens, word_probs: the lexical rules: preterminal number (0..T-1), word number, probability; sorted.
        lexicon: where given, scores words in place of `word_probs` when a sentence is parsed.
        transformed: whether symbols are labels of `transforms.transform`, so that `Grammar.undo` takes trees back.
        origin: the rules of any shape that it was made from, where they are known: `fit` fits those, and trees of the rules'
            own shape have their unary chains.
    """

    nonterminals: tuple[str, ...]
    preterminals: tuple[str, ...]
    words: tuple[str, ...]
    start: Float64[np.ndarray, " S"]
    parents: Int32[np.ndarray, " R"]
    left: Int32[np.ndarray, " R"]
    right: Int32[np.ndarray, " R"]
    rule_probs: Float64[np.ndarray, " R"]
    tags: Int32[np.ndarray, " L"]
    tokens: Int32[np.ndarray, " L"]
    word_probs: Float64[np.ndarray, " L"]
    lexicon: Any = None
    transformed: bool = False
    origin: Origin | None = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """Nonterminals, then preterminals."""
        return self.nonterminals + self.preterminals

    @property
    def roots(self) -> dict[str, float]:
        """The start distribution by name, without its zeros."""
        return {name: p for name, p in zip(self.symbols, self.start.tolist(), strict=True) if p}

    @property
    def binary(self) -> dict[tuple[str, str, str], float]:
        """The binary rules by name."""
        columns = (self.parents.tolist(), self.left.tolist(), self.right.tolist(), self.rule_probs.tolist())
        names = self.symbols
        return {(names[a], names[b], names[c]): p for a, b, c, p in zip(*columns, strict=True)}

    @property
    def lexical(self) -> dict[tuple[str, str], float]:
        """The lexical rules by name."""
        columns = (self.tags.tolist(), self.tokens.tolist(), self.word_probs.tolist())
        return {(self.preterminals[t], self.words[w]): p for t, w, p in zip(*columns, strict=True)}

    def rules_of(self, symbol: str) -> list[tuple[str, float]]:
        """Right-hand sides of a symbol's rules, words in quotes, with their probabilities."""
        number, n = self.symbols.index(symbol), len(self.nonterminals)
        if number >= n:
            chosen = np.flatnonzero(self.tags == number - n)
            words = (f"'{self.words[token]}'" for token in self.tokens[chosen].tolist())
            return list(zip(words, self.word_probs[chosen].tolist(), strict=True))
        chosen = np.flatnonzero(self.parents == number)
        pairs = zip(self.left[chosen].tolist(), self.right[chosen].tolist(), strict=True)
        children = (f"{self.symbols[left]} {self.symbols[right]}" for left, right in pairs)
        return list(zip(children, self.rule_probs[chosen].tolist(), strict=True))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that a grammar is, as 64 hex digits."""
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "origin" and value is None:
                continue  # which grammars of earlier versions didn't have: theirs stays what it was
            if isinstance(value, np.ndarray):
                digest.update(value.tobytes())
            else:
                digest.update(json.dumps(value.to_json() if hasattr(value, "to_json") else value).encode())
        return digest.hexdigest()

    @property
    def lexical_table(self) -> Float64[np.ndarray, "T V"]:
        """P(word | preterminal) as a dense table, made anew."""
        table = np.zeros((len(self.preterminals), len(self.words)))
        table[self.tags, self.tokens] = self.word_probs
        return table

    @cached_property
    def word_numbers(self) -> dict[str, int]:
        """The number of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def emissions(self, sentence: Sequence[str]) -> Float64[np.ndarray, "n T"]:
        """Probability of each word given each preterminal, or the lexicon's scores where there is one.

        A word that the grammar doesn't know is taken for its bracket (-LRB- for a round one, or back) where the grammar knows
        that, else for its signature, where the grammar has signatures.
        Raises GrammarError, naming word and position, for a word that stays unknown.
        """
        if isinstance(sentence, str):
            raise GrammarError("a sentence is a list of words, not a text: split it into words first")
        if self.lexicon is not None:
            try:
                return self.lexicon.scores(sentence)
            except TreebankError as error:
                raise GrammarError(str(error)) from None
        order, bounds = self._by_word
        scores = np.zeros((len(sentence), len(self.preterminals)))
        for position, word in enumerate(sentence):
            number = self.number_of(word, position)
            entries = order[bounds[number] : bounds[number + 1]]
            scores[position, self.tags[entries]] = self.word_probs[entries]
        return scores

    def number_of(self, word: str, position: int) -> int:
        """The number of a word at a position (from 0) of its sentence, known as it is, by its bracket's name, or by its signature.

        Raises GrammarError for a word that stays unknown; see `emissions`.
        """
        number = self.word_numbers.get(word)
        if number is not None:
            return number
        for form in bracket_forms(word):
            if form in self.word_numbers:
                return self.word_numbers[form]
        for signature in signatures(word, position):
            if signature in self.word_numbers:
                return self.word_numbers[signature]
        raise GrammarError(
            f"the word {word!r} (number {position + 1} of its sentence) is unknown: leave the sentence out, "
            "or use a grammar with signatures for unknown words"
        )

    @cached_property
    def places(self) -> Places | None:
        """Which rules, of those that it was made from, each of its probabilities is worked out from."""
        return None if self.origin is None else Places(self.origin.shape, self)

    @cached_property
    def branching(self) -> Branching:
        """The binary rules as a branching process."""
        rules = (self.parents, self.left, self.right, self.rule_probs)
        return Branching(len(self.nonterminals), len(self.symbols), *rules)

    @property
    def useful(self) -> Bool[np.ndarray, " S"]:
        """Which symbols are in some tree over words."""
        generating = self.branching.generating()
        b, n = self.branching, len(self.nonterminals)
        ending = generating[b.left] & generating[b.right]
        rules = (b.parents[ending], b.left[ending], b.right[ending], b.probs[ending])
        return Branching(n, b.symbols, *rules).reachable(self.start * generating)

    @property
    def useless(self) -> tuple[str, ...]:
        """The symbols that no tree over words holds, so that they can go: see `pruned`."""
        return tuple(name for name, keep in zip(self.symbols, self.useful, strict=True) if not keep)

    @cached_property
    def _by_word(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the lexical rules ordered by word, and where those of each word begin."""
        order = np.argsort(self.tokens, kind="stable")
        return order, np.searchsorted(self.tokens[order], np.arange(len(self.words) + 1))
