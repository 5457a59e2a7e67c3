"""Labelled examples from JSONL, CSV, TSV, Parquet or a Hugging Face dataset."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgery.errors import TaskError

_TEXT = ("text", "sentence", "sentence1", "premise", "question1", "question", "content")
_PAIR = ("text_pair", "sentence2", "hypothesis", "question2")
_LABEL = ("label", "labels", "coarse_label", "target")


class Example(NamedTuple):
    """One labelled text, or pair of texts (`text_pair` is empty for a single one)."""

    text: str
    text_pair: str
    label: str


class Columns(NamedTuple):
    """Which columns hold the text, the second text (empty: none) and the label; None finds the usual names."""

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
) -> list[Example]:
    """Read examples from a file by its ending (.jsonl, .csv, .tsv, .parquet), else from a Hugging Face dataset id.

    `id`, `id:config` or `id:config@split` names a dataset, whose split is `split` unless named. Labels become strings;
    integer labels of a dataset with named classes become those names, and rows whose label is hidden (-1) are left out.
    With `usual_too`, columns called otherwise than `columns` says are looked for under their usual names.
    Without `labelled`, a missing label is an empty one. Raises TaskError, naming file and line, for anything unreadable.
    """
    path = Path(source).expanduser()
    columns = columns or Columns()
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if path.suffix in readers:
        if not path.is_file():
            raise TaskError(f"{path}: there is no such file")
        try:
            rows = readers[path.suffix](path)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise TaskError(f"{path} can't be read ({error})") from error
        where = str(path)
    elif path.exists():
        raise TaskError(f"{path}: examples come as .jsonl, .csv, .tsv or .parquet, or as a Hugging Face dataset id")
    else:
        rows, where = _dataset(str(source), split), f"dataset {source}, split {split}"
    examples = _examples(rows, columns, where, usual_too, labelled)
    if not examples:
        raise TaskError(f"{where} holds no examples")
    return examples


def _examples(
    rows: Iterable[tuple[int, Mapping[str, Any]]], columns: Columns, where: str, usual_too: bool, labelled: bool
) -> list[Example]:
    found = []
    for number, row in rows:
        text, label = _value(row, columns.text, _TEXT, usual_too), _value(row, columns.label, _LABEL, usual_too)
        pair = _value(row, columns.text_pair, _PAIR, usual_too) if columns.text_pair != "" else None
        wanted = [(columns.text or "text", text), (columns.label or "label", label)]
        for what, value in wanted if labelled else wanted[:1]:
            if value is None or value == "":
                raise TaskError(
                    f"{where}, line {number}: no {what} (columns here: {', '.join(map(str, row))}); name the column if it is called otherwise"
                )
        found.append(Example(str(text), "" if pair is None else str(pair), "" if label is None else str(label)))
    return found


def _value(row: Mapping[str, Any], named: str | None, usual: Sequence[str], usual_too: bool) -> Any:
    names = usual if named is None else (named, *usual) if usual_too else (named,)
    for name in names:
        if row.get(name) is not None:
            return row[name]
    return None


def _jsonl(path: Path) -> list[tuple[int, dict]]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TaskError(f"{path}, line {number} isn't JSON ({error}): one object a line is wanted") from None
            if not isinstance(row, dict):
                raise TaskError(f"{path}, line {number} isn't a JSON object: one object a line is wanted")
            rows.append((number, row))
    return rows


def _csv(path: Path) -> list[tuple[int, dict]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        return [(reader.line_num, row) for row in reader]


def _parquet(path: Path) -> list[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1))
    except pyarrow.ArrowInvalid as error:
        raise TaskError(f"{path} can't be read ({error})") from error


def _dataset(name: str, split: str) -> list[tuple[int, dict]]:
    import datasets

    name, _, other = name.partition("@")
    split = other or split
    identifier, _, config = name.partition(":")
    try:
        data = datasets.load_dataset(identifier, config or None, split=split)
    except Exception as error:  # the library and the hub raise dozens of types
        raise TaskError(
            f"{name!r} is no file here, and no dataset {split!r} came from the hub for it ({type(error).__name__}): check the name"
        ) from error
    named = {key: feature.names for key, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    rows = []
    for number, row in enumerate(data, 1):
        if any(row[key] == -1 for key in named):
            continue  # GLUE hides test labels so
        rows.append((number, {k: named[k][v] if k in named and isinstance(v, int) else v for k, v in row.items()}))
    return rows


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
