"""Numbers with their nouns."""


def number_of(number: int, noun: str, plural: str = "") -> str:
    """Return `1 edit`, `1,200 edits`, `no edits`: a number of things, as a sentence says it.

    Args:
        number: how many; 0 is said as a word.
        noun: one of them.
        plural: several of them, where that isn't the noun with an s.
    """
    several = plural or f"{noun}s"
    return f"{number:,} {noun if number == 1 else several}" if number else f"no {several}"
