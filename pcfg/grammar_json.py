"""A grammar as JSON: symbols by name, a rule a line, probabilities to the last bit."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pcfg.errors import GrammarError
from pcfg.origin import Origin

if TYPE_CHECKING:
    from pcfg.grammar import Grammar

SCHEMA = 1


def to_json(grammar: "Grammar") -> str:
    """What `arrays_of_json` reads back."""
    symbols = grammar.symbols
    binary = (x.tolist() for x in (grammar.parents, grammar.left, grammar.right, grammar.rule_probs))
    lexical = (x.tolist() for x in (grammar.tags, grammar.tokens, grammar.word_probs))
    tables = {
        "start": zip(symbols, grammar.start.tolist(), strict=True),
        "binary": ((symbols[a], symbols[b], symbols[c], p) for a, b, c, p in zip(*binary, strict=True)),
        "lexical": ((grammar.preterminals[t], grammar.words[w], p) for t, w, p in zip(*lexical, strict=True)),
    }
    head: dict[str, Any] = {name: getattr(grammar, name) for name in ("nonterminals", "preterminals", "words")}
    head |= {
        "lexicon": None if grammar.lexicon is None else grammar.lexicon.to_json(),
        "transformed": grammar.transformed,
    }
    if grammar.origin is not None:
        head["origin"] = grammar.origin.to_json()
    parts = [f'"schema": {SCHEMA}', *(f'"{name}": {_dump(value)}' for name, value in head.items())]
    for name, rows in tables.items():
        parts.append(f'"{name}": [\n' + ",\n".join(_dump(row) for row in rows) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def arrays_of_json(text: str) -> dict[str, Any]:
    """Keywords for `Grammar.of_arrays`.

    Raises GrammarError for what isn't a grammar file; KeyError, TypeError or ValueError for one that is damaged.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise GrammarError(f"the file isn't JSON ({error}): name one written by Grammar.save") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise GrammarError(f"the file isn't a grammar of schema {SCHEMA}: name one written by this version")
    symbols = {name: i for i, name in enumerate((*content["nonterminals"], *content["preterminals"]))}
    words = {word: i for i, word in enumerate(content["words"])}
    n, start = len(content["nonterminals"]), np.zeros(len(symbols))
    for name, probability in content["start"]:
        start[symbols[name]] = probability
    lexicon = None
    if content["lexicon"] is not None:
        from pcfg.lexicon import SmoothedLexicon

        lexicon = SmoothedLexicon.from_json(content["lexicon"])
    return {
        **{name: content[name] for name in ("nonterminals", "preterminals", "words")},
        "start": start,
        "parents": [symbols[rule[0]] for rule in content["binary"]],
        "left": [symbols[rule[1]] for rule in content["binary"]],
        "right": [symbols[rule[2]] for rule in content["binary"]],
        "rule_probs": [rule[3] for rule in content["binary"]],
        "tags": [symbols[rule[0]] - n for rule in content["lexical"]],
        "tokens": [words[rule[1]] for rule in content["lexical"]],
        "word_probs": [rule[2] for rule in content["lexical"]],
        "lexicon": lexicon,
        "transformed": bool(content["transformed"]),
        "origin": None if content.get("origin") is None else Origin.of_json(content["origin"]),
    }


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
