"""What a bottleneck consists of: held together, hashed, described, and written to a folder and read from it."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, Int32
from numpy.typing import NDArray

from surgery.checkpoints.hub import located
from surgery.errors import BottleneckError
from surgery.files import new_folder, replace_bytes
from surgery.jsonfile import conform
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.unlearning.card import bottleneck_card
from surgery.unlearning.descriptions import Facts, placed_by, what_all
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT, Selector
from surgery.unlearning.schema import BottleneckConfig, Origin
from surgery.unlearning.storage import (
    check_arrays,
    hash_arrays,
    read_arrays,
    read_json,
    take_checksum,
    write_arrays,
    write_table,
)
from surgery.unlearning.training_rows import TrainingRows
from surgery.unlearning.values import Sgd

CONFIG_FILE, MODEL_FILE, TRAINING_FILE = "config.json", "model.safetensors", "training.safetensors"
UNCHECKED = "%s has no checksums, as an earlier version wrote it: whether a file is damaged can't be checked"
_FORMAT = "surgery bottleneck 1"
_P = TypeVar("_P", bound="Parts")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Parts(Result):
    """The parts of a `Bottleneck`, which says what each is: all that is saved, and nothing that answers."""

    selector: Selector
    entries: Float32[np.ndarray, "C K Y"] | Int32[np.ndarray, "C K Y"]
    classes: tuple[int | str, ...]
    settings: Mapping[str, Any]
    training: TrainingRows | None
    encoder: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> bool:
        """Whether values follow from counts in closed form."""
        return self.settings["values"] == "counts"

    @property
    def recipe(self) -> Sgd:
        """How values are learnt by SGD."""
        sgd = self.settings["sgd"]
        return Sgd(**{one.name: sgd[one.name] for one in fields(Sgd)}) if sgd else Sgd()

    def need_training(self) -> TrainingRows:
        """The training rows; raises BottleneckError when they aren't there."""
        if self.training is None:
            raise BottleneckError(
                f"this bottleneck comes without its training rows ({TRAINING_FILE}): it answers, but can't be edited or refitted"
            )
        return self.training

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that it holds but its report; 64 hex digits."""
        config = json.dumps(self._config(), sort_keys=True).encode()
        return hash_arrays(self._model_arrays() | self._training_arrays(), config).hexdigest()

    @cached_property
    def facts(self) -> Facts:
        """Sizes, classes, settings and edits: what a card or a page says of it."""
        states, training = self.selector.states, self.training
        names = (("open", OPEN), ("closed", CLOSED), ("silent", SILENT))
        config = self._config()
        return Facts(
            **{key: config[key] for key in ("codebooks", "keys", "key_dim", "width")},
            pairs={name: int((states == state).sum()) for name, state in names},
            classes=config["classes"],
            training_rows=None if training is None else training.class_rows(len(self.classes)),
            placed_by=placed_by(self.settings, training),
            **{key: config[key] for key in ("settings", "encoder", "history")},
            version=self.report.get("surgery", ""),
        )

    @property
    def summary(self) -> list[str]:
        """Its sizes, what it was fitted on, and what was forgotten."""
        size, made, _ = self.facts.made
        rows = "without training rows" if self.training is None else number_of(len(self.training), "training row")
        held = f"{number_of(len(self.classes), 'class', 'classes')}, {rows}, {number_of(len(self.history), 'edit')}"
        return [f"{size}; {held}.", f"{made[:1].upper()}{made[1:]}.", f"Forgotten so far: {what_all(self.history)}."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Classes, and how many training rows of each it remembers; None without its training rows."""
        counts: Sequence[int | None] = self.facts.training_rows or [None] * len(self.classes)
        return ["class", "training rows"], [list(row) for row in zip(self.classes, counts, strict=True)]

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
        replace_bytes(folder / "README.md", bottleneck_card(self.facts).encode())

    @classmethod
    def load(cls: type[_P], folder: str | Path) -> _P:
        """Read a bottleneck's folder, or a repository of it on the hub.

        A folder of an earlier version has no checksums: it is loaded, and a warning is logged that damage can't be seen.

        Raises:
            BottleneckError: a folder of anything else, or a damaged one.
        """
        folder = located(folder, BottleneckError)
        config, report, model, training = _read(folder)
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
        if self.counted and len(self.settings["class_rows"] or ()) != classes:
            raise ValueError("class_rows isn't one number a class")
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            "center": (np.float32, (width,)),
            "keys": (np.float32, (codebooks, keys, d)),
            "projections": (np.float32, (codebooks, width, d)),
            "states": (np.uint8, (codebooks, keys)),
            "table": (np.int32 if self.counted else np.float32, (codebooks, keys, classes)),
        }
        rows = self.training
        if rows is not None:
            if len(rows) and (
                int(rows.ids.max()) >= keys or not 0 <= int(rows.targets.min()) <= int(rows.targets.max()) < classes
            ):
                raise ValueError("ids or targets out of range")
            expected |= rows.expected(width, codebooks, top)
        check_arrays(self._model_arrays() | self._training_arrays(), expected)

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
        frozen = {name: getattr(self.selector, name) for name in ("center", "projections", "keys", "states")}
        return frozen | {"table": self.entries}

    def _training_arrays(self) -> dict[str, NDArray]:
        return {} if self.training is None else self.training.arrays()


def _read(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, NDArray], dict[str, NDArray] | None]:
    """Config, report, model and training rows; BottleneckError for a file that is missing or isn't as it was written."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("format") != _FORMAT:
        raise BottleneckError(
            f"{folder / CONFIG_FILE} isn't a {_FORMAT}'s: name a folder that `surgery bottleneck fit` wrote"
        )
    report = read_json(folder / "report.json")
    tables = ((CONFIG_FILE, config), ("report.json", report))
    checked = [take_checksum(folder / name, table) for name, table in tables]
    model, whole = read_arrays(folder / MODEL_FILE)
    training, whole_too = read_arrays(folder / TRAINING_FILE) if (folder / TRAINING_FILE).exists() else (None, whole)
    checked += [whole, whole_too]
    if any(checked) and not all(checked):
        raise BottleneckError(f"{folder} is damaged (a file has lost its checksum): fit or fetch it again")
    if not any(checked):
        _LOG.warning(UNCHECKED, folder)
    return config, report, model, training
