"""Sentences read from files, checked against a grammar before any work is spent on them."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pcfg.errors import GrammarError, PcfgError
from pcfg.grammars.grammar import Grammar
from surgery.jsonfile import parse_loose

_WORDS = re.compile(r"\S+", re.ASCII)  # U+00A0 and its like stand within words: that is what they are for
_NAMED = 20  # words in a message
MOST_SENTENCES = 64  # sentences in a batch
MOST_NUMBERS = 1 << 25  # in the tables of a batch


def read_sentences(path: str | Path) -> list[list[str]]:
    """The sentences of a text file: one a line, words between spaces (U+00A0 is part of a word); or of a .jsonl file: `tokens` of each line.

    An empty line is a sentence of no words, so that sentence k is always line k.
    Raises PcfgError, with file and line, for what can't be read, and for a file without sentences.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PcfgError(f"{path} isn't UTF-8 text (byte {error.start:,}): convert it first") from None
    except OSError as error:
        raise PcfgError(f"{path} can't be read: {error.strerror}") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    if not any(line.strip() for line in lines):
        raise PcfgError(f"{path} holds no sentences: write one a line, words between spaces")
    if Path(path).suffix.lower() != ".jsonl":
        return [_WORDS.findall(line) for line in lines]
    return [_tokens(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _tokens(line: str, where: str) -> list[str]:
    try:
        tokens = parse_loose(line)["tokens"]
    except (ValueError, KeyError, TypeError):
        raise PcfgError(f'{where} isn\'t a JSON object with tokens: write {{"tokens": ["a", "word"]}}') from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise PcfgError(f"{where}: tokens must be a list of words")
    return tokens


def fingerprint(sentences: Iterable[Sequence[str]]) -> str:
    """SHA-256 of sentences, as 64 hex digits."""
    return hashlib.sha256("\n".join(" ".join(sentence) for sentence in sentences).encode()).hexdigest()


def check_words(
    grammar: Grammar, sentences: Iterable[Sequence[str]], source: object = "the text", *, unit: str = "line"
) -> None:
    """Raise GrammarError for words that the grammar doesn't know: the first with its sentence and position, the others by name."""
    known: set[tuple[str, bool]] = set()  # an unknown word's form depends on whether it stands first
    first, unknown = "", dict[str, None]()
    look_up = grammar.number_of if grammar.lexicon is None else grammar.lexicon.posterior
    for number, sentence in enumerate(sentences, 1):
        if isinstance(sentence, str):
            grammar.emissions(sentence)  # which refuses it
        for position, word in enumerate(sentence):
            if (word, position == 0) in known:
                continue
            known.add((word, position == 0))
            try:
                look_up(word, position)
            except PcfgError as error:
                first = first or f"{source}, {unit} {number}: {error}"
                unknown[word] = None
    if first:
        raise GrammarError(
            first + others(list(unknown)[1:], "other word is unknown too", "other words are unknown too")
        )


def others(words: Sequence[str], one: str, more: str) -> str:
    """The end of a message about one word: how many other words it is true of, 20 of them by name."""
    if not words:
        return ""
    named = ", ".join(map(repr, words[:_NAMED])) + (" ..." if len(words) > _NAMED else "")
    return f"; {len(words):,} {one if len(words) == 1 else more}: {named}"


def batches(sentences: Sequence[Sequence[str]], numbers: Callable[[int], int]) -> Iterator[Int64[np.ndarray, " some"]]:
    """Batches of sentences' numbers, of about the same length, to share a chart; longest first, without empty ones.

    Args:
        numbers: how many numbers the chart of a sentence of so many words holds.
    """
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        size = max(1, min(MOST_SENTENCES, MOST_NUMBERS // numbers(int(lengths[order[0]]))))
        yield order[:size]
        order = order[size:]
