"""Words and the tokens that a tokenizer makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.errors import ProbeError

# What the Penn Treebank writes for characters that models saw as they are.
PENN = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"'}


@dataclass(frozen=True)
class Encoded:
    """Tokens of a sentence, and the word that each belongs to, from 0; -1 for special tokens."""

    ids: tuple[int, ...]
    words: tuple[int, ...]


def named(number: int, words: Sequence[str]) -> str:
    """Name a sentence by its number and its first words: where others were left out, the number alone would mislead."""
    return f"sentence {number} ({' '.join(words[:5])}{' ...' if len(words) > 5 else ''})"


def owners(
    words: Sequence[str], text: str, spans: Sequence[tuple[int, int]], special: Sequence[int], number: int
) -> tuple[int, ...]:
    """Find the word of each token by the characters that it stands for; -1 for special tokens.

    Args:
        text: the words with a space between each two; `spans` says which of its characters each token stands for.
        special: 1 for tokens that the tokenizer added.
        number: of the sentence, for errors.

    Raises ProbeError where a token spans two words, or a word has no token.
    """
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    owners_of: list[int] = []
    for (start, end), apart in zip(spans, special, strict=True):
        while start < end and text[start].isspace():
            start += 1
        if apart or start >= end:
            owners_of.append(-1)
            continue
        word = int(np.searchsorted(ends, start, side="right"))
        if end > ends[word]:
            raise ProbeError(
                f"{named(number, words)}: the token {text[start:end]!r} spans the word {words[word]!r} and the next, so states can't be told apart by words: use another tokenizer"
            )
        owners_of.append(word)
    for word in range(len(words)):
        if word not in owners_of:
            raise ProbeError(
                f"{named(number, words)}: the word {words[word]!r} (number {word + 1}) has no token: leave the sentence out, or use another tokenizer"
            )
    return tuple(owners_of)
