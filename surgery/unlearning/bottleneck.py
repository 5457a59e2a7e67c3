"""Bottleneck: frozen encoder, fixed keys, values that say the class; fitted, asked, refitted and masked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt16
from numpy.typing import NDArray

from surgery.devices import pick_device
from surgery.errors import TaskError
from surgery.progress import Progress, silent
from surgery.sync.ranks import first_goes_on
from surgery.tasks.examples import Columns
from surgery.unlearning.features.encoders import Encoder, kind_of
from surgery.unlearning.features.inputs import read_inputs
from surgery.unlearning.features.reading import as_fitted, named_columns, targets_of, training_inputs
from surgery.unlearning.features.rows import FEATURE_FILES, Rows, encoded, plain_features, read_rows
from surgery.unlearning.fitting import fit
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT, Selector
from surgery.unlearning.parts import Parts
from surgery.unlearning.settings import Settings
from surgery.unlearning.values import Sgd, Table, count, fit_entries, from_counts


@dataclass(frozen=True, eq=False)
class Answer:
    """What a bottleneck says of rows.

    Attributes:
        logits: mean value over the codebooks that answer.
        abstained: rows for which no codebook answers; their logits are 0 and mean nothing.
    """

    logits: Float32[np.ndarray, "N Y"]
    abstained: Bool[np.ndarray, " N"]

    @property
    def targets(self) -> Int64[np.ndarray, " N"]:
        """Number of the best class; -1 for an abstained row."""
        return np.where(self.abstained, -1, self.logits.argmax(1))


class Bottleneck(Parts):
    """A discrete key-value bottleneck (Träuble et al., ICML 2023; Shah et al., Unlearning via Sparse Representations).

    Every codebook projects a row's features, finds the nearest of its keys, and answers with that key's values; the
    answer is the mean over codebooks. Nothing else is learnt. It never changes: edits give new ones.

    Attributes:
        selector: projections, keys and which of them are closed.
        entries: values of every pair; or, when values are counted, the integer counts of classes they follow from.
        classes: labels in the order of the entries' last axis.
        settings: how it was fitted: `top`, `values`, `sgd`, `seed`, `key_init`, `projection`, `keys_from`; and, when values
            are counted, `class_rows`: how many rows of each class the counts are of.
        training: the rows it was fitted on; None when that file was left out before the folder was given away.
        encoder: the encoder's spec; None when it was fitted on features.
        history: the edits applied, oldest first: their hashes, what was forgotten and how.
        report: provenance of the fit.
    """

    @classmethod
    def fit(
        cls,
        encoder: str | Path | Encoder,
        data: str | Path | Sequence[Mapping[str, Any]],
        *,
        keys_from: str | Path | Sequence[Mapping[str, Any]] | None = None,
        columns: Columns | None = None,
        opening: Mapping[str, Any] | None = None,
        codebooks: int = 256,
        keys: int = 256,
        key_dim: int = 14,
        top: int = 1,
        projection: str = "random",
        key_init: str = "kmeans",
        values: str = "sgd",
        sgd: Sgd | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: Progress = silent,
    ) -> "Bottleneck":
        """Encode labelled data (once: features are cached) and fit on the features.

        Data and settings are read and checked before the encoder is loaded.

        Args:
            encoder: a text or image model: folder, hub id, or `Encoder`.
            data: labelled rows: a file as `read_rows` takes it, or a list of tables with `text` (or `image`) and `label`.
            keys_from: other rows, with or without labels, to place the keys by.
            columns: which columns of a file hold what; remembered for reading test rows and rows to forget.
            opening: options of `Encoder.open`, for a pooling or length of your own.
            codebooks, keys, key_dim, top, projection, key_init, values, sgd, seed, device: as in `fit_rows`.

        Raises:
            TaskError, OptionError: as `fit_rows` and `read_rows` do.
            CheckpointError: as `Encoder.open` does.
        """
        asked = Settings(codebooks, keys, key_dim, top, projection, key_init, values, sgd, seed, device)
        kind = encoder.kind if isinstance(encoder, Encoder) else kind_of(encoder)
        rows = training_inputs(data, kind, columns)
        others = None if keys_from is None else training_inputs(keys_from, kind, columns, labels_needed=False)
        asked.check_rows(rows.labels, len(others or rows))
        opened = encoder if isinstance(encoder, Encoder) else Encoder.open(encoder, device=device, **(opening or {}))
        asked.check_width(opened.width)
        placing = None if others is None else encoded(opened, others, progress)
        made = encoded(opened, rows, progress)
        first_goes_on()
        fitted = fit(
            made,
            asked,
            keys_from=placing,
            read_as=named_columns(columns),
            progress=progress,
        )
        return cls(**fitted._asdict(), encoder=opened.spec())

    @classmethod
    def fit_features(
        cls,
        features: Any,
        labels: Any,
        *,
        keys_from: Any = None,
        codebooks: int = 256,
        keys: int = 256,
        key_dim: int = 14,
        top: int = 1,
        projection: str = "random",
        key_init: str = "kmeans",
        values: str = "sgd",
        sgd: Sgd | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        progress: Progress = silent,
    ) -> "Bottleneck":
        """Fit on features [N, D] (or images [N, ...]) and N labels, tensors or arrays.

        Args:
            keys_from: features of other rows to place the keys by. The settings and errors are those of `fit_rows`.
        """
        asked = Settings(codebooks, keys, key_dim, top, projection, key_init, values, sgd, seed, device)
        others = None if keys_from is None else Rows.of(keys_from)
        return cls(**fit(Rows.of(features, labels), asked, keys_from=others, progress=progress)._asdict())

    @classmethod
    def fit_rows(
        cls,
        rows: Rows,
        *,
        keys_from: Rows | None = None,
        codebooks: int = 256,
        keys: int = 256,
        key_dim: int = 14,
        top: int = 1,
        projection: str = "random",
        key_init: str = "kmeans",
        values: str = "sgd",
        sgd: Sgd | None = None,
        seed: int = 0,
        encoder: Mapping[str, Any] | None = None,
        read_as: Mapping[str, str] | None = None,
        device: str | torch.device | None = None,
        progress: Progress = silent,
    ) -> "Bottleneck":
        """Place the keys without labels, then learn the values; rows and keys are sent to a GPU once.

        On CUDA, as on a CPU, the same call gives the same bits: keys, ids and values. Between devices keys and values agree
        to rounding, and a row that is as far from two keys but for rounding may select the other one. What is in a
        bottleneck is numpy, wherever it was computed.

        Args:
            keys_from: rows to place the keys by, instead of `rows`. Deleting a training row is exact only then.
            codebooks, keys, key_dim: C codebooks of K keys in d dimensions.
            top: how many nearest keys of a codebook answer.
            projection: `random` maps, or disjoint `segments` of the features.
            key_init: how keys are placed: see `fit_keys`.
            values: `sgd` as published, or `counts`: a closed form of integer counts, from which a row can be taken exactly.
            sgd: rate, epochs, batch and smoothing of `sgd`; by default those published.
            seed: what projections, keys and the order of rows in SGD are drawn by.
            encoder: the spec of the encoder that made the rows, for reading others like them.
            read_as: what columns (`text`, `text_pair`, `label`) and which tensor (`features`) of a file the rows are, where
                they were named: so are test rows and rows to forget read then.
            device: as torch names them; default CUDA when there is one, else the CPU.

        Raises:
            TaskError: labels missing, or fewer than two classes.
            OptionError: a setting out of its range, a device that isn't there, or more than its memory holds.
        """
        asked = Settings(codebooks, keys, key_dim, top, projection, key_init, values, sgd, seed, device)
        fitted = fit(rows, asked, keys_from=keys_from, read_as=read_as, progress=progress)
        return cls(**fitted._asdict(), encoder=encoder)

    def refit_entries(
        self, rows: NDArray | None = None, *, device: torch.device | None = None
    ) -> Float32[np.ndarray, "C K Y"] | Int32[np.ndarray, "C K Y"]:
        """The entries that these training rows (default: all of them) give with all keys open, from cached ids alone.

        The same bits as those of a fit that never saw the others, with the same keys and on the same device; by default
        CUDA when there is one.
        """
        training = self.need_training()
        ids, targets = (
            (training.ids, training.targets) if rows is None else (training.ids[rows], training.targets[rows])
        )
        keys, classes, recipe = self.selector.keys.shape[1], len(self.classes), None if self.counted else self.recipe
        return fit_entries(ids, targets, keys, classes, recipe, self.settings["seed"], device or pick_device(None))

    def refitted(self, rows: NDArray, *, device: torch.device | None = None) -> "Bottleneck":
        """What this bottleneck would be, keys as they are and all open, had its values only seen these training rows."""
        settings = {**self.settings, "class_rows": self.class_rows(rows)}
        entries = self.refit_entries(rows, device=device)
        return replace(self, selector=self.opened, entries=entries, settings=settings, training=None, history=())

    def class_rows(self, rows: NDArray | None = None) -> list[int] | None:
        """How many of these training rows (default: all) are of each class; None unless values are counted."""
        return self.need_training().class_rows(len(self.classes), rows) if self.counted else None

    @property
    def opened(self) -> Selector:
        """The selector with no key masked."""
        return self.selector.with_states(np.full_like(self.selector.states, OPEN))

    def masked(self, pairs: Int64[np.ndarray, " P"], answer: str) -> "Bottleneck":
        """With these pairs closed (`next` answers) or silent (`drop`), and their values as they are."""
        states = self.selector.states.copy()
        states.reshape(-1)[pairs] = CLOSED if answer == "next" else SILENT
        return replace(self, selector=self.selector.with_states(states))

    def current_ids(
        self, rows: NDArray | None = None, *, device: torch.device | None = None
    ) -> UInt16[np.ndarray, "N C top"]:
        """The keys that training rows (default: all) select now that some keys may be closed; by default found on the CPU."""
        training = self.need_training()
        if not (self.selector.states == CLOSED).any():
            return training.ids if rows is None else training.ids[rows]
        return self._reselected(device) if rows is None else self._reselected(device)[rows]

    def current_selections(self, *, device: torch.device | None = None) -> Int32[np.ndarray, "C K"]:
        """How many training rows select each pair now."""
        keys = self.selector.keys.shape[1]
        if not (self.selector.states == CLOSED).any():
            return self.need_training().selections(keys)
        ids = self._reselected(device)
        return count(ids, np.zeros(len(ids), np.int64), keys, 1)[:, :, 0]

    def _reselected(self, device: torch.device | None) -> NDArray:
        place = str(device or "cpu")
        if place not in self._current:
            training = self.need_training()
            self._current[place] = self.selector.reselect(training.features, training.ids, device=device)
        return self._current[place]

    @cached_property
    def _current(self) -> dict[str, NDArray]:
        return {}

    @cached_property
    def values(self) -> Float32[np.ndarray, "C K Y"]:
        """Scores of every pair."""
        if not self.counted:
            return self.entries
        return from_counts(self.entries, np.array(self.settings["class_rows"], np.int64) * self.settings["top"])

    def select(self, features: Any, *, device: str | torch.device | None = None) -> UInt16[np.ndarray, "N C top"]:
        """Ids of the keys that rows select: numpy, wherever they were found. A row's are the same whichever it comes with."""
        place = pick_device(device)
        return self.selector.select(self._features(features, place), top=self.settings["top"], device=place)

    def answer(self, rows: Any, *, device: str | torch.device | None = None) -> Answer:
        """Scores of every class for rows: features [N, D], `Rows`, a list of texts or images, or a data file.

        Features may be on any device; scores are numpy, on CUDA the same bits each time and a CPU's to rounding.
        """
        return self.answer_ids(self.select(rows, device=device), device=device)

    def answer_ids(self, ids: UInt16[np.ndarray, "N C top"], *, device: str | torch.device | None = None) -> Answer:
        """The same for rows whose keys are known."""
        place = pick_device(device)
        return Answer(*Table(self.values, self.selector.states, place).answer(ids))

    def predict(self, rows: Any, *, device: str | torch.device | None = None) -> NDArray:
        """The best class of each row, as the labels were given; None (in an array of objects) for a row that no codebook answers."""
        answer = self.answer(rows, device=device)
        labels = np.array(self.classes)[answer.logits.argmax(1)]
        if not answer.abstained.any():
            return labels
        mixed = labels.astype(object)
        mixed[answer.abstained] = None
        return mixed

    def open_encoder(
        self, source: str | Path | None = None, *, device: str | torch.device | None = None
    ) -> Encoder | None:
        """Its encoder, from where it lay at the fit or from `source`; None if it was fitted on features. Kept once open."""
        if self.encoder is None:
            return None
        key = (source, device)
        if key not in self._encoders:
            self._encoders[key] = Encoder.from_spec(self.encoder, source=source, device=device)
        return self._encoders[key]

    def need_encoder(self, source: str | Path | None = None, *, device: str | torch.device | None = None) -> Encoder:
        """The same; raises TaskError if it was fitted on features."""
        encoder = self.open_encoder(source, device=device)
        if encoder is None:
            raise TaskError("this bottleneck was fitted on features, so it can't read texts or images: give features")
        return encoder

    @cached_property
    def _encoders(self) -> dict[Any, Encoder]:
        return {}

    def read(
        self,
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
        """Rows of a file, read as its training rows were: out of features files, or by its encoder, which is loaded last.

        Args:
            features_file, columns, features: as `read_rows` takes them; by default as in the fit.
            encoder: where its encoder lies now, if it has moved.
            labels_needed: refuse rows without labels, and labels that training never saw.

        Raises:
            TaskError, OptionError, CheckpointError: as `read_rows` and `Encoder.from_spec` do.
        """
        beside = features_file is not None
        columns, features = as_fitted(self.settings.get("read_as", {}), source, columns, features, beside=beside)
        options: dict[str, Any] = {"columns": columns, "labels_needed": labels_needed}
        if beside or self.encoder is None or Path(source).suffix.lower() in FEATURE_FILES:
            return read_rows(source, features=features, features_file=features_file, **options)
        inputs = read_inputs(source, self.encoder["kind"], **options)
        if labels_needed:
            targets_of(self.classes, inputs.labels)
        return encoded(self.need_encoder(encoder, device=device), inputs, progress)

    def _features(self, rows: Any, device: torch.device) -> Float32[np.ndarray, "N D"]:
        if isinstance(rows, str | Path):
            rows = self.read(rows, labels_needed=False, device=str(device))
        elif isinstance(rows, Sequence) and rows and isinstance(rows[0], str | tuple | Path):
            return self.checked(self.need_encoder(device=str(device)).encode(list(rows)))
        return self.checked(rows.features if isinstance(rows, Rows) else plain_features(rows))

    def checked(self, features: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N D"]:
        """The features; raises TaskError for a width other than the training rows'."""
        width = len(self.selector.center)
        if features.shape[1] != width:
            raise TaskError(
                f"the rows have {features.shape[1]} features, and this bottleneck takes {width}: encode them as its training rows were"
            )
        return features
