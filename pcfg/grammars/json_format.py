"""A grammar as JSON: symbols by name, a rule a line, probabilities to the last bit."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from pcfg.errors import GrammarError
from pcfg.grammars.binarization import Origin, OriginJson
from pcfg.treebanks.lexicon import LexiconJson, SmoothedLexicon
from surgery.jsonfile import JsonError, KindError, load_json

SCHEMA = 1


def json_of_arrays(arrays: Mapping[str, Any]) -> str:
    """What `arrays_of_json` reads back, of the attributes of a `GrammarArrays` by name."""
    preterminals, words = arrays["preterminals"], arrays["words"]
    symbols = (*arrays["nonterminals"], *preterminals)
    binary = (arrays[name].tolist() for name in ("parents", "left", "right", "rule_probs"))
    lexical = (arrays[name].tolist() for name in ("tags", "tokens", "word_probs"))
    tables = {
        "start": zip(symbols, arrays["start"].tolist(), strict=True),
        "binary": ((symbols[a], symbols[b], symbols[c], p) for a, b, c, p in zip(*binary, strict=True)),
        "lexical": ((preterminals[t], words[w], p) for t, w, p in zip(*lexical, strict=True)),
    }
    head: dict[str, Any] = {name: arrays[name] for name in ("nonterminals", "preterminals", "words")}
    lexicon, origin = arrays["lexicon"], arrays["origin"]
    head |= {"lexicon": None if lexicon is None else lexicon.to_json(), "transformed": arrays["transformed"]}
    if origin is not None:
        head["origin"] = origin.to_json()
    parts = [f'"schema": {SCHEMA}', *(f'"{name}": {_dump(value)}' for name, value in head.items())]
    for name, rows in tables.items():
        parts.append(f'"{name}": [\n' + ",\n".join(_dump(row) for row in rows) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


class _GrammarFile(msgspec.Struct):
    schema: Literal[1]
    nonterminals: list[str]
    preterminals: list[str]
    words: list[str]
    lexicon: LexiconJson | None
    transformed: bool
    start: list[tuple[str, float]]
    binary: list[tuple[str, str, str, float]]
    lexical: list[tuple[str, str, float]]
    origin: OriginJson | None = None


def arrays_of_json(path: Path) -> dict[str, Any]:
    """Keywords for `GrammarArrays.of_arrays` from a file.

    Raises OSError; GrammarError for what isn't a grammar file; KindError or KeyError for one that is damaged.
    """
    try:
        content = load_json(path, _GrammarFile)
    except KindError as error:
        if not re.search(r"`object`, got|schema", str(error)):
            raise
        raise GrammarError(f"the file isn't a grammar of schema {SCHEMA}: name one written by this version") from None
    except JsonError as error:
        raise GrammarError(f"the file isn't JSON ({error}): name one written by Grammar.save") from None
    symbols = {name: i for i, name in enumerate((*content.nonterminals, *content.preterminals))}
    words = {word: i for i, word in enumerate(content.words)}
    n = len(content.nonterminals)
    start = np.zeros(n + len(content.preterminals))
    for name, probability in content.start:
        start[symbols[name]] = probability
    lexicon = None if content.lexicon is None else SmoothedLexicon.from_json(content.lexicon)
    if lexicon is not None and len(lexicon.tag_probs) != len(content.preterminals):
        raise GrammarError("the lexicon in the grammar file has other tags than the grammar: induce it again")
    return {
        **{name: getattr(content, name) for name in ("nonterminals", "preterminals", "words", "transformed")},
        "start": start,
        "parents": [symbols[rule[0]] for rule in content.binary],
        "left": [symbols[rule[1]] for rule in content.binary],
        "right": [symbols[rule[2]] for rule in content.binary],
        "rule_probs": [rule[3] for rule in content.binary],
        "tags": [symbols[rule[0]] - n for rule in content.lexical],
        "tokens": [words[rule[1]] for rule in content.lexical],
        "word_probs": [rule[2] for rule in content.lexical],
        "lexicon": lexicon,
        "origin": None if content.origin is None else Origin.of_json(content.origin),
    }


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
