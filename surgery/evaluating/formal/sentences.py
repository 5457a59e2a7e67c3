"""Sentences, words and letters of a text, counted the same way each time and by everything."""

import re

_END = re.compile(r"""(?<=[.!?…])(?:["'”’)\]]*)\s+(?=\S)""")
_SHORT = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|No|Jr|Sr|approx|[A-Z])\.$")
_WORD = re.compile(r"[A-Za-zÀ-ɏ]+(?:['’][A-Za-zÀ-ɏ]+)*")


def sentences(text: str) -> list[str]:
    """Sentences of a text: they end at . ! ? or … before a space, but not after a title or an initial, or with their line.

    What has no letter or digit is none.
    """
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            piece = line[start : end.start()]
            if _SHORT.search(piece) or (end[0].strip() and line[end.end()].islower()):  # "Go!" he said
                continue
            found.append(line[start : end.end()].strip())
            start = end.end()
        found.append(line[start:].strip())
    return [piece for piece in found if any(letter.isalnum() for letter in piece)]


def words(text: str) -> list[str]:
    """Words of a text: letters, and apostrophes within."""
    return _WORD.findall(text)


def letters(text: str) -> str:
    """Letters of a text, in lower case."""
    return "".join(letter for letter in text.lower() if letter.isalpha())
