"""Rows to forget by their content: texts, images, features or a file, looked for among the training rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from surgery.errors import TaskError
from surgery.tasks.examples import Columns
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.features.inputs import Inputs, inputs_of, read_inputs
from surgery.unlearning.features.reading import as_fitted
from surgery.unlearning.features.rows import FEATURE_FILES, Rows, read_rows


def find_rows(
    bottleneck: Bottleneck, content: Any, *, columns: Columns | None = None, features: str | None = None
) -> Int64[np.ndarray, " R"]:
    """Numbers of the training rows of this content, twins and all. Nothing is encoded.

    Args:
        content: `Rows`; features [rows, ...]; a list of texts, pairs of texts, images or tables with `text` or `image`; or
            a file of examples or features, in which `columns` and `features` name what holds what, by default as in fit.

    Raises:
        TaskError: something else, or a row that training never saw, by its number.
    """
    training = bottleneck.need_training()
    if isinstance(content, str | Path):
        content = _read(bottleneck, content, columns, features)
    elif isinstance(content, list | tuple):
        content = _listed(bottleneck, list(content))
    elif isinstance(content, np.ndarray | Tensor):
        content = Rows.of(content)
    if isinstance(content, Rows):
        alike = content.features.shape[1] == training.features.shape[1]
        return training.find(content.digests, content.features if alike else None)
    if not isinstance(content, Inputs):
        raise TaskError(
            f"rows to forget can't be a {type(content).__name__}: give features, a list of texts or images, or a file"
        )
    return training.find(content.digests)


def _read(bottleneck: Bottleneck, source: str | Path, columns: Columns | None, features: str | None) -> Rows | Inputs:
    columns, features = as_fitted(bottleneck.settings.get("read_as", {}), source, columns, features)
    if Path(source).suffix.lower() in FEATURE_FILES:
        return read_rows(source, features=features, columns=columns, labels_needed=False)
    return read_inputs(source, _kind(bottleneck), columns, labels_needed=False)


def _listed(bottleneck: Bottleneck, content: list[Any]) -> Rows | Inputs:
    """Numbers are features, unless the encoder reads images: then arrays are images."""
    if not content:
        raise TaskError("there are no rows to forget: name at least one")
    kind = _kind(bottleneck)
    if all(isinstance(one, Mapping) for one in content):
        return inputs_of(content, kind, labels_needed=False)
    plain = all(isinstance(one, list | tuple | Tensor | np.ndarray) for one in content)
    if plain and kind == "text" and not any(isinstance(part, str) for one in content for part in one):
        return Rows.of(content)
    return Inputs(kind, content, None)


def _kind(bottleneck: Bottleneck) -> str:
    return bottleneck.encoder["kind"] if bottleneck.encoder else "text"
