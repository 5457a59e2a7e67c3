"""Bottlenecks and their edits in plain words: what cards, reports and the command line say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from surgery.reporting.plural import number_of
from surgery.unlearning.key_selection import MASKS
from surgery.unlearning.training_rows import TrainingRows

_PLACED = {"kmeans": "k-means", "ema": "moving averages", "sample": "drawing rows"}
_MOST = 30  # classes named


@dataclass(frozen=True)
class Facts:
    """What can be told of a bottleneck without its arrays.

    Attributes:
        pairs: how many (codebook, key) pairs are open, closed and silent.
        training_rows: how many of each class it remembers; None without its training rows.
        placed_by: by what, and by which rows, its keys were placed.
        history: its edits, oldest first.
        version: of the program that fitted it; empty where that isn't known.
    """

    codebooks: int
    keys: int
    key_dim: int
    width: int
    pairs: Mapping[str, int]
    classes: Sequence[int | str]
    training_rows: Sequence[int] | None
    placed_by: str
    settings: Mapping[str, Any]
    encoder: Mapping[str, Any] | None
    history: Sequence[Mapping[str, Any]]
    version: str

    @property
    def masked(self) -> int:
        """Pairs that don't answer."""
        return self.pairs["closed"] + self.pairs["silent"]

    @property
    def rows(self) -> int | None:
        """Training rows of all classes."""
        return None if self.training_rows is None else sum(self.training_rows)

    @property
    def promises(self) -> list[str]:
        """What its edits keep and what they don't, one sentence or two each."""
        return promises(self.history, counted=self.settings["values"] == "counts")

    @property
    def made(self) -> list[str]:
        """Its sizes, its encoder and rows, its keys and values; a line each."""
        encoder, rows = self.encoder, self.rows
        source = f"{encoder['source']} ({encoder['kind']}, {encoder['pooling']})" if encoder else ""
        total = (
            number_of(rows, "training row") if rows else "without its training rows: it answers, but can't be edited"
        )
        return [
            f"{number_of(self.codebooks, 'codebook')} of {self.keys:,} keys in {number_of(self.key_dim, 'dimension')}, "
            f"{self.masked:,} of {self.codebooks * self.keys:,} pairs masked",
            f"encoder {source or 'none: fitted on features'}, {self.width:,} features a row; {total}",
            f"keys placed by {self.placed_by}; values {values_how(self.settings)}; seed {self.settings['seed']}",
        ]

    @property
    def edits(self) -> list[str]:
        """Its edits, oldest first, and what they keep and what they don't."""
        return [*(f"edit {n}: {edit_line(edit)}" for n, edit in enumerate(self.history, 1)), *self.promises]

    def content(self) -> dict[str, Any]:
        """As JSON, but for the version."""
        return {key: value for key, value in asdict(self).items() if key != "version"}


def what(edit: Mapping[str, Any]) -> str:
    """What an edit forgets: its classes, or how many single rows."""
    if edit["forget"]:
        return listed(edit["forget"])
    return number_of(edit["rows"], "single row")


def what_all(history: Sequence[Mapping[str, Any]]) -> str:
    """What edits forgot, in one line."""
    parts = [
        ", ".join(map(str, edit["forget"])) if edit["forget"] else number_of(edit["rows"], "single row")
        for edit in history
    ]
    return "; ".join(parts) or "nothing"


def edit_line(edit: Mapping[str, Any]) -> str:
    """An edit in plain words; `edit` is an eraser's, or a bottleneck's note of it."""
    return what(edit) + edit_end(edit)


def edit_end(edit: Mapping[str, Any]) -> str:
    """What `edit_line` says after what was forgotten."""
    rows = f" ({number_of(edit['rows'], 'row')})" if edit["forget"] else ""
    return f"{rows}, forgotten {edit_how(edit)} (edit `{edit['hash'][:16]}`)"


def edit_how(edit: Mapping[str, Any]) -> str:
    """By which means."""
    if edit["via"] in MASKS:
        then = "the next-nearest key answers" if edit["answer"] == "next" else "their codebooks drop out"
        return f"by masking {number_of(edit['masked'], 'pair')}, for which {then}"
    if edit["via"] == "refit":
        return "by fitting the values anew without these rows"
    return "by taking these rows out of the counts"


def promises(
    history: Sequence[Mapping[str, Any]], *, counted: bool = False, first: bool = True, identical: bool | None = None
) -> list[str]:
    """What edits keep and what they don't, one sentence or two each, for cards, reports and the command line.

    Args:
        counted: whether values are counted.
        first: whether no edit went before these; otherwise nothing is called exact.
        identical: whether values were found equal to refitted ones; None where nobody looked, and the procedure says it.
    """
    sentences = []
    masks = [edit for edit in history if edit["via"] in MASKS]
    # A refit makes all values anew from the rows that are left, whatever masks left in them before.
    kept = history[max((number for number, edit in enumerate(history, 1) if edit["via"] == "refit"), default=0) :]
    holding = [edit for edit in kept if edit["via"] in MASKS]
    if any(edit["masked"] for edit in masks):
        sentences.append(
            "A mask by itself betrays membership: whoever holds the folder sees which keys are closed, and rows nearest to "
            "closed keys were probably forgotten. Where that matters use refit, or counts with keys from other rows."
        )
    if any(edit["masked"] for edit in holding):
        sentences.append(
            "The values of open keys keep what the forgotten rows taught them"
            + ("; being counts, they give it away exactly to who holds the remaining rows too." if counted else ".")
        )
    if any(not edit["masked"] for edit in holding):
        sentences.append(
            "No key needed masking: the rows are gone from the folder, but its values hold all of them still."
        )
    if saw := sum(edit["keys_saw_them"] for edit in history):
        sentences.append(
            f"The keys were placed by {saw:,} of the forgotten rows too: this is not exact unlearning, and some of the rows "
            "can be rebuilt from their keys. To give the folder away, fit with keys from other rows."
        )
    elif first and history and not masks and identical is not False:
        sentences.append(
            "Exact: the keys were placed by other rows, and the "
            + (
                "counts are, bit for bit, those without the forgotten rows."
                if all(edit["via"] == "counts" for edit in history)
                else "values are those that fitting without the forgotten rows gives."
            )
        )
    if identical is False and not masks:
        sentences.append("Not exact: the values differ from those refitted without the forgotten rows.")
    return sentences


def listed(classes: Sequence[Any]) -> str:
    """Class names in one line."""
    shown = ", ".join(" ".join(str(name).split()) for name in classes[:_MOST])
    return shown + (f" and {len(classes) - _MOST:,} more" if len(classes) > _MOST else "")


def values_how(settings: Mapping[str, Any]) -> str:
    """How values were fitted."""
    if settings["values"] == "counts":
        return "in closed form from the integer counts of classes at each key"
    sgd = settings["sgd"]
    return f"learnt by SGD (rate {sgd['rate']:g}, {sgd['epochs']} epochs, batches of {sgd['batch']}, label smoothing {sgd['smoothing']:g})"


def placed_by(settings: Mapping[str, Any], training: TrainingRows | None) -> str:
    """By what, and by which rows, the keys were placed."""
    own = settings["keys_from"] == "training rows"
    how = f"{_PLACED[settings['key_init']]} on {'the training rows' if own else 'other rows'}"
    if training is None or own:
        return how
    shared = training.saw(np.arange(len(training)))
    return f"{how} ({len(training.placed):,}, of which {shared or 'none'} {'are' if shared != 1 else 'is'} in training too)"
