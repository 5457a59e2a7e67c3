"""Recipes for fine-tuning, and the numbers that one comes to for a model, its weights and its examples."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from surgery.checkpoints.structure import Kind
from surgery.errors import OptionError

OPTIMIZERS = ("sgd-l1", "sgd", "adamw", "adamw-l1")
# Set so that trec gets the pull that did best on its held-out training examples; subj and cr were scored on test only.
_PULL = 11


@dataclass(frozen=True)
class Recipe:
    """Recipe for fine-tuning. Raises OptionError for a value out of its range.

    Attributes:
        rate: peak learning rate; None picks 1e-4 for AdamW, for SGD .05 on sentence encoders and .004 on language models.
        l1: strength of the pull: after each step every difference from the base shrinks by rate * l1, down to zero; None
            picks 11 times the root mean square of the gradient at the base (its norm counts up to twice `clip`): then a
            weight stays put unless its gradient is about that much larger than most. Made for SGD: give your own for adamw-l1.
        steps: optimiser steps; None picks one pass over the examples, within 150 and 1,000.
        batch_size: examples a step; `accumulate` splits them into that many pieces of memory.
        warmup: the share of the steps over which the rate rises; it then falls linearly to zero.
        clip: the longest gradient that is used as it is.
        patience: with dev examples, stop after this many evaluations without a better one; the best weights are kept.
    """

    optimizer: str = "sgd-l1"
    rate: float | None = None
    l1: float | None = None
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    momentum: float = 0.9
    warmup: float = 0.1
    clip: float = 5.0
    evaluations: int = 10
    patience: int = 3

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"`optimizer` {self.optimizer} isn't one of {', '.join(OPTIMIZERS)}")
        positive = {
            "rate": self.rate,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "clip": self.clip,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise OptionError(f"`{name}` must be above 0, not {value}")
        if self.l1 is not None and not self.l1 >= 0:
            raise OptionError(f"`l1` must be 0 or more, not {self.l1}")
        if self.accumulate > self.batch_size:
            raise OptionError(
                f"`accumulate` {self.accumulate} leaves pieces smaller than one example of a batch of {self.batch_size}"
            )

    @property
    def needs_gradient_norm(self) -> bool:
        """Whether `pace` looks at the base's gradient norm."""
        return self.l1 is None and self.optimizer.endswith("-l1")

    def pace(self, kind: Kind, movable: int, examples: int, gradient_norm: float) -> "Pace":
        """The numbers in force for a kind of model, a number of weights and of examples, and the base's gradient norm."""
        sgd = self.optimizer.startswith("sgd")
        rate = (0.05 if kind == "encoder" else 0.004) if sgd else 1e-4
        l1 = _PULL * min(gradient_norm, 2 * self.clip) / math.sqrt(movable) if self.l1 is None else self.l1
        steps = min(1000, max(150, math.ceil(examples / self.batch_size)))
        return Pace(self.rate or rate, l1 if self.optimizer.endswith("-l1") else 0.0, self.steps or steps, self.warmup)


class Pace(NamedTuple):
    """Peak learning rate, strength of the pull, number of steps, and the share of them over which the rate rises."""

    rate: float
    l1: float
    steps: int
    warmup: float

    @property
    def rising(self) -> int:
        """Number of steps over which the rate rises."""
        return max(1, round(self.warmup * self.steps))

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 to steps - 1."""
        return self.rate * min((step + 1) / self.rising, (self.steps - step) / max(1, self.steps - self.rising))
