"""Rules of any shape, as people write them, made binary: the same sentences with the same probabilities."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float64

from pcfg.errors import GrammarError

Key = TypeVar("Key")

TOLERANCE = 1e-6  # how far the probabilities of a symbol's rules may sum from 1

_WORD = r"""'(?:\\\S|[^'\\\s])+'|"(?:\\\S|[^"\\\s])+\""""
_TOKEN = re.compile(rf"(?:{_WORD})(?!\S)|\S+")


class Word(NamedTuple):
    """A word in a rule, as against a symbol."""

    text: str


class Rule(NamedTuple):
    """A rule of any length over symbols and words."""

    parent: str
    children: tuple[str | Word, ...]
    probability: float

    def __str__(self) -> str:
        children = " ".join(quote(c) if isinstance(c, Word) else c for c in self.children)
        return f"{self.parent} -> {children}"


class BinaryForm(NamedTuple):
    """What `Grammar(roots=..., binary=..., lexical=...)` takes."""

    roots: dict[str, float]
    binary: dict[tuple[str, str, str], float]
    lexical: dict[tuple[str, str], float]


def to_binary(rules: Sequence[Rule], start: str) -> BinaryForm:
    """Rules of any shape in binary form; every sentence keeps its exact probability.

    - A start symbol that no rule uses and that has only unary rules to symbols is the distribution over roots.
    - A long rule branches to the right: A -> B C D becomes A -> B /C+D and /C+D -> C D.
    - A word beside others becomes a preterminal: A -> B and C goes through /and -> 'and'.
    - Unary chains A -> B -> ... are closed over: A takes the rules at the chain's end, with the sum over all chains
      (infinitely many when there is a cycle), and a tree shows the chain's top only.
    - A symbol that has both single words and longer phrases becomes two: NP for the phrases, NP/1 for the words.

    Raises GrammarError for rules that aren't a proper grammar: see `check_rules`.
    """
    check_rules(rules, start)
    roots, rules = _roots(rules, start)
    names = _Names(rules)
    phrases: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    words: dict[str, dict[str, float]] = defaultdict(dict)
    unary: dict[tuple[str, str], float] = defaultdict(float)
    for rule in rules:
        match rule.children:
            case (Word(text),):
                _add(words[rule.parent], text, rule.probability)
            case (str(child),):
                unary[rule.parent, child] += rule.probability
            case _:
                _add_long(rule, phrases, words, names)
    if unary:
        phrases, words = _closed(unary, phrases), _closed(unary, words)
    form = _split_mixed(roots, phrases, words, names)
    return _reachable(form) if unary else form


def plain_labels(symbol: str, *, over_word: bool) -> tuple[str, ...]:
    """What a symbol of `to_binary` is called in trees of the rules' own shape; none for the rest of a long rule.

    A word beside others keeps its preterminal: a tree has no bare words. Symbols of the user's own that begin with / count
    as rests, tags that end in /1 as halves.
    """
    if over_word:
        return (re.sub(r"(?<=.)/1/*$", "", symbol),)
    return () if symbol.startswith("/") else (symbol,)


def check_rules(rules: Sequence[Rule], start: str) -> None:
    """Refuse an empty grammar, empty right-hand sides, improper probabilities and undefined symbols."""
    if not rules:
        raise GrammarError("the grammar has no rules: give at least one")
    totals: dict[str, float] = defaultdict(float)
    for rule in rules:
        if not rule.children:
            raise GrammarError(f"the rule {rule.parent} -> (nothing) derives no word: rewrite the grammar without it")
        if not (math.isfinite(rule.probability) and rule.probability >= 0):
            raise GrammarError(
                f"the rule {rule} has the probability {rule.probability}: it must be a number, 0 or more"
            )
        totals[rule.parent] += rule.probability
    for symbol, total in totals.items():
        check_total(total, f"the rules of {symbol}")
    if start not in totals:
        raise GrammarError(f"the start symbol {start} has no rules: give it some, or name another start")
    for rule in rules:
        for child in rule.children:
            if not isinstance(child, Word) and child not in totals:
                raise GrammarError(
                    f"the rule {rule} uses {child}, which has no rules: give it some, or quote it if it is a word"
                )


def check_total(total: float, what: str) -> None:
    """Refuse probabilities that don't sum to 1."""
    if not abs(total - 1) <= TOLERANCE:
        raise GrammarError(f"the probabilities of {what} sum to {total:.9g}: they must sum to 1")


def read_rules(text: str, source: str = "the text") -> tuple[list[Rule], str]:
    """Rules and start symbol (the first rule's, or `%start`'s) of a text; see `Grammar.from_text` for its form."""
    lines = text.splitlines()
    # A treebank has a tag #: where a rule is for one such, # starts a comment only at the beginning of a line.
    hashes = any(re.match(r"\s*[\d.]\S*\s+#\S*\s+->\s", line) for line in lines)
    rules: list[Rule] = []
    start = ""
    for number, line in enumerate(lines, 1):
        tokens = _TOKEN.findall(line)
        comment = next((i for i, token in enumerate(tokens) if token[0] == "#" and (i == 0 or not hashes)), len(tokens))
        tokens = tokens[:comment]
        if tokens[:1] == ["%start"] and len(tokens) == 2:
            start = tokens[1]
        elif tokens:
            rules += _read_line(tokens, f"{source}, line {number}")
    if not rules:
        raise GrammarError(f"{source} holds no rules: give at least one, such as 1.0 S -> NP VP")
    return rules, start or rules[0].parent


def format_rules(rules: Iterable[Rule]) -> str:
    """One line a rule, probability first, exactly as `read_rules` takes it."""
    lines = []
    for rule in rules:
        for name in (rule.parent, *(c for c in rule.children if isinstance(c, str))):
            if name in ("->", "%start") or re.fullmatch(_WORD, name):
                raise GrammarError(f"the symbol {name} can't be told from other things in a text: save as JSON instead")
        lines.append(f"{rule.probability!r} {rule}\n")
    return "".join(lines)


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


class _Names:
    """Names for symbols made here, none of which is taken."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._taken = {name for rule in rules for name in (rule.parent, *rule.children) if isinstance(name, str)}
        self._made: dict[object, str] = {}

    def get(self, key: object, wanted: str) -> tuple[str, bool]:
        """The name for a key, and whether it was made just now."""
        if key in self._made:
            return self._made[key], False
        wanted = re.sub(r"\(", "-LRB-", re.sub(r"\)", "-RRB-", wanted))
        while wanted in self._taken:
            wanted += "/"
        self._taken.add(wanted)
        self._made[key] = wanted
        return wanted, True


def _roots(rules: Sequence[Rule], start: str) -> tuple[dict[str, float], Sequence[Rule]]:
    own = [rule for rule in rules if rule.parent == start]
    symbols_only = all(len(rule.children) == 1 and isinstance(rule.children[0], str) for rule in own)
    if not symbols_only or any(start in rule.children for rule in rules):
        return {start: 1.0}, rules
    roots: dict[str, float] = {}
    for rule in own:
        _add(roots, str(rule.children[0]), rule.probability)
    return roots, [rule for rule in rules if rule.parent != start]


def _add_long(
    rule: Rule,
    phrases: dict[str, dict[tuple[str, str], float]],
    words: dict[str, dict[str, float]],
    names: _Names,
) -> None:
    children = []
    for child in rule.children:
        if isinstance(child, Word):
            name, new = names.get(("word", child.text), f"/{child.text}")
            if new:
                words[name][child.text] = 1.0
            children.append(name)
        else:
            children.append(child)
    parent, probability = rule.parent, rule.probability
    while len(children) > 2:
        rest, new = names.get(("rest", *children[1:]), "/" + "+".join(children[1:]).removeprefix("/"))
        _add(phrases[parent], (children[0], rest), probability)
        if not new:
            return
        parent, children, probability = rest, children[1:], 1.0
    _add(phrases[parent], (children[0], children[1]), probability)


def _closed(
    unary: Mapping[tuple[str, str], float], rules: Mapping[str, Mapping[Key, float]]
) -> dict[str, dict[Key, float]]:
    """Each symbol's rules with those at the ends of its unary chains: (I - M)^-1 times the rules, M the unary ones."""
    symbols = list(dict.fromkeys(name for pair in unary for name in pair))
    numbers = {name: i for i, name in enumerate(symbols)}
    matrix = np.eye(len(symbols))
    for (parent, child), probability in unary.items():
        matrix[numbers[parent], numbers[child]] -= probability
    try:
        chains = np.linalg.inv(matrix)
        ended = chains @ matrix.sum(1)  # the probability that a chain comes to an end
    except np.linalg.LinAlgError:
        ended = np.zeros(len(symbols))
    if not np.allclose(ended, 1, rtol=0, atol=TOLERANCE):
        raise GrammarError(
            "some unary rules lead round in a circle with probability 1: give one of them another way out"
        )
    chains = np.where(_linked(matrix), chains, 0.0)  # where there is no chain the inverse may hold rounding
    closed: dict[str, dict[Key, float]] = {name: dict(own) for name, own in rules.items()}
    for parent in dict.fromkeys(parent for parent, _ in unary):
        closed[parent] = {}
        for end in np.flatnonzero(chains[numbers[parent]] > 0):
            for key, probability in rules.get(symbols[end], {}).items():
                _add(closed[parent], key, float(chains[numbers[parent], end]) * probability)
    return closed


def _linked(matrix: Float64[np.ndarray, "K K"]) -> Bool[np.ndarray, "K K"]:
    """Which entries a power of the matrix may fill, the zeroth among them."""
    linked = (matrix != 0) | np.eye(len(matrix), dtype=bool)
    while True:
        more = linked @ linked
        if (more == linked).all():
            return linked
        linked = more


def _split_mixed(
    roots: Mapping[str, float],
    phrases: Mapping[str, Mapping[tuple[str, str], float]],
    words: Mapping[str, Mapping[str, float]],
    names: _Names,
) -> BinaryForm:
    """Tell symbols of phrases from symbols of words, as `NP` and `NP/1` where a symbol has both."""
    parts: dict[str, list[tuple[str, float]]] = {}  # what a symbol becomes, with shares
    share: dict[str, tuple[float, float]] = {}  # of phrases and words among a symbol's rules
    for symbol in dict.fromkeys((*phrases, *words)):
        both = math.fsum(phrases.get(symbol, {}).values()), math.fsum(words.get(symbol, {}).values())
        if phrases.get(symbol) and words.get(symbol):
            share[symbol] = both[0] / sum(both), both[1] / sum(both)
            tag = names.get(("tag", symbol), f"{symbol}/1")[0]
            parts[symbol] = [(name, part) for name, part in zip((symbol, tag), share[symbol], strict=True) if part]
        else:
            parts[symbol] = [(symbol, 1.0)]
    form = BinaryForm({}, {}, {})
    for root, p in roots.items():
        for name, part in parts[root]:
            form.roots[name] = p * part
    for parent, own in phrases.items():
        total = share[parent][0] if parent in share else 1.0
        for (left, right), p in own.items():
            for left_name, left_part in parts[left]:
                for right_name, right_part in parts[right]:
                    if total:
                        form.binary[parent, left_name, right_name] = p / total * left_part * right_part
    for tag, texts in words.items():
        total = share[tag][1] if tag in share else 1.0
        for text, p in texts.items():
            if total:
                form.lexical[names.get(("tag", tag), tag)[0] if tag in share else tag, text] = p / total
    return form


def _reachable(form: BinaryForm) -> BinaryForm:
    """Without the symbols that stood in unary chains only."""
    below: dict[str, set[str]] = defaultdict(set)
    for parent, left, right in form.binary:
        below[parent] |= {left, right}
    seen, todo = set(form.roots), list(form.roots)
    while todo:
        new = below[todo.pop()] - seen
        seen |= new
        todo += new
    return BinaryForm(
        form.roots,
        {rule: p for rule, p in form.binary.items() if rule[0] in seen},
        {rule: p for rule, p in form.lexical.items() if rule[0] in seen},
    )


def _add(to: dict[Key, float], key: Key, probability: float) -> None:
    to[key] = to.get(key, 0.0) + probability
