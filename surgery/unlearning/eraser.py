"""Eraser: one edit of a bottleneck: which pairs, why, and what it takes to do and to undo it. It stays with the owner."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8
from numpy.typing import NDArray

from surgery.checkpoints.hub import located
from surgery.errors import BottleneckError
from surgery.files import new_folder, replace_bytes
from surgery.jsonfile import conform
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.card import eraser_card
from surgery.unlearning.descriptions import edit_line
from surgery.unlearning.schema import EraserReport
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

ERASER_FILE = "eraser.safetensors"
_FORMAT = "surgery eraser 1"
_ARRAYS = ("pairs", "old_entries", "new_entries", "old_states", "new_states", "positions", "salt")


@dataclass(frozen=True, eq=False)
class Eraser(Result):
    """What `unlearn` decides.

    Attributes:
        pairs: codebook * K + key of every pair that changes, in rising order.
        old_entries, new_entries: rows of the table (values, or counts) of these pairs before and after.
        old_states, new_states: likewise OPEN, CLOSED or SILENT.
        positions: forgotten rows, as numbers of the training rows before the edit.
        salt: 32 random bytes, without which the hash in the edited bottleneck would let anyone test a guess at the rows.
        bottleneck: fingerprint of the bottleneck that it edits.
        previous: hash of the edit before it; empty for the first.
        edit: via (the method), forget, rank, answer, keys, rule, seed and counts of what it touches; `class_rows` before and after;
            `inputs`: hashes of what it was fitted on, which the edited bottleneck must not keep, for the same reason.
        report: provenance.
    """

    pairs: Int64[np.ndarray, " P"]
    old_entries: Float32[np.ndarray, "P Y"] | Int32[np.ndarray, "P Y"]
    new_entries: Float32[np.ndarray, "P Y"] | Int32[np.ndarray, "P Y"]
    old_states: UInt8[np.ndarray, " P"]
    new_states: UInt8[np.ndarray, " P"]
    positions: Int64[np.ndarray, " R"]
    salt: UInt8[np.ndarray, " 32"]
    source: TrainingRows
    bottleneck: str
    previous: str
    edit: Mapping[str, Any]
    report: Mapping[str, Any] = field(default_factory=dict)
    loaded: bool = False

    @property
    def summary(self) -> list[str]:
        """What it forgets and how, what it changes, and that it is private."""
        return [
            f"Forgotten: {edit_line({**self.edit, 'hash': self.hash})}.",
            f"It changes {len(self.pairs):,} of {self.edit['of_pairs']:,} pairs; the forgotten rows select {self.edit['active']:,}.",
            "It holds what was taken out: keep it private.",
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Codebooks, and how many of each one's keys it changes."""
        touched = np.bincount(self.codebook_keys[:, 0], minlength=self.source.ids.shape[1])
        return ["codebook", "pairs"], [[codebook, int(pairs)] for codebook, pairs in enumerate(touched)]

    @property
    def forget(self) -> list[int | str]:
        """Forgotten classes; empty for single rows."""
        return self.edit["forget"]

    @property
    def codebook_keys(self) -> Int64[np.ndarray, "P 2"]:
        """Codebook and key of every pair that changes."""
        keys = self.edit["of_pairs"] // self.source.ids.shape[1]
        return np.stack(np.divmod(self.pairs, keys), 1)

    @cached_property
    def rows(self) -> TrainingRows:
        """The forgotten rows. Gathered when first wanted, so that deciding on an edit costs no copy of them."""
        return self.source if self.loaded else self.source.take(self.positions)

    @property
    def masked(self) -> int:
        """How many pairs it closes or silences."""
        return int((self.new_states != self.old_states).sum())

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the whole edit and the one before it: 64 hex digits."""
        content = {"edit": dict(self.edit), "bottleneck": self.bottleneck, "previous": self.previous}
        return hash_arrays(self._arrays(), json.dumps(content, sort_keys=True).encode()).hexdigest()

    def apply(self, bottleneck: Bottleneck) -> Bottleneck:
        """The bottleneck with the pairs' values and the rows gone; raises BottleneckError for any other than it was made for."""
        if bottleneck.fingerprint != self.bottleneck:
            raise BottleneckError(self._refusal(bottleneck, "was made for"))
        if not self._fits(bottleneck, len(bottleneck.need_training())):
            raise BottleneckError(
                f"eraser {self.hash[:16]} doesn't fit the bottleneck that it names: use the one made with it"
            )
        told = ("via", "forget", "rows", "masked", "keys_saw_them", "answer")
        note = {"hash": self.hash, **{key: self.edit[key] for key in told}}
        training = bottleneck.need_training()
        return replace(
            self._put(bottleneck, self.new_entries, self.new_states, self.edit["class_rows"][1]),
            training=training.without(self.positions),
            history=(*bottleneck.history, note),
            report={**bottleneck.report, "inputs": {}} if "inputs" in bottleneck.report else bottleneck.report,
        )

    def effect(self, before: Bottleneck, after: Bottleneck) -> dict[str, float]:
        """What it did on training rows alone: share of forgotten rows still answered right, and of others before and after.

        Of many others, 2,048 are asked.
        """

        def right(bottleneck: Bottleneck, rows: TrainingRows) -> float:
            ids = bottleneck.selector.reselect(rows.features, rows.ids)
            return float((bottleneck.answer_ids(ids, device="cpu").targets == rows.targets).mean())

        retained = after.need_training()
        some = retained.take(np.unique(np.linspace(0, len(retained) - 1, min(len(retained), 2048)).astype(np.int64)))
        return {
            "forgotten_right": right(after, self.rows),
            "retained_before": right(before, some),
            "retained_after": right(after, some),
        }

    def undo(self, bottleneck: Bottleneck) -> Bottleneck:
        """The bottleneck as it was, bit for bit.

        Raises BottleneckError unless this edit is the last that was applied to it, and when the result isn't what the
        edit was made on.
        """
        hashes = [edit["hash"] for edit in bottleneck.history]
        if self.hash not in hashes:
            raise BottleneckError(self._refusal(bottleneck, "can be taken back from"))
        if hashes[-1] != self.hash:
            later = len(hashes) - 1 - hashes.index(self.hash)
            raise BottleneckError(
                f"{number_of(later, 'later edit')} must be undone first: the last one is {hashes[-1][:16]}, this eraser is {self.hash[:16]}"
            )
        training = bottleneck.need_training()
        changed = f"undoing edit {self.hash[:16]} doesn't give back the bottleneck {self.bottleneck[:16]}: one of the two was changed since"
        if not self._fits(bottleneck, len(training) + len(self.positions)):
            raise BottleneckError(changed)
        before = replace(
            self._put(bottleneck, self.old_entries, self.old_states, self.edit["class_rows"][0]),
            training=training.with_rows(self.positions, self.rows),
            history=bottleneck.history[:-1],
            report={**bottleneck.report, "inputs": self.edit.get("inputs", {})}
            if "inputs" in bottleneck.report
            else bottleneck.report,
        )
        if before.fingerprint != self.bottleneck:
            raise BottleneckError(changed)
        return before

    def check(self) -> None:
        """Raise ValueError unless the parts fit together."""
        pairs, rows, classes = len(self.pairs), len(self.positions), self.old_entries.shape[-1]
        _, codebooks, top = self.source.ids.shape
        values = np.int32 if self.old_entries.dtype.kind == "i" else np.float32
        expected: dict[str, tuple[Any, tuple[int, ...]]] = {
            "pairs": (np.int64, (pairs,)),
            "old_entries": (values, (pairs, classes)),
            "new_entries": (values, (pairs, classes)),
            "old_states": (np.uint8, (pairs,)),
            "new_states": (np.uint8, (pairs,)),
            "positions": (np.int64, (rows,)),
            "salt": (np.uint8, (32,)),
        }
        check_arrays({name: getattr(self, name) for name in _ARRAYS}, expected)
        check_arrays(self.source.arrays(), self.source.expected(self.source.features.shape[-1], codebooks, top))
        if len(self.source) != rows:
            raise ValueError(f"{rows} positions of {len(self.source)} rows")
        of = self.edit["of_pairs"]
        for name, numbers, limit in (("pairs", self.pairs, of), ("positions", self.positions, 1 << 53)):
            if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < limit and (np.diff(numbers) > 0).all()):
                raise ValueError(f"{name} that aren't numbers below {limit} in rising order")
        if not codebooks or of % codebooks or self.edit["rows"] != rows or not of:
            raise ValueError(f"an edit of {of} pairs and {self.edit['rows']} rows, of which {rows} are there")

    def _fits(self, bottleneck: Bottleneck, rows: int) -> bool:
        """Whether the arrays can be this bottleneck's of so many training rows, whatever fingerprint they name."""
        selector, training, classes = bottleneck.selector, bottleneck.need_training(), len(bottleneck.classes)
        per_class = [classes if bottleneck.counted else None] * 2
        return (
            self.edit["of_pairs"] == selector.states.size
            and self.old_entries.shape[1] == classes
            and self.old_entries.dtype == bottleneck.entries.dtype
            and [one if one is None else len(one) for one in self.edit["class_rows"]] == per_class
            and (not len(self.positions) or int(self.positions[-1]) < rows)
            and self.source.features.shape[1:] == training.features.shape[1:]
            and self.source.ids.shape[1:] == training.ids.shape[1:]
        )

    def _put(self, bottleneck: Bottleneck, entries: NDArray, states: NDArray, class_rows: Any) -> Bottleneck:
        table, state = bottleneck.entries.copy(), bottleneck.selector.states.copy()
        table.reshape(-1, table.shape[2])[self.pairs] = entries
        bottleneck = replace(bottleneck, settings={**bottleneck.settings, "class_rows": class_rows})
        if not len(states) or (state.reshape(-1)[self.pairs] == states).all():
            return replace(bottleneck, entries=table)
        state.reshape(-1)[self.pairs] = states
        return replace(bottleneck, entries=table, selector=bottleneck.selector.with_states(state))

    def _refusal(self, bottleneck: Bottleneck, what: str) -> str:
        hashes = [edit["hash"] for edit in bottleneck.history]
        if self.hash in hashes and what.startswith("was"):
            return f"edit {self.hash[:16]} is applied already: undo it first"
        if bottleneck.fingerprint == self.bottleneck:
            return f"edit {self.hash[:16]} isn't applied to this bottleneck, or is undone already"
        return (
            f"eraser {self.hash[:16]} belongs to another bottleneck or another edit (it {what} {self.bottleneck[:16]}"
            f"{'' if what.startswith('was') else ' after its edit'}, this is {bottleneck.fingerprint[:16]}): use the one made with this folder"
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `eraser.safetensors`, `report.json` and a card."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            self.write(staged)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write the files into an empty folder."""
        write_arrays(folder / ERASER_FILE, self._arrays())
        write_table(folder / "report.json", self.content)
        replace_bytes(folder / "README.md", eraser_card(self.content).encode())

    @property
    def content(self) -> dict[str, Any]:
        """What `report.json` says of it, without its arrays."""
        head = {"format": _FORMAT, "hash": self.hash, "bottleneck": self.bottleneck, "previous": self.previous}
        return {**head, "edit": dict(self.edit), **self.report}

    @classmethod
    def load(cls, folder: str | Path) -> "Eraser":
        """Read an eraser's folder, or a repository of it on the hub.

        Raises BottleneckError for anything else, and for a damaged one.
        """
        folder = located(folder, BottleneckError)
        report = read_json(folder / "report.json")
        if report.get("format") != _FORMAT:
            raise BottleneckError(f"{folder} isn't an eraser's folder: name one that `surgery unlearn` wrote")
        take_checksum(folder / "report.json", report)
        arrays, _ = read_arrays(folder / ERASER_FILE)  # the hash below tells too, also of files without a checksum
        try:
            rows = TrainingRows(
                **{name.removeprefix("rows."): array for name, array in arrays.items() if name.startswith("rows.")}
            )
            conform(report, EraserReport)
            head = {key: report.pop(key) for key in ("format", "hash", "bottleneck", "previous", "edit")}
            eraser = cls(
                **{name: arrays[name] for name in _ARRAYS},
                source=rows,
                bottleneck=head["bottleneck"],
                previous=head["previous"],
                edit=head["edit"],
                report=report,
                loaded=True,
            )
            eraser.check()
            changed = eraser.hash != head["hash"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BottleneckError(
                f"{folder} is damaged ({error!r}): use the copy that was made with the edit"
            ) from None
        if changed:
            raise BottleneckError(
                f"{folder} was changed since it was written: use the copy that was made with the edit"
            )
        return eraser

    def _arrays(self) -> dict[str, NDArray]:
        own = {name: getattr(self, name) for name in _ARRAYS}
        return own | {f"rows.{name}": array for name, array in self.rows.arrays().items()}
