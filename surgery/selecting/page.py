"""The page of a selection: the answer, what was chosen and why, and beside what simpler ways choose."""

from collections.abc import Sequence
from typing import Any

from surgery.reporting.page import Code, Commands, Figure, Folded, Heading, Page, Part, Quote, Table, Text

_METHODS = {
    "random": "drawn at random",
    "length": "the most tokens",
    "tfidf": "cosines of TF-IDF vectors",
    "bm25": "BM25, words in common",
    "hidden": "cosines of the base's mean hidden states",
    "less": "LESS: cosines of Adam's directions with the target's gradients, by checkpoint and rate",
    "sgd": "cosines of gradients",
    "centred": "cosines of gradients without the pool's mean",
    "less-centred": "LESS without the pool's mean",
    "less-corrected": "LESS with Adam's own step",
}


def selection_page(
    selection: Any, answer: Sequence[str], sources: tuple[list[str], list[list[Any]]], figures: Sequence[Figure]
) -> Page:
    """The page of a `Selection` with its answer, its table of sources and its figures."""
    columns, rows = sources
    parts: list[Part] = [
        *map(Text, selection.remarks),
        Text("The rows are in ", Code("selected.jsonl"), ", the best first. To train on them:"),
        *_how_to_tune(selection),
        Table("Sources.", columns, rows, folded=False),
        *figures,
        Heading("Beside simpler ways"),
        Table(
            "Share of the chosen rows that each way chooses too, of as many.",
            ["way", "what it looks at", "share"],
            [[name, _METHODS.get(name, ""), value] for name, value in selection.overlap.items()],
            folded=False,
        ),
        Table(
            "Length of a row in tokens." if selection.settings.get("kind") else "Length of a row in words.",
            ["rows", "lower quarter", "half", "upper quarter", "mean"],
            [[name, *values] for name, values in selection.lengths.items()],
            folded=False,
        ),
    ]
    if selection.nearest:
        parts += [Heading("The best rows, and what they are nearest to"), *map(_neighbour, selection.nearest)]
    options = [[name, str(value)] for name, value in selection.settings.items()]
    parts += [Heading("How they were chosen"), Table("Options.", ["option", "value"], options)]
    return Page(f"Rows chosen by {selection.by}", list(answer)[:3], parts)


def _how_to_tune(selection: Any) -> list[Part]:
    if selection.settings.get("kind") == "encoder":
        told = Text("NAME is a preset, or a task of your own, that has these labels.")
        return [Commands("surgery tune BASE --task NAME --data selected.jsonl --optimizer adamw -o tuned/"), told]
    told = Text("AdamW moves all weights; without it a sparse skill is trained, for `surgery graft`.")
    return [Commands("surgery tune BASE --texts selected.jsonl --optimizer adamw --rate 5e-5 -o tuned/"), told]


def _neighbour(each: Any) -> Part:
    title = f"row {each.row + 1}{f' of {each.source}' if each.source else ''}: score {each.score:.3f}, cosine {each.cosine:.3f}"
    return Folded(title, [Quote(each.text), Text("The target's nearest:"), Quote(each.target)])
