"""What a fit is asked for, checked as far as it can be before anything is encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.devices import pick_device
from surgery.errors import OptionError, TaskError
from surgery.unlearning.keys import KEY_METHODS, check_keys, check_width
from surgery.unlearning.values import Sgd

PROJECTIONS, VALUES = ("random", "segments"), ("sgd", "counts")


@dataclass(frozen=True)
class Settings:
    """Settings of `Bottleneck.fit_rows`, with its defaults; raises OptionError for one out of its range."""

    codebooks: int = 256
    keys: int = 256
    key_dim: int = 14
    top: int = 1
    projection: str = "random"
    key_init: str = "kmeans"
    values: str = "sgd"
    sgd: Sgd | None = None
    seed: int = 0
    device: str | torch.device | None = None

    def __post_init__(self) -> None:
        for name, number in (("codebooks", self.codebooks), ("key_dim", self.key_dim), ("top", self.top)):
            if number < 1:
                raise OptionError(f"`{name}` {number} must be at least 1")
        check_seed(self.seed)
        if self.top > self.keys:
            raise OptionError(f"`top` {self.top} is more than the {self.keys} keys of a codebook: lower it")
        for name, given, known in (
            ("values", self.values, VALUES),
            ("projection", self.projection, PROJECTIONS),
            ("key_init", self.key_init, KEY_METHODS),
        ):
            if given not in known:
                raise OptionError(f"`{name}` {given} isn't one of {', '.join(known)}")
        pick_device(self.device)

    @property
    def recipe(self) -> Sgd | None:
        """How values are learnt by SGD; None where they are counted."""
        return (self.sgd or Sgd()) if self.values == "sgd" else None

    def check_width(self, width: int) -> None:
        """Raise OptionError where a row has too few features."""
        check_width(width, self.codebooks, self.key_dim, self.projection)

    def check_rows(self, labels: Sequence[int | str] | None, placing: int) -> tuple[int | str, ...]:
        """The classes, sorted.

        Args:
            labels: of the training rows. `placing`: how many rows place the keys.

        Raises:
            TaskError: no labels, or of one class only. OptionError: more keys than rows to place them by.
        """
        if labels is None:
            raise TaskError("the training rows have no labels: name a file or column that has them")
        classes = tuple(sorted(set(labels)))
        if len(classes) < 2:
            raise TaskError(f"all training rows are of class {classes[0]!r}: two classes are needed at least")
        check_keys(self.keys, placing)
        return classes


def check_seed(seed: int) -> None:
    """Raise OptionError for a seed that numpy can't take."""
    if seed < 0:
        raise OptionError(f"`seed` {seed} must be at least 0")
