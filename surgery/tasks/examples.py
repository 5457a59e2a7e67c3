"""Labelled examples from JSONL, CSV, TSV, Parquet or a Hugging Face dataset."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgery.errors import TaskError
from surgery.tasks.data_files import READERS, read_dataset

_TEXT = ("text", "sentence", "sentence1", "premise", "question1", "question", "content")
_PAIR = ("text_pair", "sentence2", "hypothesis", "question2")
_LABEL = ("label", "labels", "coarse_label", "target")
_MISSING = ("nan", "NaN", "None", "<NA>", "NULL")  # what programs write for a label that isn't there


class Example(NamedTuple):
    """One labelled text, or pair of texts (`text_pair` is empty for a single one)."""

    text: str
    text_pair: str
    label: str


class Columns(NamedTuple):
    """Names of the columns with the text, the second text (empty: none) and the label; None finds the usual names."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


def read_examples(
    source: str | Path,
    columns: Columns | None = None,
    split: str = "train",
    *,
    usual_too: bool = False,
    labelled: bool = True,
    worded: bool = True,
) -> list[Example]:
    """Read examples from a file by its ending (.jsonl, .csv, .tsv, .parquet), else from a Hugging Face dataset id.

    `id`, `id:config` or `id:config@split` names a dataset, whose split is `split` unless named. Labels become strings;
    integer labels of a dataset with named classes become those names, and rows whose label is hidden (-1) are left out.
    With `usual_too`, columns called otherwise than `columns` says are looked for under their usual names.
    Without `labelled`, a missing label is an empty one; without `worded`, a missing text. Raises TaskError, naming file
    and line, for anything unreadable.
    """
    path = Path(source).expanduser()
    columns = columns or Columns()
    if reader := READERS.get(path.suffix.lower()):
        if not path.is_file():
            raise TaskError(f"{path}: there is no such file")
        try:
            rows = reader(path)
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"{path} can't be read ({error})") from error
        where = str(path)
    elif path.exists():
        raise TaskError(f"{path}: examples come as .jsonl, .csv, .tsv or .parquet, or as a Hugging Face dataset id")
    else:
        rows, where = read_dataset(str(source), split), f"dataset {source}, split {split}"
    examples = _examples(rows, columns, where, usual_too, labelled, worded)
    if not examples:
        raise TaskError(f"{where} holds no examples")
    return examples


def _examples(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Columns,
    where: str,
    usual_too: bool,
    labelled: bool,
    worded: bool,
) -> list[Example]:
    examples = []
    for number, row in rows:
        text, label = _value(row, columns.text, _TEXT, usual_too), _value(row, columns.label, _LABEL, usual_too)
        pair = _value(row, columns.text_pair, _PAIR, usual_too) if columns.text_pair != "" else None
        wanted = [(columns.text or "text", text), (columns.label or "label", label)]
        for what, value in wanted[0 if worded else 1 : 2 if labelled else 1]:
            if value == "":
                raise TaskError(
                    f"{where}, line {number}: no {what}, the field is empty: fill it in, or leave the row out"
                )
            if value is None:
                raise TaskError(
                    f"{where}, line {number}: no {what} (columns here: {', '.join(map(str, row))}); name the column if it is called otherwise"
                )
        read = label_text(label)
        if labelled and not read:
            raise missing_label(f"{where}, line {number}", label)
        examples.append(Example("" if text is None else str(text), "" if pair is None else str(pair), read))
    return examples


def label_text(label: Any) -> str:
    """A label as text: whole numbers alike as 1, 1.0 and "1.0"; empty for NaN, None, blanks, and the words for them."""
    if _absent(label):
        return ""
    text = str(label).strip()
    if text in _MISSING:
        return ""
    return re.sub(r"(?<=\d)\.0+$", "", text) if re.fullmatch(r"[+-]?\d+\.0+", text) else text


def missing_label(where: str, label: Any) -> TaskError:
    """The refusal of a label that isn't there."""
    return TaskError(
        f"{where}: the label {label!r} stands for a missing one: leave the row out, or name the class otherwise"
    )


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _value(row: Mapping[str, Any], named: str | None, usual: Sequence[str], usual_too: bool) -> Any:
    names = usual if named is None else (named, *usual) if usual_too else (named,)
    for name in names:
        if not _absent(row.get(name)):
            return row[name]
    return None


def k_shot(examples: Sequence[Example], labels: Sequence[str], shots: int, seed: int) -> list[Example]:
    """`shots` examples of every label, drawn without replacement by `seed`, mixed.

    Raises TaskError, naming the label, when one has too few.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for label in labels:
        rows = [number for number, example in enumerate(examples) if example.label == label]
        if len(rows) < shots:
            raise TaskError(f"label {label!r} has {len(rows)} examples, fewer than the {shots} shots asked for")
        chosen.append(random.permutation(rows)[:shots])
    return [examples[number] for number in random.permutation(np.concatenate(chosen))]
