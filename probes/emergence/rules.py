"""Rules of sampled trees: their names, how often each is used in each text, and which texts hold which tuples of rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from jaxtyping import Int64

from pcfg.grammars.grammar import Grammar
from pcfg.sampling.samples import Samples
from probes.errors import ProbeOptionError

_MOST_TUPLES = 5_000
_COLUMNS = 2_000  # of products of columns at once


@dataclass(frozen=True, eq=False)
class RuleUses:
    """How often rules are used in the trees of texts.

    Attributes:
        names: of the rules: `S -> NP VP`, `N -> 'dog'`.
        uses: sparse matrix [texts, rules] of counts (scipy's CSC).
        everywhere: rules that every tree uses, which tell no text from another and are left out.
    """

    names: tuple[str, ...]
    uses: Any
    everywhere: tuple[str, ...]

    @classmethod
    def of(cls, drawn: Samples, patterns: Sequence[str] | None = None) -> "RuleUses":
        """The rules that trees use.

        Args:
            patterns: take only rules whose names fit one of these shell patterns, such as `NP -> *`.

        Raises:
            ProbeOptionError: patterns that no rule fits, or trees that all use the same rules.
        """
        from scipy.sparse import csc_array

        grammar = drawn.grammar
        names = rule_names(grammar)
        owners = np.repeat(np.arange(len(drawn)), 2 * drawn.lengths - 1)
        shape = (len(drawn), len(names))
        uses = csc_array((np.ones(len(drawn.steps)), (owners, drawn.steps)), shape=shape)
        uses.sum_duplicates()
        fits = np.array([patterns is None or any(fnmatchcase(name, p) for p in patterns) for name in names])
        if not fits.any():
            raise ProbeOptionError(
                f"no rule of the grammar fits `rules` {' '.join(patterns or ())!r}: give a pattern such as {names[0]!r}"
            )
        held = np.diff(uses.indptr)
        chosen = np.flatnonzero(fits & (held > 0) & (held < len(drawn)))
        if not len(chosen):
            raise ProbeOptionError(
                "all trees use the same rules, so none tells one text from another: take more `sentences` or other `rules`"
            )
        everywhere = tuple(names[i] for i in np.flatnonzero(fits & (held == len(drawn))))
        return cls(tuple(names[i] for i in chosen), uses[:, chosen], everywhere)

    @property
    def presence(self) -> Any:
        """1 where a text uses a rule: sparse matrix [texts, rules] (CSC)."""
        held = self.uses.copy()
        held.data = np.ones_like(held.data)
        return held


def rule_names(grammar: Grammar) -> list[str]:
    """Names of a grammar's rules in the order of `Samples.steps`: binary rules, then lexical ones."""
    symbols, tags, words = grammar.symbols, grammar.preterminals, grammar.words
    columns = (grammar.parents.tolist(), grammar.left.tolist(), grammar.right.tolist())
    binary = [f"{symbols[a]} -> {symbols[b]} {symbols[c]}" for a, b, c in zip(*columns, strict=True)]
    pairs = zip(grammar.tags.tolist(), grammar.tokens.tolist(), strict=True)
    return binary + [f"{tags[tag]} -> '{words[word]}'" for tag, word in pairs]


def common_tuples(
    presence: Any, size: int, least: int, *, most: int = _MOST_TUPLES
) -> tuple[Int64[np.ndarray, "tuples size"], Any, bool]:
    """Tuples of rules that occur together in texts: members, presence [texts, tuples] (CSC), and whether some were left out.

    Args:
        presence: of single rules; only the columns that may be in a tuple.
        least: texts that must hold a tuple. Tuples grow from those of one rule less that do.
        most: at each size; the most common ones are taken.
    """
    members = np.flatnonzero(np.diff(presence.indptr) >= least)[:, None]
    columns, cut = presence[:, members[:, 0]], False
    for _ in range(size - 1):
        members, columns, more = _grown(presence, members, columns, least, most)
        cut |= more
    return members, columns, cut


def _grown(
    presence: Any, members: Int64[np.ndarray, "tuples size"], columns: Any, least: int, most: int
) -> tuple[Int64[np.ndarray, "grown more"], Any, bool]:
    """Tuples of one rule more, of a higher number than those they have."""
    from scipy.sparse import csc_array, hstack

    together = (columns.T @ presence).tocoo()
    fits = (together.data >= least) & (together.col > members[together.row, -1])
    rows, others, texts = together.row[fits], together.col[fits], together.data[fits]
    chosen = np.lexsort((others, rows, -texts))[:most]
    chosen = chosen[np.lexsort((others[chosen], rows[chosen]))]
    rows, others = rows[chosen], others[chosen]
    grown = np.concatenate([members[rows], others[:, None]], 1).astype(np.int64)
    parts = [
        columns[:, rows[first : first + _COLUMNS]].multiply(presence[:, others[first : first + _COLUMNS]])
        for first in range(0, len(rows), _COLUMNS)
    ]
    held = csc_array(hstack(parts)) if parts else csc_array((presence.shape[0], 0))
    return grown, held, int(fits.sum()) > most
