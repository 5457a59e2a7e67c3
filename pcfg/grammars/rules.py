"""Rules of any shape, as people write them: what they must be, and how texts of them are read and written."""

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pcfg.errors import GrammarError

TOLERANCE = 1e-6  # how far the probabilities of a symbol's rules may sum from 1
ROUNDED = 0.01  # and how far in a text, where they were rounded when they were written

_WORD = r"""'(?:\\.|[^'\\])+'|"(?:\\.|[^"\\])+\""""
_EMPTY = ("''", '""')
_TOKEN = re.compile(rf"(?:{_WORD})(?!\S)|\S+")
# With probabilities behind, as NLTK writes rules, there may be no spaces around them: 'I'[0.5]|'you'[0.5].
_SHARE = r"\[[-+.\deE]+\](?=[\s|]|$)"
_TOKEN_BEHIND = re.compile(rf"(?:{_WORD}|''|\"\")(?=[\s\[|]|$)|{_SHARE}|\||\S+?(?=\s|$|{_SHARE})")
_BEHIND = re.compile(r"\s*\S+\s+->(?=\s|$)")
_START = re.compile(r"\s*%\s*start\s+(\S+)\s*(?:#.*)?")
_GOES_ON = re.compile(r"(?<![^\s\]|'\"])\\\s*$")


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


def plain_labels(symbol: str, *, over_word: bool) -> tuple[str, ...]:
    """What a symbol of `to_binary` is called in trees of the rules' own shape; none for the rest of a long rule.

    A word beside others keeps its preterminal: a tree has no bare words. Symbols of the user's own that begin with / count
    as rests, tags that end in /1 as halves.
    """
    if over_word:
        return (re.sub(r"(?<=.)/1/*$", "", symbol),)
    return () if symbol.startswith("/") else (symbol,)


def symbol_names(rules: Iterable[tuple[str, Children]]) -> Iterator[str]:
    """Every symbol of rules without their probabilities, as often as it comes."""
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
    for rule in rules:
        if not rule.children:
            raise GrammarError(f"the rule {rule.parent} -> (nothing) derives no word: rewrite the grammar without it")
        if Word("") in rule.children:
            raise GrammarError(
                f"the rule {rule} has an empty word, which no sentence holds: rewrite the grammar without it"
            )
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
            if not isinstance(child, Word) and child not in totals:
                raise GrammarError(
                    f"the rule {rule} uses {child}, which has no rules: give it some, or quote it if it is a word"
                )
    return totals


def checked_rules(rules: Sequence[Rule], start: str) -> Sequence[Rule]:
    """`check_rules`; where probabilities were rounded when they were written, each is divided by its symbol's sum.

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


def read_rules(text: str, source: str = "the text") -> tuple[list[Rule], str]:
    """Rules and start symbol (the first rule's, or `%start`'s) of a text; see `Grammar.from_text` for its form."""
    lines = list(_lines(text))
    # A treebank has a tag #: where a rule is for one such, # starts a comment only at the beginning of a line.
    hashes = any(re.match(r"\s*[\d.]\S*\s+#\S*\s+->\s", line) for _, line in lines)
    rules: list[Rule] = []
    start = ""
    for number, line in lines:
        if named := _START.fullmatch(line):
            start = named[1]
            continue
        tokens = (_TOKEN_BEHIND if _BEHIND.match(line) else _TOKEN).findall(line)
        comment = next((i for i, token in enumerate(tokens) if token[0] == "#" and (i == 0 or not hashes)), len(tokens))
        if tokens := tokens[:comment]:
            rules += _read_line(tokens, f"{source}, line {number}")
    if not rules:
        raise GrammarError(f"{source} holds no rules: give at least one, such as 1.0 S -> NP VP")
    symbols = {rule.parent for rule in rules}  # a treebank has a tag '' too: else it is an empty word
    for number, rule in enumerate(rules):
        if any(child in _EMPTY and child not in symbols for child in rule.children):
            known = (c if c not in _EMPTY or c in symbols else Word("") for c in rule.children)
            rules[number] = rule._replace(children=tuple(known))
    return rules, start or rules[0].parent


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers; one that ends in a backslash goes on in the next."""
    whole, first = "", 0
    for number, line in enumerate([*re.split(r"\r\n|\n|\r", text), ""], 1):
        first = first or number
        if (goes_on := _GOES_ON.search(line)) and not line.lstrip().startswith("#"):
            whole += line[: goes_on.start()] + " "
            continue
        yield first, whole + line
        whole, first = "", 0


def format_rules(rules: Iterable[Rule]) -> str:
    """One line a rule, probability first, exactly as `read_rules` takes it."""
    lines = []
    for rule in rules:
        names = [rule.parent, *(c for c in rule.children if isinstance(c, str))]
        line = f"{rule.probability!r} {rule}"
        for name in names:
            if name in ("->", "%start") or re.fullmatch(_WORD, name):
                raise GrammarError(f"the symbol {name} can't be told from other things in a text: save as JSON instead")
        if re.search(r"['\"\\]", "".join(names)) and not _read_back(line, rule):
            raise GrammarError(f"the rule {rule} can't be told from others in a text: save as JSON instead")
        lines.append(f"{line}\n")
    return "".join(lines)


def _read_back(line: str, rule: Rule) -> bool:
    tokens = _TOKEN.findall(line)
    return not _GOES_ON.search(line) and tokens[1] == rule.parent and _children(tokens[3:]) == rule.children


def quote(word: Word) -> str:
    """A word between quotes, with a backslash before what would end it."""
    mark = '"' if "'" in word.text and '"' not in word.text else "'"
    return mark + re.sub(rf"[\\{mark}]", r"\\\g<0>", word.text) + mark


def _read_line(tokens: list[str], where: str) -> list[Rule]:
    arrow = tokens.index("->") if "->" in tokens[:3] else -1
    if arrow == 2:
        return [Rule(tokens[1], _children(tokens[3:]), _probability(tokens[0], where))]
    if arrow != 1:
        raise GrammarError(
            f"{where}: a rule looks like 0.5 S -> NP VP or S -> NP VP [0.5], not {' '.join(tokens)[:60]}"
        )
    rules, alternative = [], list[str]()
    for token in [*tokens[2:], "|"]:
        if token != "|":
            alternative.append(token)
            continue
        given = re.fullmatch(r"\[(\S+)\]", alternative.pop()) if alternative else None
        if given is None:
            raise GrammarError(
                f"{where}: a right-hand side has no probability: write it before the rule, or after as [0.5]"
            )
        rules.append(Rule(tokens[0], _children(alternative), _probability(given[1], where)))
        alternative = []
    return rules


def _children(tokens: list[str]) -> tuple[str | Word, ...]:
    return tuple(Word(re.sub(r"\\([\\'\"])", r"\1", t[1:-1])) if re.fullmatch(_WORD, t) else t for t in tokens)


def _probability(token: str, where: str) -> float:
    try:
        return float(token)
    except ValueError:
        raise GrammarError(f"{where}: {token} isn't a probability: write a number such as 0.5") from None
