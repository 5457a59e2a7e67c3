"""Texts to learn: rows of prompts and answers, as a causal or masked language model is tuned on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from surgery.errors import OptionError, TaskError
from surgery.tasks.objectives import LOSSES
from surgery.tasks.rows import Row, Source, read_row, read_rows

NAME = "texts"


class _Spec(TypedDict):
    """`Texts.spec` as JSON."""

    name: Literal["texts"]
    loss: Literal["answer", "text"]
    max_length: int


@dataclass(frozen=True)
class Texts:
    """Rows of labelled text, of prompts with completions, or of messages, in place of a task with label words.

    Attributes:
        train, dev: the rows.
        loss: `answer` counts what is to be learnt alone (label, completion, the assistant's turns, or what a dialogue's
            `learn` says); `text` all of it.
        max_length: tokens at which a row is cut; one whose answer begins after that is refused.
    """

    train: tuple[Row, ...] = ()
    dev: tuple[Row, ...] = ()
    loss: str = "answer"
    max_length: int = 1024

    name = NAME
    metric = "likelihood"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise OptionError(f"`loss` {self.loss} isn't one of {', '.join(LOSSES)}")
        if self.max_length < 2:
            raise OptionError(f"`max_length` {self.max_length} must be 2 or more")

    @classmethod
    def load(
        cls,
        train: Source | Sequence[Row],
        dev: Source | Sequence[Row] | None = None,
        *,
        loss: str = "answer",
        max_length: int = 1024,
    ) -> "Texts":
        """From JSONL, CSV and other files, a dataset id, or rows in memory.

        Raises:
            TaskError, SelectionError: rows that can't be read, or none, naming file and line.
        """
        rows = [
            () if source is None else _rows(source, split) for source, split in ((train, "train"), (dev, "validation"))
        ]
        return cls(rows[0], rows[1], loss, max_length)

    @classmethod
    def from_spec(cls, spec: Any) -> "Texts":
        """The inverse of `spec`, without rows."""
        return cls(loss=spec["loss"], max_length=spec["max_length"])

    def spec(self) -> dict[str, Any]:
        """All but the rows, as JSON."""
        return dict(_Spec(name=NAME, loss=self.loss, max_length=self.max_length))  # type: ignore[typeddict-item]

    def need(self, split: str) -> tuple[Row, ...]:
        """The rows of a split; raises TaskError for none."""
        if not (rows := tuple(getattr(self, split))):
            raise TaskError(f"there are no {split} rows: give some")
        return rows

    def repeated(self, split: str) -> int:
        """How many of a split's rows have a prompt and an answer that training rows have."""
        seen = {(row.key, row.answers) for row in self.train}
        return sum((row.key, row.answers) in seen for row in getattr(self, split))


def _rows(source: Source | Sequence[Row], split: str) -> tuple[Row, ...]:
    if isinstance(source, str | Path):
        return tuple(read_rows(source, split=split))
    numbered: Iterable[tuple[int, Any]] = enumerate(source, 1)
    return tuple(row if isinstance(row, Row) else read_row(row, f"row {number}") for number, row in numbered)
