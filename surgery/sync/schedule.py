"""When to synchronise: the number of local steps of a round, by the learning rate at its first step.

After Gu, Lyu, Arora, Zhang and Huang, A Quadratic Synchronization Rule for Distributed Deep Learning (ICLR 2024), section 2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surgery.errors import OptionError

KINDS = ("qsr", "cubic", "constant", "post-local")
_POWERS = {"qsr": 2, "cubic": 3}
_SLACK = 1e-9  # by which a rate may rise through rounding


@dataclass(frozen=True)
class Schedule:
    """Rule for the length of rounds. Raises OptionError for a value out of its range.

    Attributes:
        kind: `qsr`, H = max(h_base, floor((alpha / rate)^2)); `cubic`, the same to the power of 3; `constant`, H = h_base;
            `post-local`, H = 1 before step `switch`, then h_base.
        alpha: of qsr and cubic; in the units of the rate.
        h_base: steps of a round during warm-up, and the fewest after it.
        h_max: the most steps of a round; None for no limit but the end of training.
        warmup: steps during which H is `h_base`; by default as long as the rate rises from step to step, and the first round.
        steps: of the whole training, after which the last round ends; None where that isn't known.
        switch: step from which post-local averages seldom.
    """

    kind: str = "qsr"
    alpha: float | None = None
    h_base: int = 4
    h_max: int | None = None
    warmup: int | None = None
    steps: int | None = None
    switch: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"`kind` {self.kind} isn't one of {', '.join(KINDS)}")
        if self.driven:
            if self.alpha is None:
                raise OptionError("`alpha` is missing: give one, or a `budget` from which it follows")
            if not 0 < self.alpha < math.inf:
                raise OptionError(
                    f"`alpha` must be above 0, not {self.alpha}: H = (alpha / rate)^{_POWERS[self.kind]} would never grow"
                )
        elif self.alpha is not None:
            raise OptionError(f"`alpha` goes with qsr and cubic, and `kind` is {self.kind}: leave it out")
        if self.switch is not None and self.kind != "post-local":
            raise OptionError(f"`switch` goes with post-local, and `kind` is {self.kind}: leave it out")
        for name, least in {"h_base": 1, "h_max": 1, "steps": 1, "warmup": 0, "switch": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"`{name}` must be {least} or more, not {value}")
        if self.h_max is not None and self.h_max < self.h_base:
            raise OptionError(f"`h_max` {self.h_max} is less than `h_base` {self.h_base}: raise it")
        if self.kind == "post-local" and self.switch is None:
            raise OptionError("`switch` is missing: give the step from which post-local averages seldom")

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Schedule":
        """Read the fields that a report holds; earlier ones name an alpha where none counts."""
        return cls(**{**content, "alpha": content.get("alpha") if content.get("kind") in _POWERS else None})

    @property
    def driven(self) -> bool:
        """Whether the learning rate decides the length of rounds."""
        return self.kind in _POWERS

    def length(self, step: int, rate: float, previous: float | None) -> int:
        """Steps of the round that begins at a step.

        Args:
            step: counted from 0. `rate`: of that step. `previous`: of the step before; None before the first.

        Raises:
            OptionError: a rate of 0, at which a round would have no end, where neither `h_max` nor `steps` gives one.
        """
        found: float = self.h_base
        if self.driven and not self._warming(step, rate, previous):
            assert self.alpha is not None
            grown = (self.alpha / rate) ** _POWERS[self.kind] if rate > 0 else math.inf
            found = max(self.h_base, grown)
        elif self.kind == "post-local":
            assert self.switch is not None
            found = self.h_base if step >= self.switch else 1
        left = math.inf if self.steps is None else self.steps - step
        found = min(found, left, self.h_max or math.inf)
        if math.isinf(found):
            raise OptionError(
                f"the rate is {rate:g} at step {step + 1}, where a round would have no end: give `h_max`, or `steps` of the whole training"
            )
        return max(1, math.floor(found + 1e-9))

    def check_fall(self, step: int, rate: float, previous: float, fallen: bool) -> None:
        """Refuse a rate that rises once it has fallen (`fallen`): a long round would begin where weights move most.

        Raises OptionError, naming the step.
        """
        if self.driven and fallen and self.warmup is None and rises(previous, rate):
            raise OptionError(
                f"the learning rate rises again at step {step + 1}, from {previous:g} to {rate:g}, after it had fallen: H follows a rate that falls; use a constant H, or give `warmup`"
            )

    def _warming(self, step: int, rate: float, previous: float | None) -> bool:
        if self.warmup is not None:
            return step < self.warmup
        return previous is None or rises(previous, rate)


def rises(before: float, after: float) -> bool:
    """Whether a rate rises, by more than rounding."""
    return after > before * (1 + _SLACK)


def falls(before: float, after: float) -> bool:
    """Whether a rate falls, by more than rounding."""
    return after < before * (1 - _SLACK)


class Clock:
    """The rounds of a run as it goes: `tick` once a step says where one ends. The same as `lengths`, without the rates to come.

    Attributes:
        step: steps made. `rounds`: rounds ended. `length`: of the round under way, 0 between two. `left`: its steps to come.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.step = self.rounds = self.left = self.length = 0
        self.previous: float | None = None
        self.fallen = False

    def tick(self, rate: float) -> bool:
        """Count a step made at a rate; whether its round ends with it."""
        if self.previous is not None:
            self.schedule.check_fall(self.step, rate, self.previous, self.fallen)
            self.fallen = self.fallen or falls(self.previous, rate)
        if not self.left:
            self.left = self.length = self.schedule.length(self.step, rate, self.previous)
        self.previous = rate
        self.step += 1
        self.left -= 1
        if self.left:
            return False
        self.end_round()
        return True

    def end_round(self) -> None:
        """End the round under way, whole or not."""
        self.rounds += 1
        self.left = self.length = 0

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, as JSON."""
        names = ("step", "rounds", "left", "length", "previous", "fallen")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)


def lengths(schedule: Schedule, rates: Sequence[float]) -> list[int]:
    """Steps of every round of a training with these rates, one a step; they add up to the number of steps.

    Raises OptionError for rates that aren't numbers of 0 or more, or that rise again once they have fallen.
    """
    if not len(rates):
        raise OptionError("there are no steps to plan: give a rate for each")
    given = np.asarray(rates, float)
    if not bool(np.all(np.isfinite(given) & (given >= 0))):
        raise OptionError("a learning rate is negative or not a number: give rates of 0 or more")
    before, after = given[:-1], given[1:]
    fallen = np.logical_or.accumulate(np.append(False, after < before * (1 - _SLACK)))[:-1]
    late = np.flatnonzero(fallen & (after > before * (1 + _SLACK)))
    if len(late):
        schedule.check_fall(int(late[0]) + 1, float(after[late[0]]), float(before[late[0]]), True)
    if schedule.driven and not max(rates) > 0:
        raise OptionError("the learning rate is 0 at every step: nothing is trained, and H has nothing to follow")
    return _lengths(schedule, rates)


def _lengths(schedule: Schedule, rates: Sequence[float]) -> list[int]:
    schedule, found, step = replace(schedule, steps=len(rates)), [], 0
    while step < len(rates):
        found.append(schedule.length(step, rates[step], rates[step - 1] if step else None))
        step += found[-1]
    return found


def fitted(schedule: Schedule, rates: Sequence[float], budget: float) -> Schedule:
    """The schedule that averages most often within a budget: with the smallest alpha, or the smallest constant H, that fits.

    Args:
        schedule: its kind, and all of it but what is looked for.
        budget: most rounds, as a share of the number of steps: of data parallel's, which averages at every step.

    Raises:
        OptionError: a budget out of its range, or one that no alpha meets, as warm-up alone takes more.
    """
    if not 0 < budget <= 1:
        raise OptionError(f"`budget` {budget} isn't a share of data parallel's bytes: give one above 0, up to 1")
    most = budget * len(rates) + 1e-9
    if not schedule.driven:
        found = _least(lambda h: replace(schedule, h_base=round(h), h_max=None), rates, most, whole=True)
        if schedule.h_max is not None and found.h_base > schedule.h_max:
            raise OptionError(
                f"`budget` {budget} takes H {found.h_base}, and `h_max` is {schedule.h_max}: raise one of them"
            )
        return replace(found, h_max=schedule.h_max)
    peak = max(rates)
    if not peak > 0:
        raise OptionError("the learning rate is 0 at every step: nothing is trained, and H has nothing to follow")
    return _least(lambda ratio: replace(schedule, alpha=peak * ratio), rates, most, whole=False)


def _least(make: Callable[[float], Schedule], rates: Sequence[float], most: float, *, whole: bool) -> Schedule:
    """The schedule of the smallest number from which on rounds fit, by bisection."""
    low, high = (0.0, float(len(rates))) if whole else (1e-3, 1e9)
    fewest = len(lengths(make(high), rates))
    if fewest > most:
        raise OptionError(
            f"`budget` allows {math.floor(most):,} rounds, and {fewest:,} are the fewest: raise it, or `h_base`, or average seldom from an earlier step"
        )
    while (high - low > 0.5 and high > low + 1) if whole else high > low * (1 + 1e-6):
        middle = math.floor((low + high) / 2) if whole else math.sqrt(low * high)
        fits = len(_lengths(make(middle), rates)) <= most
        low, high = (low, middle) if fits else (middle, high)
    return make(high)
