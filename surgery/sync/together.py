"""Training loops of this project over several workers: which part of a batch is whose, what is exchanged, and the state to go on from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.errors import OptionError
from surgery.locks import hold_too
from surgery.resuming import resumable
from surgery.sync.planning import plan
from surgery.sync.qsr import QSR
from surgery.sync.schedule import KINDS, Schedule
from surgery.sync.workers import Workers

_SAVES = 50  # of the state, over a training
_EVERY_STEP = ("data-parallel", "sharded")


@dataclass(frozen=True)
class SyncRecipe:
    """How workers share a training. Raises OptionError for a value out of its range.

    Attributes:
        kind: a `Schedule`'s; or `data-parallel`: gradients are added up at every step; or `sharded`: so they are, and weights,
            gradients and the optimizer's state are split over the workers (`surgery.sync.sharding`).
        alpha, h_base, h_max: a `Schedule`'s. budget: in place of alpha, or of a constant H, share of data parallel's rounds.
    """

    kind: str = "data-parallel"
    alpha: float | None = None
    h_base: int = 4
    h_max: int | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, *_EVERY_STEP):
            raise OptionError(f"`sync` {self.kind} isn't one of {', '.join(KINDS)}")
        if self.kind in _EVERY_STEP:
            given = (self.alpha, self.budget, self.h_max) != (None, None, None) or self.h_base != SyncRecipe.h_base
            if given:
                raise OptionError("`alpha`, `budget`, `h` and `h_max` go with `sync`: name a schedule, such as qsr")
            return
        if self.alpha is not None and self.budget is not None:
            raise OptionError("`alpha` and `budget` are two ways to say one thing: give one of them")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise OptionError(
                f"`budget` {self.budget} isn't a share of data parallel's bytes: give one above 0, up to 1"
            )
        if self.budget is None:
            Schedule(self.kind, self.alpha, self.h_base, self.h_max, switch=0 if self.kind == "post-local" else None)

    def schedule(self, rates: Sequence[float], warmup: int) -> Schedule:
        """The schedule for a training with these rates, which rise for `warmup` steps."""
        if self.kind in _EVERY_STEP:
            return Schedule("constant", h_base=1, steps=len(rates))
        options: dict[str, Any] = {} if self.alpha is None else {"alpha": self.alpha}
        options |= {"kind": self.kind, "h_base": self.h_base, "h_max": self.h_max, "warmup": warmup}
        return plan(rates, budget=self.budget, **options).schedule


class Together:
    """A training loop's part in a run of several workers.

    Args:
        optimizer: of the loop, with the same parameters on every worker.
        rates: of every step; they rise over the first `warmup`.
        origins: as many tensors as parameters; what differs from them on no worker keeps their bits.
    """

    def __init__(
        self,
        workers: Workers,
        recipe: SyncRecipe,
        optimizer: torch.optim.Optimizer,
        rates: Sequence[float],
        *,
        warmup: int,
        origins: Sequence[Tensor] | None = None,
    ) -> None:
        self._share(workers, recipe, rates)
        self.sync = QSR(
            optimizer,
            schedule=recipe.schedule(rates, warmup),
            workers=workers,
            origins=None if self.data_parallel else origins,
        )

    def _share(self, workers: Workers, recipe: SyncRecipe, rates: Sequence[float]) -> None:
        self.workers, self.recipe, self.rates = workers, recipe, rates
        self.data_parallel = recipe.kind in _EVERY_STEP
        self._saved_every = max(1, len(rates) // _SAVES)

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self.sync.clock.step

    def mine(self, rows: Any) -> Any:
        """This worker's part of a batch's rows: as even as can be, and all of them somebody's."""
        return self.parts(rows)[self.workers.rank]

    def parts(self, rows: Any) -> list[Any]:
        """Every worker's part of a batch's rows."""
        if len(rows) < self.workers.count:
            raise OptionError(
                f"a batch of {len(rows)} has nothing for some of {self.workers.count} workers: raise `batch_size`, or start fewer"
            )
        return [rows[rank :: self.workers.count] for rank in range(self.workers.count)]

    def add_gradients(self, loss: float) -> float:
        """Add gradients and losses up over the workers, where they are data parallel; the loss of all."""
        if not self.data_parallel:
            return loss
        for parameter in self.sync.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return self.sync.add_up([p.grad for p in self.sync.parameters if p.grad is not None], loss)

    def after_step(self, loss: float | None = None) -> bool:
        """Count a step; whether all workers have the same weights now."""
        if self.data_parallel:
            self.sync.clock.tick(0.0)
            return True
        return self.sync.step(loss, rate=self.rates[self.sync.clock.step])

    def last_agreed(self) -> int:
        """The last step after which all workers had the same weights."""
        return self.sync.rounds[-1].step if self.sync.rounds else 0

    def due_to_save(self) -> bool:
        """Whether the state is to be saved after this step; every worker does so at the same steps."""
        return self.steps % self._saved_every == 0 and self.steps < len(self.rates)

    def file(self, folder: Path, step: int) -> Path:
        """Path of this worker's state after a step; the two latest are there at once."""
        return folder / _name(self.workers.me, step)

    def sweep(self, folder: Path, step: int) -> None:
        """Delete this worker's states but those of a step and of the one before it."""
        for old in states_in(folder).get(self.workers.me, [])[:-2]:
            if old < step:
                self.file(folder, old).unlink(missing_ok=True)

    def to_go_on_from(self, folder: Path) -> Path | None:
        """The state that this worker goes on from, of the same step for all; None where there is none.

        A worker that died while others went on takes over the state of the first of those, as a newcomer would. States of later
        steps, which not all came to, are deleted.
        """
        if self.workers.late:
            return None
        states = {number: list[int]() for number in self.workers.members} | states_in(folder)
        step = int(self.sync.gather([float(_step_of_all(states))])[0][0])  # after it, all have looked
        for later in states.get(self.workers.me, []):
            if later > step:
                self.file(folder, later).unlink(missing_ok=True)
        owners = sorted(number for number, steps in states.items() if step in steps)
        if not owners:
            return None
        owner = self.workers.me if self.workers.me in owners else owners[0]
        return folder / _name(owner, step)

    def finish(self) -> None:
        """Average for the last time, unless nothing was done since, and end this worker's part."""
        self.sync.finish()

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside weights and optimizer, as JSON."""
        return self.sync.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sync.restore(state)

    def content(self) -> dict[str, Any]:
        """What the report says of the workers, as JSON."""
        return {"recipe": asdict(self.recipe), **self.sync.report().content()}


def _name(worker: int, step: int) -> str:
    return f"worker-{worker}.{step}.safetensors"


def states_in(folder: Path) -> dict[int, list[int]]:
    """The steps of the states that each worker left, ascending."""
    found: dict[int, list[int]] = {}
    for file in folder.glob("worker-*.*.safetensors"):
        worker, _, step = file.name.removeprefix("worker-").removesuffix(".safetensors").partition(".")
        if worker.isdecimal() and step.isdecimal():
            found.setdefault(int(worker), []).append(int(step))
    return {worker: sorted(steps) for worker, steps in found.items()}


def _step_of_all(states: Mapping[int, Sequence[int]]) -> int:
    """The last step of which everyone has a state who was there to the end; 0 without one.

    Workers save at the same steps and keep two states each: whose last is older than the furthest one's two was dead by then.
    """
    furthest = max(states.values(), key=lambda steps: max(steps, default=0), default=[])
    oldest = furthest[-2] if len(furthest) > 1 else 0
    there = [set(steps) for steps in states.values() if max(steps, default=0) >= oldest]
    return max(set.intersection(*there), default=0) if there else 0


def shared_call(workers: Workers | None, recipe: SyncRecipe | None) -> dict[str, Any]:
    """What several workers add to what identifies a run: nothing for one process."""
    if workers is None:
        return {}
    return {"workers": workers.count, "sync": asdict(recipe or SyncRecipe())}


@contextmanager
def resumable_together(
    folder: str | Path | None,
    call: Mapping[str, Any],
    workers: Workers | None,
    *,
    packages: tuple[str, ...] = ("surgery",),
) -> Iterator[Path | None]:
    """`surgery.resuming.resumable` of one folder for all workers: the first one makes it ready, and all hold it."""
    if workers is None or folder is None:
        with resumable(folder, call, packages=packages) as state:
            yield state
        return
    if workers.first:
        with resumable(folder, call, packages=packages, shared=True) as state:
            workers.meet()
            yield state
        return
    workers.meet()
    with hold_too(Path(folder)):
        yield Path(folder).absolute()
