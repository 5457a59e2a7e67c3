"""Recipes for tuning with forward passes, and the numbers that one comes to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from surgery.errors import OptionError
from surgery.mezo.noise import KINDS

OBJECTIVES = ("loss", "accuracy", "f1")
SCHEDULES = ("linear", "constant")
# Called with a `surgery.checkpoints.models.Model` and a batch of examples; a number that is to become small.
Objective = Callable[[Any, Sequence[Any]], float]


@dataclass(frozen=True)
class MezoRecipe:
    """Recipe for MeZO. Raises OptionError for a value out of its range.

    Attributes:
        steps: each takes `directions` forward passes of twice `batch_size` examples.
        directions: central differences a step, whose movements are averaged.
        accumulate: pieces that a step's batch is split into, to save memory.
        noise: `rademacher` or `gaussian`.
        rate: learning rate; None probes it, and `eps`, at the base.
        eps: by how much weights are moved to see what it does.
        schedule: `linear`, falling to zero, or `constant`.
        warmup: the share of the steps over which the rate rises.
        momentum: the share of the last movement that goes into the next.
        probes: directions that rate and eps are probed by, each on two batches.
        evaluations: how often dev examples are scored, where there are some.
    """

    steps: int = 1000
    batch_size: int = 16
    directions: int = 1
    accumulate: int = 1
    noise: str = "rademacher"
    rate: float | None = None
    eps: float | None = None
    schedule: str = "linear"
    warmup: float = 0.0
    momentum: float = 0.0
    probes: int = 14
    evaluations: int = 10

    def __post_init__(self) -> None:
        for name, value, names in (("noise", self.noise, KINDS), ("schedule", self.schedule, SCHEDULES)):
            if value not in names:
                raise OptionError(f"`{name}` {value} isn't one of {', '.join(names)}")
        for name in ("steps", "batch_size", "directions", "accumulate", "rate", "eps", "probes", "evaluations"):
            if (number := getattr(self, name)) is not None and not number > 0:
                raise OptionError(f"`{name}` must be above 0, not {number}")
        for name in ("momentum", "warmup"):
            if not 0 <= (number := getattr(self, name)) < 1:
                raise OptionError(f"`{name}` must be 0 or more and below 1, not {number}")
        if self.accumulate > self.batch_size:
            raise OptionError(
                f"`accumulate` {self.accumulate} leaves pieces smaller than one example of a batch of {self.batch_size}"
            )


class Pace(NamedTuple):
    """Peak learning rate, eps, number of steps, share of them over which the rate rises, and whether it falls then."""

    rate: float
    eps: float
    steps: int
    warmup: float = 0.0
    falls: bool = True

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 to steps - 1."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (self.steps - step) / (self.steps - rising) if self.falls else self.rate
