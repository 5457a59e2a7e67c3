"""Result: the one shape of what a measurement returns, so that each can be saved, loaded, read and shown in the same way."""

from abc import ABC, abstractmethod
from pathlib import Path
from textwrap import shorten
from typing import Any

from surgery.errors import MissingPackageError
from surgery.reporting.page import Table, Text, render

_LONGEST_REPR = 200
_ROWS_IN_A_NOTEBOOK = 200


class Shown(ABC):
    """Base of what is shown as a result is, and kept in another way, such as weights that are saved as a model.

    A subclass is a frozen dataclass, `@dataclass(frozen=True)`, that says what it found (`summary`, `table`). Its one-line
    `repr`, its display in a notebook and `to_pandas` follow from these.
    """

    @property
    @abstractmethod
    def summary(self) -> list[str]:
        """One to three sentences, the answer first."""

    @abstractmethod
    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Names of the columns, and rows whose cells are numbers, words or None."""

    def to_pandas(self) -> Any:
        """Return `table` as a pandas.DataFrame; raise MissingPackageError where pandas isn't installed."""
        try:
            import pandas
        except ImportError:
            raise MissingPackageError("pandas", "", "to_pandas()") from None
        columns, rows = self.table()
        return pandas.DataFrame(rows, columns=columns)

    def __init_subclass__(cls, **options: Any) -> None:
        """Set the one-line repr before `@dataclass` looks for one: it keeps what it finds, or else shows every field."""
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Shown.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name}: {shorten(self.summary[0], _LONGEST_REPR - len(name) - len('<: >'), placeholder=' ...')}>"

    def _repr_html_(self) -> str:
        columns, rows = self.table()
        shown, left = rows[:_ROWS_IN_A_NOTEBOOK], len(rows) - _ROWS_IN_A_NOTEBOOK
        more = [Text(f"{left:,} more rows are in table() and to_pandas().")] if left > 0 else []
        return render([*map(Text, self.summary), Table(type(self).__name__, columns, shown), *more])


class Result(Shown):
    """Base of every result: it is shown, saved and loaded in the same way, whichever method it comes from."""

    @abstractmethod
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder that `load` reads and return its path; the folder appears whole or not at all."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read what `save` wrote; raise the method's own error, naming the file, for anything else."""
