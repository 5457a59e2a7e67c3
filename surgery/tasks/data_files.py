"""Rows of JSONL, CSV, TSV and Parquet files and of Hugging Face datasets, each with the number of its line."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgery.errors import TaskError
from surgery.jsonfile import JsonError, parse_loose

Row = tuple[int, dict[str, Any]]

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LONGEST = 2**31 - 1  # characters of a field; the csv module stops at 131,072 unless told otherwise


def read_jsonl(path: Path) -> list[Row]:
    """One object a line; empty lines are skipped. Raises TaskError, naming the line, for anything else."""
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_loose(line)
            except JsonError as error:
                raise TaskError(f"{path}, line {number} isn't JSON ({error}): one object a line is wanted") from None
            if not isinstance(row, dict):
                raise TaskError(f"{path}, line {number} isn't a JSON object: one object a line is wanted")
            rows.append((number, row))
    return rows


def read_csv(path: Path) -> list[Row]:
    """Comma-separated values under a line of column names, in quotes where they hold quotes, commas or line breaks.

    Raises TaskError, naming the line, for a quote that isn't closed or doubled, and for more values than columns.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _under_header(path, _split(path, file, ","))


def read_tsv(path: Path) -> list[Row]:
    """Tab-separated values under a line of column names, with or without quotes around them.

    Many such files (GLUE's among them) hold quotes as plain characters, others quote as CSV does. Quotes are taken for
    the latter's only if whoever wrote them had a reason: a doubled quote, a tab or a line break within, or a column
    that is quoted throughout. Raises TaskError, naming the line, for more values than columns.
    """
    text = path.read_text(encoding="utf-8-sig")  # any line break becomes \n
    lines = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line]
    if lines and any(len(cells) != len(lines[0][1]) for _, cells in lines):
        try:
            quoted = _split(path, io.StringIO(text, newline="\n"), "\t")
        except TaskError:
            return _under_header(path, lines)
        whole = all(len(cells) == len(quoted[0][1]) for _, cells in quoted)
        return _under_header(path, quoted if whole else lines)
    if _quotes_as_csv([cells for _, cells in lines]):
        lines = [(number, [_unquoted(cell) for cell in cells]) for number, cells in lines]
    return _under_header(path, lines)


def read_parquet(path: Path) -> list[Row]:
    """Rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1))
    except pyarrow.ArrowInvalid as error:
        raise TaskError(f"{path} can't be read ({error})") from error


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}


def read_dataset(name: str, split: str) -> list[Row]:
    """Rows of a dataset `id`, `id:config` or `id:config@split`; named classes by their names, hidden ones (-1) left out."""
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


def _split(path: Path, lines: Any, separator: str) -> list[tuple[int, list[str]]]:
    """Cells by line, quotes as the csv module takes them."""
    with _long_fields():
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            return [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise TaskError(
                f"{path}, line {reader.line_num}: its quotes don't fit together ({error}): close them, and double those within quotes"
            ) from None


def _under_header(path: Path, lines: Sequence[tuple[int, list[str]]]) -> list[Row]:
    if not lines:
        return []
    names = [name.strip() for name in lines[0][1]]
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(names):
            raise TaskError(
                f"{path}, line {number} has {len(cells)} values under {len(names)} column names: put a value that holds the separator in quotes"
            )
        rows.append((number, dict(zip(names, cells, strict=False))))
    return rows


def _quotes_as_csv(lines: Sequence[Sequence[str]]) -> bool:
    """Whether cells with quotes are all quoted, each for a reason that a CSV writer has."""
    columns = [list(column) for column in zip(*lines[1:], strict=True)]
    throughout = [all(_QUOTED.fullmatch(cell) for cell in column) for column in columns]
    cells = [(cell, all_quoted) for column, all_quoted in zip(columns, throughout, strict=True) for cell in column]
    return any('"' in cell for cell, _ in cells) and all(
        _QUOTED.fullmatch(cell) and (all_quoted or '""' in cell[1:-1]) for cell, all_quoted in cells if '"' in cell
    )


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell


@contextmanager
def _long_fields() -> Iterator[None]:
    """The csv module's limit is one for the whole process: raised for as long as we read."""
    limit = csv.field_size_limit(_LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
