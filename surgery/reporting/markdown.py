"""Text that isn't ours (names from files, labels, tensor names) inside a Markdown page."""

import re
from collections.abc import Sequence

# What begins code, emphasis, a cell, a link's target, a tag or an entity; an underscore only at a word's edge.
_MARKS = re.compile(r"[\\`*|]|(?<=\])\(|<(?=[A-Za-z/!?])|&(?=[#\w]+;)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def inline(text: object, *, ends: bool = False) -> str:
    """Text that is shown as it stands, on one line, in a paragraph, heading or table; `ends` as `one_line`."""
    return _MARKS.sub(lambda mark: "\\" + mark[0], one_line(text, ends=ends))


def code(text: object) -> str:
    """A code span that holds the text, on one line."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    head, *body = [f"| {' | '.join(map(inline, row))} |" for row in (columns, *rows)]
    return [head, "|" + "---|" * len(columns), *body]


def one_line(text: object, *, ends: bool = False) -> str:
    """Text in printable letters with single spaces between words; `ends` keeps a space at either end, for what is joined."""
    whole = str(text).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a letter
    line = "".join(letter if letter.isprintable() else " " for letter in whole)
    words = " ".join(line.split())
    return f"{' ' * line.startswith(' ')}{words}{' ' * line.endswith(' ')}" if ends and words else words
