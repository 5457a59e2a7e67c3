"""Sentences read from files, checked against a grammar before any work is spent on them."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pcfg.errors import PcfgError
from pcfg.grammar import Grammar

_WORDS = re.compile(r"\S+", re.ASCII)  # U+00A0 and its like stand within words: that is what they are for
_MOST = 64  # sentences in a batch
_MOST_NUMBERS = 1 << 25  # in the tables of a batch


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
        tokens = json.loads(line)["tokens"]
    except (ValueError, KeyError, TypeError):
        raise PcfgError(f'{where} isn\'t a JSON object with tokens: write {{"tokens": ["a", "word"]}}') from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise PcfgError(f"{where}: tokens must be a list of words")
    return tokens


def check_words(grammar: Grammar, sentences: Iterable[Sequence[str]], source: object = "the text") -> None:
    """Raise PcfgError for a word that the grammar doesn't know, with its sentence and position."""
    known: set[tuple[str, bool]] = set()  # an unknown word's form depends on whether it stands first
    for number, sentence in enumerate(sentences, 1):
        new = {(word, position == 0) for position, word in enumerate(sentence)} - known
        if not new:
            continue
        try:
            grammar.emissions(list(sentence))
        except PcfgError as error:
            raise PcfgError(f"{source}, line {number}: {error}") from None
        known |= new


def batches(sentences: Sequence[Sequence[str]], numbers: Callable[[int], int]) -> Iterator[Int64[np.ndarray, " some"]]:
    """Sentences of about the same length that go into a chart together, longest first; those of no words are left out.

    Args:
        numbers: how many numbers the chart of a sentence of so many words holds.
    """
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        size = max(1, min(_MOST, _MOST_NUMBERS // numbers(int(lengths[order[0]]))))
        yield order[:size]
        order = order[size:]
