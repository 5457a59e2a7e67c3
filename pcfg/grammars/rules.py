"""Rules of any shape, as people write them, and what they must be."""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pcfg.errors import GrammarError

TOLERANCE = 1e-6  # how far the probabilities of a symbol's rules may sum from 1
ROUNDED = 0.01  # and how far in a text, where they were rounded when they were written


class Word(NamedTuple):
    """A word in a rule, as against a symbol."""

    text: str


Children = tuple[str | Word, ...]


class Rule(NamedTuple):
    """A rule of any length over symbols and words."""

    parent: str
    children: Children
    probability: float

    def __str__(self) -> str:
        children = " ".join(quote(c) if isinstance(c, Word) else c for c in self.children)
        return f"{self.parent} -> {children}"


def quote(word: Word) -> str:
    """A word between quotes, with a backslash before what would end it."""
    mark = '"' if "'" in word.text and '"' not in word.text else "'"
    return mark + re.sub(rf"[\\{mark}]", r"\\\g<0>", word.text) + mark


def plain_labels(symbol: str, *, over_word: bool) -> tuple[str, ...]:
    """The labels of a symbol of `to_binary` in trees of the rules' own shape; the rest of a long rule has none.

    A word beside others keeps its preterminal: a tree has no bare words. Symbols of the user's own that begin with / count
    as rests, tags that end in /1 as halves.
    """
    if over_word:
        return (re.sub(r"(?<=.)/1/*$", "", symbol),)
    return () if symbol.startswith("/") else (symbol,)


def symbol_names(rules: Iterable[tuple[str, Children]]) -> Iterator[str]:
    """Every symbol of some rules, as often as it occurs in them."""
    for parent, children in rules:
        yield parent
        yield from (child for child in children if isinstance(child, str))


def check_rules(rules: Sequence[Rule], start: str) -> dict[str, float]:
    """Refuse an empty grammar, empty right-hand sides, improper probabilities and undefined symbols.

    Returns:
        What each symbol's rules sum to: 1 within `ROUNDED`.
    """
    if not rules:
        raise GrammarError("the grammar has no rules: give at least one")
    totals: dict[str, float] = defaultdict(float)
    empty = Word("")
    for rule in rules:
        if not rule.children or empty in rule.children:
            raise GrammarError(_empty(rule))
        if not (math.isfinite(rule.probability) and rule.probability >= 0):
            raise GrammarError(
                f"the rule {rule} has the probability {rule.probability}: it must be a number, 0 or more"
            )
        totals[rule.parent] += rule.probability
    for symbol, total in totals.items():
        check_total(total, f"the rules of {symbol}", ROUNDED)
    if start not in totals:
        raise GrammarError(f"the start symbol {start} has no rules: give it some, or name another start")
    for rule in rules:
        for child in rule.children:
            if child not in totals and not isinstance(child, Word):
                raise GrammarError(
                    f"the rule {rule} uses {child}, which has no rules: give it some, or quote it if it is a word"
                )
    return totals


def _empty(rule: Rule) -> str:
    if set(rule.children) <= {Word("")}:
        return (
            f"the rule {rule if rule.children else f'{rule.parent} -> (nothing)'} derives no word, and every leaf of a tree is "
            f"one: leave it out, and write each rule that uses {rule.parent} with and without it, as S -> A {rule.parent} [0.7] | A [0.3]"
        )
    return f"the rule {rule} has an empty word, which no sentence holds: leave the quotes out, the rest of the rule is the same without them"


def checked_rules(rules: Sequence[Rule], start: str) -> Sequence[Rule]:
    """Rules that `check_rules` accepts; probabilities rounded when they were written are divided by their symbol's sum.

    Warns of that, with the symbol that is furthest off.
    """
    totals = check_rules(rules, start)
    off = [symbol for symbol, total in totals.items() if abs(total - 1) > TOLERANCE]
    if not off:
        return rules
    worst = max(off, key=lambda symbol: abs(totals[symbol] - 1))
    others = f", those of {len(off) - 1:,} more not to 1 either" if len(off) > 1 else ""
    warnings.warn(
        f"the probabilities of the rules of {worst} sum to {totals[worst]:.9g}{others}: each was divided by its sum",
        stacklevel=3,
    )
    return [rule._replace(probability=rule.probability / totals[rule.parent]) for rule in rules]


def check_total(total: float, what: str, tolerance: float = TOLERANCE) -> None:
    """Refuse probabilities that don't sum to 1."""
    if not abs(total - 1) <= tolerance:
        raise GrammarError(f"the probabilities of {what} sum to {total:.9g}: they must sum to 1")
