"""What rows of features are made of: texts, pairs of texts or images and their labels, read before any encoder is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64
from torch import Tensor

from surgery.errors import TaskError
from surgery.tasks.examples import Columns, Example, read_examples
from surgery.unlearning.features.extractors import Input, image_digests, text_digests

Label = int | str

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Texts, pairs of texts or images, in order.

    Attributes:
        kind: `text` or `image`.
        labels: all integers or all strings; None unless every input has one.
    """

    kind: str
    items: Sequence[Input]
    labels: tuple[Label, ...] | None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digests(self) -> UInt64[np.ndarray, " N"]:
        """A hash of each input's content (xxh3-64)."""
        return text_digests(self.items) if self.kind == "text" else image_digests(self.items)


def read_inputs(source: str | Path, kind: str, columns: Columns | None = None, *, labels_needed: bool = True) -> Inputs:
    """Read examples of a kind from a file (see `read_examples`), or images from a folder with one folder a class.

    Raises TaskError for what can't be read.
    """
    if kind == "image":
        images, names = _images(Path(source).expanduser(), columns or Columns(), labels_needed)
        return Inputs(kind, images, given_labels(names))
    examples = read_examples(source, columns, labelled=labels_needed)
    return Inputs(kind, [as_input(example) for example in examples], given_labels([e.label for e in examples]))


def inputs_of(tables: Sequence[Mapping[str, Any]], kind: str, *, labels_needed: bool = True) -> Inputs:
    """The same of tables in memory with `text` (and `text_pair`) or `image`, and `label`; raises TaskError for others."""
    what = "image" if kind == "image" else "text"
    for number, table in enumerate(tables):
        missing = not isinstance(table, Mapping) or [
            key for key in (what, "label")[: 1 + labels_needed] if table.get(key) is None or str(table[key]) == ""
        ]
        if missing:
            wanted = f"{what} and label" if labels_needed else what
            raise TaskError(f"example {number}, counted from 0, is {str(table)[:60]!r}: give tables with {wanted}")
    items = [
        (table[what], table["text_pair"]) if what == "text" and table.get("text_pair") else table[what]
        for table in tables
    ]
    labels = [table.get("label") for table in tables]
    return Inputs(kind, items, label_tuple(labels) if all(label is not None for label in labels) else None)


def label_tuple(given: Any) -> tuple[Label, ...]:
    """Labels out of an array, a tensor or a list; raises TaskError unless all are integers or all strings."""
    listed = given.tolist() if isinstance(given, np.ndarray | Tensor) else given
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise TaskError(f"labels are {str(given)[:40]!r}: give a list of integers or strings, one a row")
    listed = list(listed)
    labels = [label.item() if isinstance(label, np.generic) else label for label in listed]
    for number, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise TaskError(f"label {number}, counted from 0, is {label!r}: labels are integers or strings")
        if isinstance(label, str) != isinstance(labels[0], str):
            raise TaskError(f"labels are {labels[0]!r} and {label!r}: give all as integers or all as strings")
    return tuple(labels)


def given_labels(labels: Sequence[str]) -> tuple[Label, ...] | None:
    """Labels of examples; None unless every one has its own."""
    return tuple(labels) if all(labels) else None


def as_input(example: Example) -> Input:
    """A text, or a pair of them."""
    return (example.text, example.text_pair) if example.text_pair else example.text


def _images(source: Path, columns: Columns, labels_needed: bool) -> tuple[list[Input], list[str]]:
    """Image files and their labels."""
    if source.is_dir():
        files = sorted(file for file in source.glob("[!.]*/[!.]*") if file.suffix.lower() in _IMAGES)
        if not files:
            raise TaskError(f"{source} holds no images: put {', '.join(_IMAGES)} files in one folder a class within it")
        return list(files), [file.parent.name for file in files]
    if not source.is_file():
        raise TaskError(f"{source} isn't here: images come as a folder of classes, or as a file with a column of paths")
    examples = read_examples(source, Columns(columns.text or "image", "", columns.label), labelled=labels_needed)
    return [source.parent / Path(e.text).expanduser() for e in examples], [e.label for e in examples]
