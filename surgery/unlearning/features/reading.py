"""What a fit reads, and how later rows are read like its own: the same columns, the same tensor, known classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from surgery.errors import OptionError, TaskError
from surgery.tasks.examples import Columns
from surgery.unlearning.features.inputs import Inputs, inputs_of, read_inputs
from surgery.unlearning.features.rows import FEATURE_FILES


def training_inputs(
    given: str | Path | Sequence[Mapping[str, Any]], kind: str, columns: Columns | None, *, labels_needed: bool = True
) -> Inputs:
    """What an encoder of this kind (`text` or `image`) is to read: of a file, or tables in memory.

    Raises:
        TaskError: as `read_inputs` and `inputs_of` do. OptionError: a file that holds features already.
    """
    if not isinstance(given, str | Path):
        return inputs_of(given, kind, labels_needed=labels_needed)
    if Path(given).suffix.lower() in FEATURE_FILES:
        raise OptionError(f"{given} holds features already: leave out `encoder`")
    return read_inputs(given, kind, columns, labels_needed=labels_needed)


def as_fitted(
    read_as: Mapping[str, str],
    source: str | Path,
    columns: Columns | None,
    features: str | None,
    *,
    beside: bool = False,
) -> tuple[Columns | None, str | None]:
    """Columns and tensor by which to read a file: those given, else those of the fit.

    Args:
        read_as: those of the fit; earlier versions kept none.
        beside: features lie in a file of their own, beside `source`.
    """
    kept = dict(read_as)
    tensor = kept.pop("features", None)
    alone = Path(source).suffix.lower() in FEATURE_FILES
    if columns is not None or (kept and not alone):
        columns = Columns(**{**kept, **named_columns(columns)})
    return columns, features or (tensor if alone or beside else None)


def named_columns(columns: Columns | None) -> dict[str, str]:
    """The columns that have a name of their own."""
    return {key: name for key, name in (columns or Columns())._asdict().items() if name is not None}


def targets_of(classes: Sequence[int | str], labels: Sequence[int | str] | None) -> Int64[np.ndarray, " N"]:
    """Class numbers of test labels; raises TaskError for missing ones, and for a class that training never saw."""
    if labels is None:
        raise TaskError("the test rows have no labels: name a file or column that has them")
    number = {str(name): index for index, name in enumerate(classes)}
    if unknown := [label for label in labels if str(label) not in number]:
        raise TaskError(
            f"class {unknown[0]!r} of the test rows is none of the {len(number)} that training saw: leave its rows out, or fit again with it"
        )
    return np.array([number[str(label)] for label in labels], np.int64)
