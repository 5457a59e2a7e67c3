"""Reading rows as a bottleneck's own were read: the same columns, the same tensor, the same encoder, which is loaded last."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64

from surgery.errors import TaskError
from surgery.progress import Progress, silent
from surgery.tasks.examples import Columns
from surgery.unlearning.features.inputs import read_inputs
from surgery.unlearning.features.rows import FEATURE_FILES, Rows, encoded, read_rows

if TYPE_CHECKING:
    from surgery.unlearning.bottleneck import Bottleneck


def read_alike(
    bottleneck: "Bottleneck",
    source: str | Path,
    *,
    features_file: str | Path | None = None,
    columns: Columns | None = None,
    features: str | None = None,
    encoder: str | Path | None = None,
    labels_needed: bool = True,
    device: str | torch.device | None = None,
    progress: Progress = silent,
) -> Rows:
    """Rows of a file, out of features files or by the bottleneck's encoder.

    Args:
        features_file, columns, features: as `read_rows` takes them; by default as in the fit.
        encoder: where the bottleneck's encoder lies now, if it has moved.
        labels_needed: refuse rows without labels, and labels that training never saw.

    Raises:
        TaskError, OptionError, CheckpointError: as `read_rows` and `Encoder.from_spec` do.
    """
    beside = features_file is not None
    columns, features = as_fitted(bottleneck, source, columns, features, beside=beside)
    options: dict[str, Any] = {"columns": columns, "labels_needed": labels_needed}
    if beside or bottleneck.encoder is None or Path(source).suffix.lower() in FEATURE_FILES:
        return read_rows(source, features=features, features_file=features_file, **options)
    inputs = read_inputs(source, bottleneck.encoder["kind"], **options)
    if labels_needed:
        targets_of(bottleneck.classes, inputs.labels)
    return encoded(bottleneck.need_encoder(encoder, device=device), inputs, progress)


def as_fitted(
    bottleneck: "Bottleneck",
    source: str | Path,
    columns: Columns | None,
    features: str | None,
    *,
    beside: bool = False,
) -> tuple[Columns | None, str | None]:
    """Columns and tensor by which to read a file: those given, else those of the fit.

    Args:
        beside: features lie in a file of their own, beside `source`.
    """
    kept = dict(bottleneck.settings.get("read_as", {}))  # earlier versions kept none
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
