"""Rankings of (codebook, key) pairs: which of them carry what is to be forgotten.

To add one, write a function below and name it in `RANKINGS`: `unlearn`, its help and every report know it then. Arrays
bring their own arithmetic, so nothing is imported here, and the command line can read the names without waiting.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class ActivePairs(ABC):
    """The open pairs that rows to be forgotten select: three float32 arrays [pairs], in the order of pairs."""

    @property
    @abstractmethod
    def forget_rows(self) -> Any:
        """How many rows to be forgotten select each pair."""

    @property
    @abstractmethod
    def all_rows(self) -> Any:
        """How many of all training rows do."""

    @property
    @abstractmethod
    def votes(self) -> Any:
        """Sum of what each pair says for a forget row's own class, over the forget rows that select it."""


def influence(pairs: ActivePairs) -> Any:
    """Sum of what a pair says for the class over its forget rows, divided by one more than the other rows that select it."""
    return pairs.votes / (pairs.all_rows - pairs.forget_rows + 1)


def count(pairs: ActivePairs) -> Any:
    """Number of forget rows that select a pair, as published (Shah et al. 2023, section 4)."""
    return pairs.forget_rows


def purity(pairs: ActivePairs) -> Any:
    """Share of forget rows among all rows that select a pair."""
    return pairs.forget_rows / pairs.all_rows


# A score for each active pair, the higher the sooner it is masked; negative where a pair speaks against the class.
Ranking = Callable[[ActivePairs], Any]
RANKINGS: dict[str, Ranking] = {"influence": influence, "count": count, "purity": purity}
ANSWERS = ("next", "drop")


def rankings_help() -> str:
    """Every ranking's name, in one line."""
    *others, last = RANKINGS
    return f"{', '.join(others)} or {last}"
