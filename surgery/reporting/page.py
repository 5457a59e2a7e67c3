"""Page: a report for people, written as HTML for a browser and as Markdown for a repository from the same parts.

The HTML needs no script, no network and no file but the figures beside it. Everything put in is shown as it stands: names
and labels from data can't become markup.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import quote

from surgery.files import replace_bytes
from surgery.reporting import markdown
from surgery.reporting.markdown import one_line

LONG = 15  # rows; a longer table is folded
_NUMBER = re.compile(r"[-+−]?[\d.]*\d")
_BLOCK_MARK = re.compile(r"^(\d+(?=[.)])|(?=[-+#>=~]))")  # what begins a list, heading, quote or fence


@dataclass(frozen=True)
class Heading:
    """Title of a section."""

    text: str


@dataclass(frozen=True)
class Code:
    """A name or path inside a Text, in the type of code."""

    text: object


@dataclass(frozen=True, init=False)
class Text:
    """A paragraph of plain text and `Code`."""

    pieces: tuple[str | Code, ...]

    def __init__(self, *pieces: str | Code) -> None:
        object.__setattr__(self, "pieces", pieces)


@dataclass(frozen=True)
class Commands:
    """Lines to type or to copy, as a block."""

    text: str


@dataclass(frozen=True)
class Quote:
    """Somebody's text as it stands, its line breaks kept."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Parts that are shown only once their title is clicked on."""

    title: str
    parts: "Sequence[Part]"


@dataclass(frozen=True)
class Figure:
    """An image file beside the page.

    Attributes:
        file: its name, or its path below the page's folder.
        caption: what a reader should see in it.
        alt: what it shows, for those who can't see it.
    """

    file: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        caption: what the table holds, in a sentence or two.
        columns, rows: as `Result.table` gives them; see `cells` for how numbers are written. None is an empty cell.
        legend: what a column means, by the column's name.
        folded: shown only once it is clicked on; by default where it has more than `LONG` rows.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    legend: Mapping[str, str] = field(default_factory=dict)
    folded: bool | None = None


Part = Heading | Text | Commands | Quote | Folded | Figure | Table


@dataclass(frozen=True)
class Page:
    """A report: its title, the answer in one to three sentences, and the parts in the order of reading.

    Attributes:
        metadata: lines of a block that model hubs read, at the top of the Markdown alone.
    """

    title: str
    answer: Sequence[str]
    parts: Sequence[Part]
    metadata: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.answer) <= 3:
            raise ValueError(f"the answer takes one to three sentences, and {len(self.answer)} were given")

    def write(self, folder: Path) -> list[Path]:
        """Write `README.md` and `index.html` into a folder."""
        files = {"README.md": self.markdown(), "index.html": self.html()}
        for name, text in files.items():
            replace_bytes(folder / name, text.encode())
        return [folder / name for name in files]

    def markdown(self) -> str:
        """Return the page as Markdown."""
        parts: list[Part] = [*map(Text, self.answer), *self.parts]
        top = ["\n".join(["---", *self.metadata, "---"])] if self.metadata else []
        return "\n\n".join([*top, f"# {markdown.inline(self.title)}", *map(_markdown, parts)]) + "\n"

    def html(self) -> str:
        """Return the page as HTML."""
        answer = "".join(f"<p>{_text(sentence)}</p>" for sentence in self.answer)
        head = _HEAD.format(title=_text(self.title), style=_STYLE)
        body = f'<main>\n<h1>{_text(self.title)}</h1>\n<section class="answer">{answer}</section>\n{render(self.parts)}\n</main>'
        return f"{head}\n<body>\n{body}\n</body>\n</html>\n"


def render(parts: Sequence[Part]) -> str:
    """Return parts as HTML without a page around them, as a notebook shows them."""
    return "\n".join(map(_html, parts))


def cell(value: object) -> str:
    """Return a cell's value as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return one_line(value)


def cells(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    """Return every cell's value as people read it, a column's fractions with as many decimals as each other.

    These are as many as give the largest four digits and the smallest two, if any of them needs so many; where that would be
    more than six, or a number is 10,000 or more, each has four digits of its own.
    """
    columns = []
    for column in zip(*rows, strict=True):
        decimals = _decimals([value for value in column if isinstance(value, float)])
        columns.append(
            [
                f"{value:.{decimals}f}" if isinstance(value, float) and decimals is not None else cell(value)
                for value in column
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)] if rows else []


def _decimals(numbers: Sequence[float]) -> int | None:
    sizes = [abs(number) for number in numbers if number]
    if not sizes or not all(map(math.isfinite, sizes)) or max(sizes) >= 1e4:
        return None
    needed = max(3 - math.floor(math.log10(max(sizes))), 1 - math.floor(math.log10(min(sizes))))
    shown = max(len(cell(number).partition(".")[2]) for number in numbers)
    return min(needed, shown) if needed <= 6 else None


def _markdown(part: Part) -> str:
    match part:
        case Heading(text):
            return f"## {markdown.inline(text)}"
        case Text(pieces):
            words = [markdown.code(p.text) if isinstance(p, Code) else markdown.inline(p, ends=True) for p in pieces]
            return _BLOCK_MARK.sub(r"\1\\", "".join(words).strip())
        case Commands(text):
            return _fenced(text, "sh")
        case Quote(text):
            return _fenced(_printable(text))
        case Folded(title, parts):
            blocks = [_markdown(inner) for inner in parts]
            return "\n\n".join([f"<details><summary>{_text(title)}</summary>", *blocks, "</details>"])
        case Figure(file, caption, alt):
            return f"![{markdown.inline(alt)}]({quote(file)})\n\n{_markdown(Text(caption))}"
        case Table():
            return _markdown_table(part)


def _fenced(text: str, language: str = "") -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _printable(text: str) -> str:
    """Text without letters that a terminal or browser would obey; line breaks stay."""
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in _whole(text).splitlines())


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()  # JSON can hold half a letter


def _markdown_table(part: Table) -> str:
    lines = markdown.table(part.columns, cells(part.rows))
    legend = [f"- **{markdown.inline(name)}**: {markdown.inline(means)}" for name, means in _legend(part)]
    blocks = ["\n".join(lines), *(["\n".join(legend)] if legend else [])]
    if _is_folded(part):
        return "\n\n".join([f"<details><summary>{_text(_fold_line(part))}</summary>", *blocks, "</details>"])
    return "\n\n".join([_markdown(Text(part.caption)), *blocks])


def _html(part: Part) -> str:
    match part:
        case Heading(text):
            return f"<h2>{_text(text)}</h2>"
        case Text(pieces):
            words = [f"<code>{_text(p.text)}</code>" if isinstance(p, Code) else _text(p, ends=True) for p in pieces]
            return f"<p>{''.join(words).strip()}</p>"
        case Commands(text):
            return f"<pre><code>{escape(text.rstrip())}</code></pre>"
        case Quote(text):
            return f'<pre class="quote">{escape(_printable(text).rstrip())}</pre>'
        case Folded(title, parts):
            return f"<details><summary>{_text(title)}</summary>\n{render(parts)}\n</details>"
        case Figure(file, caption, alt):
            image = f'<img src="{escape(quote(file))}" alt="{_text(alt)}">'
            return f"<figure>{image}<figcaption>{_text(caption)}</figcaption></figure>"
        case Table():
            return _html_table(part)


def _html_table(part: Table) -> str:
    rows = cells(part.rows)
    numeric = [
        any(column) and all(not text or _NUMBER.match(text) for text in column)
        for column in ([row[i] for row in rows] for i in range(len(part.columns)))
    ]
    css = [' class="number"' if yes else "" for yes in numeric]
    head = [
        f'<th scope="col"{c}>{_text(name)}</th>' if name else "<td></td>"
        for name, c in zip(part.columns, css, strict=True)
    ]
    body = []
    for first, *others in rows:
        written = [f"<td{c}>{_text(text)}</td>" for text, c in zip(others, css[1:], strict=True)]
        body.append(f'<tr><th scope="row"{css[0]}>{_text(first)}</th>{"".join(written)}</tr>')
    # A box of its own scrolls, so that a wide table doesn't push the page sideways; by keyboard too, hence tabindex.
    table = (
        f'<div class="scroll" style="overflow-x: auto" tabindex="0" role="region" aria-label="{_text(part.caption)}">'
        f"<table><thead><tr>{''.join(head)}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
    )
    terms = "".join(f"<dt>{_text(name)}</dt><dd>{_text(means)}</dd>" for name, means in _legend(part))
    inner = table + (f"\n<dl>{terms}</dl>" if terms else "")
    if _is_folded(part):
        return f"<details><summary>{_text(_fold_line(part))}</summary>\n{inner}\n</details>"
    return f'<p class="caption">{_text(part.caption)}</p>\n{inner}'


def _legend(part: Table) -> list[tuple[str, str]]:
    return [(name, part.legend[name]) for name in part.columns if name in part.legend]


def _is_folded(part: Table) -> bool:
    return len(part.rows) > LONG if part.folded is None else part.folded


def _fold_line(part: Table) -> str:
    return f"{one_line(part.caption)} ({len(part.rows):,} row{'s' * (len(part.rows) != 1)})"


def _text(text: object, *, ends: bool = False) -> str:
    return escape(one_line(text, ends=ends))


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f22; --soft: #595f69; --line: #d9dce1; --ground: #fff; --band: #f4f5f7; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e7ea; --soft: #a5abb5; --line: #3a3e46; --ground: #17191c; --band: #22252a; --accent: #6cb8e6; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p, dl { max-width: 48rem; }
.answer { background: var(--band); border-left: 4px solid var(--accent); padding: .5rem 1rem; }
.answer p { margin: .4rem 0; }
.scroll { margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; font-weight: normal; }
thead :is(th, td) { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
tbody th { min-width: 7rem; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
dl { font-size: .875rem; color: var(--soft); display: grid; grid-template-columns: fit-content(30%) 1fr; gap: .15rem .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
.caption, figcaption { color: var(--soft); font-size: .9rem; margin: 1.25rem 0 .25rem; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { background: var(--band); padding: .75rem 1rem; overflow-x: auto; }
.quote { white-space: pre-wrap; overflow-wrap: anywhere; max-width: 48rem; font: inherit; font-size: .9rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) { dl { display: block; } dd { margin-bottom: .4rem; } }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #333; --line: #999; --ground: #fff; --band: #fff; --accent: #000; }
  main { max-width: none; padding: 0; } .scroll { overflow: visible !important; } table { font-size: .7rem; overflow-wrap: anywhere; }
  .number { white-space: normal; } tbody th { min-width: 0; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  figure, tr, .answer { break-inside: avoid; } thead { display: table-header-group; } h2 { break-after: avoid; }
}
"""
