"""What a grammar must be: whole, proper, and able to derive a sentence."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pcfg.errors import GrammarError
from pcfg.grammars.rules import TOLERANCE, check_total


def check_grammar(grammar: Any) -> None:
    """Refuse a `Grammar` that isn't one, naming what is wrong with it."""
    _check_names(grammar.symbols, "symbol")
    _check_names(grammar.words, "word")
    n, symbols = len(grammar.nonterminals), grammar.symbols
    if not len(grammar.word_probs):
        raise GrammarError("the grammar has no words: give at least one root and one lexical rule")
    if len(grammar.start) != len(symbols):
        raise GrammarError(f"start holds {len(grammar.start):,} numbers where {len(symbols):,} are needed")
    limits = {
        "parents": n,
        "left": len(symbols),
        "right": len(symbols),
        "tags": len(symbols) - n,
        "tokens": len(grammar.words),
    }
    for name, limit in limits.items():
        column = getattr(grammar, name)
        if len(column) and not (column.min() >= 0 and column.max() < limit):
            raise GrammarError(f"{name} holds numbers outside 0..{limit - 1}")
    _check_probabilities(grammar)
    if not (grammar.branching.generating() & (grammar.start > 0)).any():
        raise GrammarError("no root derives a sentence: every tree goes on for ever, so give the roots rules that end")


def _check_names(names: Sequence[str], kind: str) -> None:
    seen = set()
    for name in names:
        if kind == "symbol" and (not name or any(c.isspace() or c in "()" for c in name)):
            raise GrammarError(f"the symbol {name!r} can't be used: it is empty, or holds spaces or brackets")
        if kind == "word" and (not name.strip() or any(c in "\n\r" for c in name)):
            raise GrammarError(f"the word {name!r} can't be used: it is empty, or holds a line break")
        if name in seen:
            raise GrammarError(f"the {kind} {name} comes twice: each needs a name of its own")
        seen.add(name)


def _check_probabilities(grammar: Any) -> None:
    symbols, n = grammar.symbols, len(grammar.nonterminals)
    for names, keys, values in (
        (lambda i: f"root {symbols[i]}", (np.arange(len(symbols)),), grammar.start),
        (
            lambda i, j, k: f"rule {symbols[i]} -> {symbols[j]} {symbols[k]}",
            (grammar.parents, grammar.left, grammar.right),
            grammar.rule_probs,
        ),
        (
            lambda i, j: f"rule {grammar.preterminals[i]} -> '{grammar.words[j]}'",
            (grammar.tags, grammar.tokens),
            grammar.word_probs,
        ),
    ):
        for i in np.flatnonzero(~((values >= 0) & np.isfinite(values)))[:1]:
            raise GrammarError(
                f"the {names(*(key[i] for key in keys))} has the probability {values[i]}: it must be 0 or more"
            )
        same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
        for i in np.flatnonzero(same)[:1]:
            raise GrammarError(f"the {names(*(key[i] for key in keys))} comes twice: add the two up")
    check_total(float(grammar.start.sum()), "the roots")
    totals = np.append(
        np.bincount(grammar.parents, grammar.rule_probs, n),
        np.bincount(grammar.tags, grammar.word_probs, len(symbols) - n),
    )
    used = np.append(np.bincount(grammar.parents, minlength=n), np.bincount(grammar.tags, minlength=len(symbols) - n))
    for i in np.flatnonzero(used == 0)[:1]:
        raise GrammarError(f"the symbol {symbols[i]} has no rules: give it some, or leave it out")
    for i in np.flatnonzero(~(np.abs(totals - 1) <= TOLERANCE))[:1]:
        check_total(float(totals[i]), f"the rules of {symbols[i]}")
