"""Trees drawn as SVG, for notebooks."""

from collections.abc import Sequence
from html import escape

_LEVEL, _LINE, _MARGIN = 36, 16, 12  # pixels: from one level to the next, of a line of text, around the tree
_LETTER = 8  # pixels of width that a letter may take


def draw(words: Sequence[str], tags: Sequence[str], spans: Sequence[tuple[str, int, int]]) -> str:
    """A tree as an `<svg>` element of HTML, with all words on the lowest line.

    Args:
        tags: the label over each word.
        spans: label, begin and end of every node above the tags, each before its children.
    """
    edges = [_MARGIN]
    for word, tag in zip(words, tags, strict=True):
        edges.append(edges[-1] + _LETTER * (1 + max(len(word), len(tag))))
    nodes = [(label, start, end, False) for label, start, end in spans]
    nodes += [(tag, i, i + 1, True) for i, tag in enumerate(tags)]
    marks, leaves, path = list[str](), list[tuple[int, int]](), list[tuple[int, int, int]]()
    # By begin, longest first; the nodes of a unary chain have the same span, and sorting keeps their order.
    for label, start, end, is_tag in sorted(nodes, key=lambda node: (node[1], -node[2])):
        while path and path[-1][0] <= start:
            path.pop()
        x, y = (edges[start] + edges[end]) // 2, _MARGIN + _LINE + _LEVEL * len(path)
        marks += [_line(*path[-1][1:], x, y)] if path else []
        marks.append(_text(label, x, y, "bold"))
        path.append((end, x, y))
        leaves += [(x, y)] if is_tag else []
    bottom = max(y for _, y in leaves) + _LEVEL
    for word, (x, y) in zip(words, leaves, strict=True):
        marks += [_line(x, y, x, bottom), _text(word, x, bottom, "normal")]
    size = f'width="{edges[-1] + _MARGIN}" height="{bottom + _MARGIN}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">{"".join(marks)}</svg>'
    )


def _text(text: str, x: int, y: int, weight: str) -> str:
    style = f'text-anchor="middle" font-weight="{weight}" fill="currentColor"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def _line(x: int, y: int, to_x: int, to_y: int) -> str:
    """From below a label at (x, y) to above one at (to_x, to_y)."""
    ends = f'x1="{x}" y1="{y + 5}" x2="{to_x}" y2="{to_y - 13}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="0.5"/>'
