"""Fitting a bottleneck: keys placed without labels, then the keys that rows select, then values."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from surgery.devices import memory_for, off_cpu, pick_device
from surgery.errors import TaskError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.unlearning.features.rows import Rows, placed_by
from surgery.unlearning.key_selection import Selector
from surgery.unlearning.keys import fit_keys, random_projections, segments
from surgery.unlearning.settings import Settings
from surgery.unlearning.storage import digest
from surgery.unlearning.training_rows import TrainingRows
from surgery.unlearning.values import fit_entries


class Fitted(NamedTuple):
    """What a fit makes: fields of `Bottleneck`."""

    selector: Selector
    entries: Float32[np.ndarray, "C K Y"] | Int32[np.ndarray, "C K Y"]
    classes: tuple[int | str, ...]
    settings: dict[str, Any]
    training: TrainingRows
    report: dict[str, Any]


def fit(
    rows: Rows,
    asked: Settings,
    *,
    keys_from: Rows | None = None,
    read_as: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Place the keys without labels, then learn the values; rows and keys are sent to a GPU once.

    Args and errors: those of `Bottleneck.fit_rows`.
    """
    classes = asked.check_rows(rows.labels, len(rows if keys_from is None else keys_from))
    device = pick_device(asked.device)
    training, selector = _select(rows, classes, asked, keys_from, device, progress)
    recipe = asked.recipe
    entries = fit_entries(training.ids, training.targets, asked.keys, len(classes), recipe, asked.seed, device)
    settings: dict[str, Any] = {
        "top": asked.top,
        "values": asked.values,
        "sgd": recipe and asdict(recipe),
        "seed": asked.seed,
        "key_init": asked.key_init,
        "projection": asked.projection,
        "keys_from": "training rows" if keys_from is None else "other rows",
    }
    if read_as:
        settings["read_as"] = dict(read_as)
    inputs = {"rows": rows} if keys_from is None else {"rows": rows, "keys_from": keys_from}
    sizes = {"codebooks": asked.codebooks, "keys": asked.keys, "key_dim": asked.key_dim}
    report = provenance(
        call={"fit": {**settings, **sizes}},
        inputs={name: digest(given.digests) for name, given in inputs.items()},
        seed=asked.seed,
    )
    settings["class_rows"] = training.class_rows(len(classes)) if recipe is None else None
    return Fitted(selector, entries, classes, settings, training, report)


def _select(
    rows: Rows,
    classes: tuple[int | str, ...],
    asked: Settings,
    keys_from: Rows | None,
    device: torch.device,
    progress: Progress,
) -> tuple[TrainingRows, Selector]:
    """The training rows with the keys that they select, and what selects them."""
    width = rows.features.shape[1]
    if keys_from is not None and keys_from.features.shape[1] != width:
        raise TaskError(
            f"the rows to place keys by have {keys_from.features.shape[1]} features, the training rows {width}: encode both alike"
        )
    maps = (
        random_projections(width, asked.codebooks, asked.key_dim, asked.seed)
        if asked.projection == "random"
        else segments(width, asked.codebooks, asked.key_dim)
    )
    on_device = _on_device(rows.features, device)
    selector = fit_keys(
        (rows if keys_from is None else keys_from).features,
        maps,
        asked.keys,
        method=asked.key_init,
        seed=asked.seed,
        device=device,
        on_device=on_device if keys_from is None else None,
        progress=progress,
    )
    progress(0, 1, "selecting keys")
    ids = selector.select(rows.features if on_device is None else on_device, top=asked.top, device=device)
    number = {name: index for index, name in enumerate(classes)}
    targets: Int64[np.ndarray, " N"] = np.array([number[label] for label in rows.labels or ()], np.int64)
    return TrainingRows(rows.features, ids, targets, rows.digests, placed_by(rows, keys_from)), selector


def _on_device(features: Float32[np.ndarray, "N D"], device: torch.device) -> Float32[Tensor, "N D"] | None:
    """The rows on a device that isn't the CPU, for all that is done with them there; None on a CPU."""
    if not off_cpu(device):
        return None
    what = f"holding {len(features):,} rows of {features.shape[1]:,} features"
    with memory_for(device, features.nbytes, what, "fit on fewer rows, or give `device` cpu"):
        return torch.from_numpy(features).to(device)
