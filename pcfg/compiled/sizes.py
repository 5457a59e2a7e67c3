"""How large a compiled transformer is, by arithmetic alone, beside the paper's constructions."""

from dataclasses import dataclass

import torch

from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from surgery.memory import free_memory, size


@dataclass(frozen=True)
class Sizes:
    """Of the transformer of a grammar with N nonterminals, P preterminals and V words, for sentences of L words.

    Attributes:
        rules: binary rules that aren't zero.
    """

    nonterminals: int
    preterminals: int
    words: int
    rules: int
    length: int

    @classmethod
    def of(cls, grammar: Grammar, max_length: int) -> "Sizes":
        """Of a grammar's transformer."""
        return cls(
            len(grammar.nonterminals), len(grammar.preterminals), len(grammar.words), len(grammar.parents), max_length
        )

    @property
    def symbols(self) -> int:
        """S = N + P."""
        return self.nonterminals + self.preterminals

    @property
    def layers(self) -> int:
        """2 (L - 1): as many inside as outside."""
        return 2 * (self.length - 1)

    @property
    def inside_heads(self) -> int:
        """S: one for each right child."""
        return self.symbols

    @property
    def outside_heads(self) -> int:
        """2 S: one for each right child, one for each sibling of a left child."""
        return 2 * self.symbols

    @property
    def width(self) -> int:
        """1 + 2 (N L + P)."""
        return 1 + 2 * (self.nonterminals * self.length + self.preterminals)

    @property
    def stored(self) -> int:
        """Numbers that the model's file holds: rules, words with scales, roots. The specials' rows of the embedding count."""
        return self.nonterminals * self.symbols**2 + (self.words + 5) * (self.preterminals + 1) + self.symbols

    @property
    def operations(self) -> int:
        """Multiplications and additions of the matrix products in all layers, for one sentence of L words."""
        n, s, p, t = self.nonterminals, self.symbols, self.preterminals, self.length
        scores, sums = t**3 * n, t**3 * n * n  # of nonterminals' heads
        parents = t * t * n**3 + t * n * n * p
        near, beside = t**3 * s + t * t * n * s, t * n * s * p  # of preterminals' heads
        inside = scores + parents + sums + near + beside
        of_right = parents + sums + near + beside + scores
        of_left = scores + sums + parents + beside + scores + t * t * (n * s + 2 * n * n + n) + t * n * p
        return 2 * (self.length - 1) * (inside + of_right + of_left)

    def memory(self, itemsize: int, sentences: int = 1) -> int:
        """Bytes that the weights and a layer take at its fullest: products of every two words, states, sums over rules."""
        n, s, t = self.nonterminals, self.symbols, self.length
        each = 3 * t * t * n * n + 3 * t * t * s + 2 * t * n * s + 5 * t * self.width
        return itemsize * (self.stored + 2 * n**3 + sentences * each)

    def check_memory(self, itemsize: int) -> None:
        """Raise OptionError where the model and one sentence would not fit into what is free."""
        needed, free = self.memory(itemsize), free_memory(torch.device("cpu"))
        if needed > free:
            raise OptionError(
                f"a transformer of {self.nonterminals:,} nonterminals and {self.preterminals:,} preterminals for {self.length} words "
                f"takes {size(needed)} and {size(free)} are free: keep fewer nonterminals (surgery pcfg compile --keep, or `prune`), or lower `max_length`"
            )

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Beside the paper's constructions (Zhao et al. 2023): theirs with relative positions, and with hard attention."""
        n, t = self.symbols, self.length
        return ["construction", "layers", "heads", "width"], [
            ["this one", self.layers, f"{self.inside_heads} and {self.outside_heads}", self.width],
            ["soft attention, relative positions", 2 * t, n, 2 * n * t],
            ["hard attention", 2 * t - 1, 4 * n, (4 * n + 1) * t],
        ]
