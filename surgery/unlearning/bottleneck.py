"""Bottleneck: frozen encoder, fixed keys, values that say the class; fitted, asked, saved and loaded."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt16
from numpy.typing import NDArray

from surgery.checkpoints.hub import located
from surgery.checkpoints.models import pick_device
from surgery.devices import off_cpu, room_for
from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.files import new_folder, replace_bytes
from surgery.jsonfile import conform
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.tasks.examples import Columns
from surgery.unlearning.card import bottleneck_card
from surgery.unlearning.features.encoders import Encoder, kind_of
from surgery.unlearning.features.inputs import Inputs, inputs_of, read_inputs
from surgery.unlearning.features.reading import named_columns, read_alike
from surgery.unlearning.features.rows import FEATURE_FILES, Rows, encoded, placed_by, plain_features
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT, Selector
from surgery.unlearning.keys import KeyMethod, fit_keys, random_projections, segments
from surgery.unlearning.schema import BottleneckConfig, Origin
from surgery.unlearning.settings import Settings
from surgery.unlearning.storage import (
    digest,
    hash_arrays,
    read_arrays,
    read_json,
    take_checksum,
    write_arrays,
    write_table,
)
from surgery.unlearning.training_rows import TrainingRows
from surgery.unlearning.values import Sgd, Table, count, from_counts, learn_values

CONFIG_FILE, MODEL_FILE, TRAINING_FILE = "config.json", "model.safetensors", "training.safetensors"
UNCHECKED = "%s has no checksums, as an earlier version wrote it: whether a file is damaged can't be checked"
_FORMAT = "surgery bottleneck 1"
_LOG = logging.getLogger(__name__)
_BELOW = np.float32(-1e-6)  # what a class without rows scores at most


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


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """A discrete key-value bottleneck (Träuble et al., ICML 2023; Shah et al., Unlearning via Sparse Representations).

    Every codebook projects a row's features, finds the nearest of its keys, and answers with that key's values; the
    answer is the mean over codebooks. Nothing else is learnt. It never changes: edits give new ones.

    Attributes:
        selector: projections, keys and which of them are closed.
        table: values of every pair; or, when values are counted, the integer counts of classes they follow from.
        classes: labels in the order of the table's last axis.
        settings: how it was fitted: `top`, `values`, `sgd`, `seed`, `key_init`, `projection`, `keys_from`; and, when values
            are counted, `class_rows`: how many rows of each class the counts are of.
        training: the rows it was fitted on; None when that file was left out before the folder was given away.
        encoder: the encoder's spec; None when it was fitted on features.
        history: the edits applied, oldest first: their hashes, what was forgotten and how.
        report: provenance of the fit.
    """

    selector: Selector
    table: Float32[np.ndarray, "C K Y"] | Int32[np.ndarray, "C K Y"]
    classes: tuple[int | str, ...]
    settings: Mapping[str, Any]
    training: TrainingRows | None
    encoder: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        codebooks, keys, d = self.selector.keys.shape
        rows = "without training rows" if self.training is None else f"{len(self.training):,} training rows"
        return f"Bottleneck({codebooks:,} codebooks x {keys:,} keys in {d} dimensions, {len(self.classes):,} classes, {rows}, {len(self.history)} edits)"

    @classmethod
    def fit(
        cls,
        encoder: str | Path | Encoder,
        data: str | Path | Sequence[Mapping[str, Any]],
        *,
        keys_from: str | Path | Sequence[Mapping[str, Any]] | None = None,
        columns: Columns | None = None,
        opening: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        progress: Progress = silent,
        **settings: Any,
    ) -> "Bottleneck":
        """Encode labelled data (once: features are cached) and fit on the features; settings are those of `fit_features`.

        Data and settings are read and checked before the encoder is loaded.

        Args:
            encoder: a text or image model: folder, hub id, or `Encoder`.
            data: labelled rows: a file as `read_rows` takes it, or a list of tables with `text` (or `image`) and `label`. `keys_from`: other rows, with or without labels, to place the keys by.
            columns: which columns of a file hold what; remembered for reading test rows and rows to forget.
            opening: options of `Encoder.open`, for a pooling or length of your own.
        """
        asked = Settings.of({**settings, "device": device})
        kind = encoder.kind if isinstance(encoder, Encoder) else kind_of(encoder)

        def read(given: str | Path | Sequence[Mapping[str, Any]], labels_needed: bool) -> Inputs:
            if not isinstance(given, str | Path):
                return inputs_of(given, kind, labels_needed=labels_needed)
            if Path(given).suffix.lower() in FEATURE_FILES:
                raise OptionError(f"{given} holds features already: leave out --encoder")
            return read_inputs(given, kind, columns, labels_needed=labels_needed)

        rows = read(data, True)
        others = None if keys_from is None else read(keys_from, False)
        asked.check_rows(rows.labels, len(others or rows))
        opened = encoder if isinstance(encoder, Encoder) else Encoder.open(encoder, device=device, **(opening or {}))
        asked.check_width(opened.width)
        placing = None if others is None else encoded(opened, others, progress)
        settings["read_as"] = named_columns(columns)
        return cls.fit_rows(
            encoded(opened, rows, progress),
            keys_from=placing,
            encoder=opened.spec(),
            device=device,
            progress=progress,
            **settings,
        )

    @classmethod
    def fit_features(cls, features: Any, labels: Any, *, keys_from: Any = None, **settings: Any) -> "Bottleneck":
        """Fit on features [N, D] (or images [N, ...]) and N labels, tensors or arrays; settings as in `fit_rows`."""
        others = None if keys_from is None else Rows.of(keys_from)
        return cls.fit_rows(Rows.of(features, labels), keys_from=others, **settings)

    @classmethod
    def fit_rows(
        cls,
        rows: Rows,
        *,
        codebooks: int = 256,
        keys: int = 256,
        key_dim: int = 14,
        top: int = 1,
        projection: str = "random",
        key_init: KeyMethod = "kmeans",
        keys_from: Rows | None = None,
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
            codebooks, keys, key_dim: C codebooks of K keys in d dimensions.
            top: how many nearest keys of a codebook answer.
            projection: `random` maps, or disjoint `segments` of the features.
            key_init: how keys are placed: see `fit_keys`.
            keys_from: rows to place the keys by, instead of `rows`. Deleting a training row is exact only then.
            device: as torch names them; default CUDA when there is one, else the CPU.
            values: `sgd` as published, or `counts`: a closed form of integer counts, from which a row can be taken exactly.
            read_as: what columns (`text`, `text_pair`, `label`) and which tensor (`features`) of a file the rows are, where
                they were named: so are test rows and rows to forget read then.

        Raises:
            TaskError: labels missing, or fewer than two classes.
            OptionError: a setting out of its range, a device that isn't there, or more than its memory holds.
        """
        asked = Settings(codebooks, keys, key_dim, top, projection, key_init, values, seed, device)
        classes = asked.check_rows(rows.labels, len(rows if keys_from is None else keys_from))
        place, recipe = pick_device(device), sgd or Sgd()
        width = rows.features.shape[1]
        if keys_from is not None and keys_from.features.shape[1] != width:
            raise TaskError(
                f"the rows to place keys by have {keys_from.features.shape[1]} features, the training rows {width}: encode both alike"
            )
        maps = (
            random_projections(width, codebooks, key_dim, seed)
            if projection == "random"
            else segments(width, codebooks, key_dim)
        )
        placing = rows if keys_from is None else keys_from
        how: dict[str, Any] = {"method": key_init, "seed": seed, "device": place, "progress": progress}
        sent = _sent(rows.features, place)
        selector = fit_keys(placing.features, maps, keys, sent=sent if placing is rows else None, **how)
        progress(0, 1, "selecting keys")
        ids = selector.select(rows.features if sent is None else sent, top=top, device=place)
        del sent
        place_of = {name: index for index, name in enumerate(classes)}
        targets = np.array([place_of[label] for label in rows.labels or ()], np.int64)
        training = TrainingRows(rows.features, ids, targets, rows.digests, placed_by(rows, keys_from))
        settings = {
            "top": top,
            "values": values,
            "sgd": asdict(recipe) if values == "sgd" else None,
            "seed": seed,
            "key_init": key_init,
            "projection": projection,
            "keys_from": "other rows" if keys_from is not None else "training rows",
        }
        if read_as:
            settings["read_as"] = dict(read_as)
        inputs = {"rows": digest(rows.digests)} | (
            {} if keys_from is None else {"keys_from": digest(keys_from.digests)}
        )
        report = provenance(
            call={"fit": {**settings, "codebooks": codebooks, "keys": keys, "key_dim": key_dim}},
            inputs=inputs,
            seed=seed,
        )
        empty = np.zeros((codebooks, keys, len(classes)), np.float32)
        settings["class_rows"] = training.class_rows(len(classes)) if values == "counts" else None
        unfitted = cls(selector, empty, classes, settings, training, encoder, (), report)
        return replace(unfitted, table=unfitted.refit_table(device=place))

    def refit_table(
        self, rows: NDArray | None = None, *, device: torch.device | None = None
    ) -> Float32[np.ndarray, "C K Y"] | Int32[np.ndarray, "C K Y"]:
        """The table that these training rows (default: all of them) give with all keys open, from cached ids alone.

        The same bits as those of a fit that never saw the others, with the same keys and on the same device; by default
        CUDA when there is one.
        """
        training = self.need_training()
        ids, targets = (
            (training.ids, training.targets) if rows is None else (training.ids[rows], training.targets[rows])
        )
        keys, classes = self.selector.keys.shape[1], len(self.classes)
        if self.counted:
            return count(ids, targets, keys, classes)
        device = pick_device(None) if device is None else device
        open_states = np.full_like(self.selector.states, OPEN)
        table = learn_values(ids, targets, open_states, classes, self.recipe, self.settings["seed"], device)
        absent = np.bincount(targets, minlength=classes) == 0
        # Or they would tie where no row is left to say anything, and the first class would be answered.
        table[:, :, absent] = np.minimum(table[:, :, absent], _BELOW)
        return table

    def refitted(self, rows: NDArray, *, device: torch.device | None = None) -> "Bottleneck":
        """What this bottleneck would be, keys as they are and all open, had its values only seen these training rows."""
        settings = {**self.settings, "class_rows": self.class_rows(rows)}
        table = self.refit_table(rows, device=device)
        return replace(self, selector=self.opened, table=table, settings=settings, training=None, history=())

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

    @property
    def counted(self) -> bool:
        """Whether values follow from counts in closed form."""
        return self.settings["values"] == "counts"

    @property
    def recipe(self) -> Sgd:
        """How values are learnt by SGD."""
        sgd = self.settings["sgd"]
        return Sgd(**{one.name: sgd[one.name] for one in fields(Sgd)}) if sgd else Sgd()

    @cached_property
    def values(self) -> Float32[np.ndarray, "C K Y"]:
        """Scores of every pair."""
        if not self.counted:
            return self.table
        return from_counts(self.table, np.array(self.settings["class_rows"], np.int64) * self.settings["top"])

    def need_training(self) -> TrainingRows:
        """The training rows; raises BottleneckError when they aren't there."""
        if self.training is None:
            raise BottleneckError(
                f"this bottleneck comes without its training rows ({TRAINING_FILE}): it answers, but can't be edited or refitted"
            )
        return self.training

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
        asked = (source, device)
        if asked not in self._encoders:
            self._encoders[asked] = Encoder.from_spec(self.encoder, source=source, device=device)
        return self._encoders[asked]

    def need_encoder(self, source: str | Path | None = None, *, device: str | torch.device | None = None) -> Encoder:
        """The same; raises TaskError if it was fitted on features."""
        encoder = self.open_encoder(source, device=device)
        if encoder is None:
            raise TaskError("this bottleneck was fitted on features, so it can't read texts or images: give features")
        return encoder

    @cached_property
    def _encoders(self) -> dict[Any, Encoder]:
        return {}

    def _features(self, rows: Any, device: torch.device) -> Float32[np.ndarray, "N D"]:
        if isinstance(rows, str | Path):
            rows = read_alike(self, rows, labels_needed=False, device=str(device))
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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that it holds but its report; 64 hex digits."""
        config = json.dumps(self._config(), sort_keys=True).encode()
        return hash_arrays(self._model_arrays() | self._training_arrays(), config).hexdigest()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `config.json`, `model.safetensors`, `training.safetensors`, `report.json` and a card.

        The same bottleneck gives the same bytes.
        """
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            self.write(staged)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder."""
        write_table(folder / CONFIG_FILE, self._config())
        write_arrays(folder / MODEL_FILE, self._model_arrays())
        if self.training is not None:
            write_arrays(folder / TRAINING_FILE, self._training_arrays())
        write_table(folder / "report.json", self.report)
        replace_bytes(folder / "README.md", bottleneck_card(self).encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Bottleneck":
        """Read a bottleneck's folder, or a repository of it on the hub.

        Raises BottleneckError for anything else, and for a damaged one.
        A folder of an earlier version has no checksums: it is loaded, and a warning is logged that damage can't be seen.
        """
        folder = located(folder, BottleneckError)
        config = read_json(folder / CONFIG_FILE)
        if config.get("format") != _FORMAT:
            raise BottleneckError(
                f"{folder / CONFIG_FILE} isn't a {_FORMAT}'s: name a folder that `surgery bottleneck fit` wrote"
            )
        report = read_json(folder / "report.json")
        tables = ((CONFIG_FILE, config), ("report.json", report))
        checked = [take_checksum(folder / name, table) for name, table in tables]
        model, whole = read_arrays(folder / MODEL_FILE)
        training, whole_too = (
            read_arrays(folder / TRAINING_FILE) if (folder / TRAINING_FILE).exists() else (None, whole)
        )
        checked += [whole, whole_too]
        if any(checked) and not all(checked):
            raise BottleneckError(f"{folder} is damaged (a file has lost its checksum): fit or fetch it again")
        if not any(checked):
            _LOG.warning(UNCHECKED, folder)
        try:
            conform(config, BottleneckConfig)
            conform(report, Origin)
            loaded = cls(
                Selector(model["center"], model["projections"], model["keys"], model["states"]),
                model["table"],
                tuple(config["classes"]),
                config["settings"],
                None if training is None else TrainingRows(**training),
                config["encoder"],
                tuple(config["history"]),
                report,
            )
            loaded.check()
        except (KeyError, TypeError, ValueError) as error:
            raise BottleneckError(f"{folder} is damaged ({error!r}): fit or fetch it again") from None
        return loaded

    def check(self) -> None:
        """Raise ValueError unless the parts fit together."""
        codebooks, keys, d = self.selector.keys.shape
        width, classes, top = len(self.selector.center), len(self.classes), self.settings["top"]
        if not 0 < top <= keys or not codebooks * d:
            raise ValueError(f"{codebooks} codebooks of {keys} keys in {d} dimensions, of which {top} answer")
        if not self.counted and self.settings["sgd"] is None:
            raise ValueError("values learnt by SGD, and no settings of it")
        wanted = {
            "center": (self.selector.center, np.float32, (width,)),
            "keys": (self.selector.keys, np.float32, (codebooks, keys, d)),
            "projections": (self.selector.projections, np.float32, (codebooks, width, d)),
            "states": (self.selector.states, np.uint8, (codebooks, keys)),
            "table": (self.table, np.int32 if self.counted else np.float32, (codebooks, keys, classes)),
        }
        if self.counted and len(self.settings["class_rows"] or ()) != classes:
            raise ValueError("class_rows isn't one number a class")
        if self.training is not None:
            rows = len(self.training)
            wanted |= {
                "placed": (self.training.placed, np.uint64, (len(self.training.placed),)),
                "features": (self.training.features, np.float32, (rows, width)),
                "ids": (self.training.ids, np.uint16, (rows, codebooks, self.settings["top"])),
                "targets": (self.training.targets, np.int64, (rows,)),
                "digests": (self.training.digests, np.uint64, (rows,)),
            }
            if rows and (
                int(self.training.ids.max()) >= keys
                or not 0 <= int(self.training.targets.min()) <= int(self.training.targets.max()) < classes
            ):
                raise ValueError("ids or targets out of range")
        for name, (array, dtype, shape) in wanted.items():
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")

    def _config(self) -> dict[str, Any]:
        codebooks, keys, d = self.selector.keys.shape
        return {
            "format": _FORMAT,
            "codebooks": codebooks,
            "keys": keys,
            "key_dim": d,
            "width": len(self.selector.center),
            "classes": list(self.classes),
            "settings": dict(self.settings),
            "encoder": None if self.encoder is None else dict(self.encoder),
            "history": [dict(edit) for edit in self.history],
        }

    def _model_arrays(self) -> dict[str, NDArray]:
        selector = self.selector
        return {
            "center": selector.center,
            "projections": selector.projections,
            "keys": selector.keys,
            "states": selector.states,
            "table": self.table,
        }

    def _training_arrays(self) -> dict[str, NDArray]:
        rows = self.training
        if rows is None:
            return {}
        return {name: getattr(rows, name) for name in ("features", "ids", "targets", "digests", "placed")}


def _sent(features: Float32[np.ndarray, "N D"], device: torch.device) -> Float32[torch.Tensor, "N D"] | None:
    """The rows on a device that isn't the CPU, for all that is done with them there."""
    if not off_cpu(device):
        return None
    what = f"holding {len(features):,} rows of {features.shape[1]:,} features"
    with room_for(device, features.nbytes, what, "fit on fewer rows, or give --device cpu"):
        return torch.from_numpy(features).to(device)
