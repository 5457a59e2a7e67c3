"""Grammars as text: a rule a line, as people and NLTK write them."""

import re
from collections.abc import Iterable, Iterator

from pcfg.errors import GrammarError
from pcfg.grammars.rules import Rule, Word

_WORD = r"""'(?:\\.|[^'\\])+'|"(?:\\.|[^"\\])+\""""
_QUOTED, _ESCAPED = re.compile(_WORD), re.compile(r"\\([\\'\"])")
_EMPTY = ("''", '""')
_TOKEN = re.compile(rf"(?:{_WORD})(?!\S)|\S+")
# With probabilities behind, as NLTK writes rules, there may be no spaces around them: 'I'[0.5]|'you'[0.5].
_SHARE = r"\[[-+.\deE]+\](?=[\s|]|$)"
_TOKEN_BEHIND = re.compile(rf"(?:{_WORD}|''|\"\")(?=[\s\[|]|$)|{_SHARE}|\||\S+?(?=\s|$|{_SHARE})")
_BEHIND = re.compile(r"\s*\S+\s+->(?=\s|$)")
_START = re.compile(r"\s*%\s*start\s+(\S+)\s*(?:#.*)?")
_GOES_ON = re.compile(r"(?<![^\s\]|'\"])\\\s*$")


def read_rules(text: str, source: str = "the text") -> tuple[list[Rule], str]:
    """Rules and start symbol (the first rule's, or `%start`'s) of a text; see `Grammar.from_text` for its form."""
    lines = list(_lines(text))
    # A treebank has a tag #: where a rule is for one such, # starts a comment only at the beginning of a line.
    hashes = "#" in text and any(re.match(r"\s*[\d.]\S*\s+#\S*\s+->\s", line) for _, line in lines)
    rules: list[Rule] = []
    start = ""
    for number, line in lines:
        if "%" in line and (named := _START.fullmatch(line)):
            start = named[1]
            continue
        tokens = line.split()
        if "'" in line or '"' in line or tokens[1:2] == ["->"]:  # else blanks alone part tokens
            tokens = (_TOKEN_BEHIND if _BEHIND.match(line) else _TOKEN).findall(line)
        if "#" in line:
            marks = (i for i, token in enumerate(tokens) if token[0] == "#" and (i == 0 or not hashes))
            tokens = tokens[: next(marks, len(tokens))]
        if tokens:
            rules += _read_line(tokens, source, number)
    if not rules:
        raise GrammarError(f"{source} holds no rules: give at least one, such as 1.0 S -> NP VP")
    # A treebank has a tag '' too: else it is an empty word.
    if empty := {name for name in _EMPTY if name in text} - {rule.parent for rule in rules}:
        for number, rule in enumerate(rules):
            if not empty.isdisjoint(rule.children):
                rules[number] = rule._replace(children=tuple(Word("") if c in empty else c for c in rule.children))
    return rules, start or rules[0].parent


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers; one that ends in a backslash goes on in the next."""
    whole, first = "", 0
    for number, line in enumerate([*re.split(r"\r\n|\n|\r", text), ""], 1):
        first = first or number
        if "\\" in line and (goes_on := _GOES_ON.search(line)) and not line.lstrip().startswith("#"):
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
            if name in ("->", "%start") or _QUOTED.fullmatch(name):
                raise GrammarError(f"the symbol {name} can't be told from other things in a text: save as JSON instead")
        if re.search(r"['\"\\]", "".join(names)) and not _read_back(line, rule):
            raise GrammarError(f"the rule {rule} can't be told from others in a text: save as JSON instead")
        lines.append(f"{line}\n")
    return "".join(lines)


def _read_back(line: str, rule: Rule) -> bool:
    tokens = _TOKEN.findall(line)
    return not _GOES_ON.search(line) and tokens[1] == rule.parent and _children(tokens[3:]) == rule.children


def _read_line(tokens: list[str], source: str, number: int) -> list[Rule]:
    arrow = tokens.index("->") if "->" in tokens[:3] else -1
    where = f"{source}, line {number}"
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
    return tuple([_word(token) if token[0] in "'\"" and _is_quoted(token) else token for token in tokens])


def _is_quoted(token: str) -> bool:
    if token[-1] == token[0] and token.count(token[0]) == 2 < len(token) and "\\" not in token:
        return True  # at a glance; what else there may be takes longer
    return _QUOTED.fullmatch(token) is not None


def _word(token: str) -> Word:
    return Word(_ESCAPED.sub(r"\1", token[1:-1]) if "\\" in token else token[1:-1])


def _probability(token: str, where: str) -> float:
    try:
        return float(token)
    except ValueError:
        raise GrammarError(f"{where}: {token} isn't a probability: write a number such as 0.5") from None
