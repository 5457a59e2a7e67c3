"""Example: the exact and the predicted chart of one test sentence, to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

Chart = tuple[tuple[float, ...], ...]
SpanPairs = tuple[tuple[int, int], ...]

_SHADES = "·░▒▓█"


@dataclass(frozen=True)
class Example:
    """A test sentence: exact and predicted marginals, entry (i, j) for words i to j, and the minimum-risk tree of each.

    Trees are spans of first word and place after the last.
    """

    words: tuple[str, ...]
    layer: int
    exact: Chart
    predicted: Chart
    exact_tree: SpanPairs
    predicted_tree: SpanPairs

    def text(self) -> str:
        """Both charts for a terminal, exact above predicted: darker is likelier, brackets are the minimum-risk tree."""
        lines = []
        for name, marginals, tree in (
            ("exact", self.exact, self.exact_tree),
            ("predicted", self.predicted, self.predicted_tree),
        ):
            lines.append(f"{name}: {_brackets(self.words, tree)}")
            for start, row in enumerate(marginals):
                shades = "".join(
                    _SHADES[min(4, int(5 * value))] * 2 if end > start else "  " for end, value in enumerate(row)
                )
                lines.append(f"  {shades}  {self.words[start]}")
        return "\n".join(lines)

    def check(self) -> None:
        """Raise ValueError where the charts or the trees aren't those of the words."""
        n, name = len(self.words), " ".join(self.words)
        for chart in (self.exact, self.predicted):
            if len(chart) != n or any(len(row) != n for row in chart):
                raise ValueError(f"tables of other sizes than the {n} words of {name}")
        if any(not 0 <= start < stop <= n for start, stop in (*self.exact_tree, *self.predicted_tree)):
            raise ValueError(f"trees with other words than the {n} of {name}")
        self.text()


def _brackets(words: Sequence[str], tree: Sequence[tuple[int, int]]) -> str:
    pieces = []
    for place, word in enumerate(words):
        opened, closed = (sum(span[side] == place + side for span in tree) for side in (0, 1))
        pieces.append("(" * opened + word + ")" * closed)
    return " ".join(pieces)
