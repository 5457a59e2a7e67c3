"""QSR: local steps on each worker, and averages of the weights at the ends of rounds whose length follows the learning rate.

After Gu, Lyu, Arora, Zhang and Huang, A Quadratic Synchronization Rule for Distributed Deep Learning (ICLR 2024), algorithm 2.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgery.errors import OptionError
from surgery.sync.averaging import BUCKET, Averager, Bucket, flat
from surgery.sync.batchnorm import estimate_anew, has_statistics
from surgery.sync.errors import LeftOutError
from surgery.sync.planning import driving_rate
from surgery.sync.report import Round, SyncReport
from surgery.sync.schedule import Clock, Schedule
from surgery.sync.workers import WorkerLostError, Workers

_STEP, _FINISH = 0.0, 1.0


class QSR:
    """Averages an optimizer's parameters over the workers that torchrun started.

    Call `step` after each step of the optimizer, on every worker equally often, and `finish` at the end. A worker that dies or
    stops is left out, and the others go on from their own progress with the same weights, bit for bit.

    Args:
        optimizer: whose parameters are averaged; the same on every worker at the start.
        alpha, h_base, h_max, warmup, steps: of the `Schedule`, or give that as `schedule`.
        model: whose buffers of numbers are averaged along, at each round.
        moments: whether the optimizer's moments are averaged too; the paper leaves each worker its own.
        origins: as many tensors as parameters, the same on every worker; what differs from them on no worker keeps their bits.
        drive: the parameter group whose rate drives H; by default whichever is largest.
        workers: by default those that torchrun started, or a latecomer's.
        bucket: bytes that are averaged at once, and all the memory that averaging takes.
        timeout: seconds without a sign after which a worker that stopped is left out.

    Raises:
        OptionError: no launcher, parameters that differ between workers or are shards, or a value out of its range.

    Attributes:
        clock: steps and rounds so far. `workers`: who takes part.
    """

    # Long: all that a run of rounds is made of.
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        alpha: float | None = None,
        h_base: int = 4,
        h_max: int | None = None,
        *,
        warmup: int | None = None,
        steps: int | None = None,
        schedule: Schedule | None = None,
        model: nn.Module | None = None,
        moments: bool = False,
        origins: Sequence[Tensor] | None = None,
        drive: int | None = None,
        workers: Workers | None = None,
        bucket: int = BUCKET,
        timeout: float = 60.0,
    ) -> None:
        if schedule is None:
            schedule = Schedule("qsr", alpha, h_base, h_max, warmup, steps)
        self.optimizer, self.clock, self.drive, self.moments = optimizer, Clock(schedule), drive, moments
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in self.parameters:
            flat(parameter)  # refused before workers meet
        driving_rate(self._rates(), drive)
        self._origins, self._buffers = origins, [] if model is None else _buffers(model)
        if origins is not None and (moments or self._buffers):
            raise OptionError("`origins` go with parameters alone: leave out `moments` and `model`")
        self._rate: float | None = None
        self.rounds: list[Round] = []
        self.workers = workers or Workers.launched(timeout=timeout)
        self.averager = Averager(self.workers, self._regroup_midway, bucket)
        self._world, self._admitted, self._phase = self.workers.count, 0, 0
        self._notes: list[dict[str, Any]] = []
        self._began, self._averaging = time.monotonic(), 0.0
        optimizer.register_step_post_hook(lambda *_: self._note_rate())
        if self.workers.late:
            self._take_over()
        else:
            self._check_same()

    def step(self, loss: Tensor | float | None = None, *, rate: float | None = None) -> bool:
        """Count a step of the optimizer, and average where a round ends with it; whether it did.

        Args:
            loss: of the step, for the report's curve.
            rate: of the step, where the optimizer's own can't be read, as in a captured graph.

        Raises:
            OptionError: a rate that rises late or is 0, or workers that made other numbers of steps.
            LeftOutError: the others went on without this worker.
        """
        if self.workers.asked_to_regroup():
            self._regroup(0)
        if rate is None:
            rate = self._rate if self._rate is not None else driving_rate(self._rates(), self.drive)
        due = self.clock.tick(rate)
        if due:
            self._end_round(_STEP, loss)
        return due

    def finish(self, model: nn.Module | None = None, batches: Iterable[Any] | None = None) -> SyncReport:
        """Average for the last time, unless nothing was done since, and end this worker's part.

        Args:
            model: whose buffers are averaged. BatchNorm's statistics are those of `batches`, if given, estimated anew with
                the averaged weights and then averaged over workers.
            batches: what `model` is called with: a batch, a tuple of arguments, or a table of them.

        Raises:
            OptionError: workers that made other numbers of steps.
        """
        if self.workers.asked_to_regroup():
            self._regroup(0)
        if self.clock.left:
            self.clock.end_round()
            self._end_round(_FINISH, None)
        else:
            self._check_headers(_FINISH, None)
        if model is not None:
            if batches is not None and has_statistics(model):
                estimate_anew(model, batches)
            before = self.workers.sent
            self._average(_buffers(model))
            if self.rounds:
                last = self.rounds[-1]
                self.rounds[-1] = last._replace(sent=last.sent + self.workers.sent - before)
        report = self.report()
        self.workers.leave()
        return report

    def add_up(self, tensors: Sequence[Tensor], loss: float) -> float:
        """Add gradients up over the workers, in place, as a round of one step; the sum of their losses, or this one's."""
        began, before = time.monotonic(), self.workers.sent
        if self.workers.asked_to_regroup():
            self._regroup(0)
        mean = self._check_headers(_STEP, loss)
        whole = loss if mean is None else mean * self.workers.count
        self._average(tensors, total=True)
        self.rounds.append(Round(self.clock.step + 1, self.workers.sent - before, whole, self.workers.count))
        self._admit()
        self._averaging += time.monotonic() - began
        return whole

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The same number of values of every worker, by place."""
        return self._together(values) or [list(values)]

    def report(self) -> SyncReport:
        """What was sent so far."""
        weights = sum(p.numel() for p in self.parameters)
        seconds = {"all": round(time.monotonic() - self._began, 3), "averaging": round(self._averaging, 3)}
        return SyncReport(
            self.clock.schedule, tuple(self.rounds), weights, self._world, tuple(self.workers.lost), seconds
        )

    def state(self) -> dict[str, Any]:
        """All that `restore` needs beside weights and optimizer, as JSON; each worker's is the same."""
        return {"clock": self.clock.state(), "rounds": [list(each) for each in self.rounds], "sent": self.workers.sent}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, in the middle of a round too."""
        self.clock.restore(state["clock"])
        self.rounds = [Round(*each) for each in state["rounds"]]
        self.workers.sent = state["sent"]

    def _end_round(self, kind: float, loss: Tensor | float | None) -> None:
        began, before = time.monotonic(), self.workers.sent
        mean = self._check_headers(kind, loss)
        self._average(self._averaged(), self._origins)
        self.rounds.append(Round(self.clock.step, self.workers.sent - before, mean, self.workers.count))
        if kind == _STEP:
            self._admit()
        self._averaging += time.monotonic() - began

    def _averaged(self) -> list[Tensor]:
        found: list[Tensor] = [*self.parameters, *self._buffers]
        if self.moments:
            for parameter in self.parameters:
                found += [
                    value
                    for _, value in sorted(self.optimizer.state.get(parameter, {}).items())
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                ]
        return found

    def _average(
        self, tensors: Sequence[Tensor], origins: Sequence[Tensor] | None = None, *, total: bool = False
    ) -> None:
        """Average, and know that everybody has."""
        self._together([0.0], self.averager.average(tensors, origins, total=total))

    def _together(self, values: Sequence[float], buckets: Sequence[Bucket] = ()) -> list[list[float]] | None:
        """End a phase with values of every worker; None where others ended it with one who died before this worker knew.

        Args:
            buckets: those of the phase, which this worker has written and another, whose collective broke, may lack.
        """
        found, broken = None, False
        while True:
            try:
                if broken and self._regroup(len(buckets)):
                    break
                if broken:
                    for _ in self.averager.even_out(buckets, self._written()):
                        pass
                found = self.workers.gather(values)
                break
            except WorkerLostError:
                broken = True
        self._phase += 1
        return found

    def _check_headers(self, kind: float, loss: Tensor | float | None) -> float | None:
        """Check that every worker is about to do the same; the mean of their losses, where they told one."""
        told = math.nan if loss is None else float(torch.as_tensor(loss).detach())
        found = self._together([kind, float(self.clock.step), told])
        if found is None:
            return None
        for place, header in enumerate(found):
            if header[:2] != found[0][:2]:
                here, there = self.workers.members[0], self.workers.members[place]
                self.workers.leave()
                raise OptionError(
                    f"worker {there} {_did(*header[:2])} and worker {here} {_did(*found[0][:2])}: give every worker as many batches, such as by a sampler that drops what doesn't divide"
                )
        mean = sum(header[2] for header in found) / len(found)
        return mean if math.isfinite(mean) else None

    def _regroup(self, done: int, *, gives: bool = False) -> bool:
        """Make the next group, and give newcomers what they need; whether the others have ended this worker's phase.

        Args:
            done: buckets that this worker has written. `gives`: whether it is at the end of a round, with all of them.
        """
        self._notes = []
        while True:
            found = self.workers.regroup({"phase": self._phase, "done": done, "gives": gives})
            self._notes = [found[each] for each in self.workers.members]
            givers = [place for place, note in enumerate(self._notes) if note.get("gives")]
            if not any(note.get("new") for note in self._notes) or not givers:
                break
            try:
                self._give(givers[0])
                break
            except WorkerLostError:
                continue
        return any(note.get("phase", 0) > self._phase for note in self._notes)

    def _regroup_midway(self, done: int) -> list[int]:
        self._regroup(done)
        return self._written()

    def _written(self) -> list[int]:
        """How many of the phase's buckets each member has written, by place."""
        return [note["done"] if note.get("phase") == self._phase else 0 for note in self._notes]

    def _admit(self) -> None:
        """Let latecomers in, with the weights, moments and the clock of the first worker."""
        told = self._together([float(self.workers.waiting())])
        waiting = self._admitted if told is None else int(told[0][0])
        if waiting > self._admitted:
            self.workers.welcome(range(self._world + self._admitted, self._world + waiting))
            self._admitted = waiting
            self._regroup(0, gives=True)

    def _give(self, root: int) -> None:
        if self.workers.rank == root:
            known = {"state": self.state(), "admitted": self._admitted, "world": self._world, "phase": self._phase}
            known["shapes"] = {name: list(value.shape) for name, value in self._everything().items()}
            self.workers.store.set(f"handed/{self.workers.generation}", json.dumps(known))
        self.averager.hand_over(list(self._everything().values()), root, write=False)
        self.workers.gather([0.0])

    def _take_over(self) -> None:
        """Become a member with what the giving worker has."""
        while True:
            notes = self.workers.notes
            givers = [place for place, each in enumerate(self.workers.members) if notes[each].get("gives")]
            if not givers:
                raise LeftOutError("the workers that were to let this one in are gone: start it again")
            known = json.loads(self.workers.store.get(f"handed/{self.workers.generation}"))
            self._make_room(known["shapes"])
            try:
                self.averager.hand_over(list(self._everything().values()), givers[0], write=True)
                self.workers.gather([0.0])
                break
            except WorkerLostError:
                self.workers.regroup({"new": True})
        self.restore(known["state"])
        self._admitted, self._world, self._phase = known["admitted"], known["world"], known["phase"]

    def _make_room(self, shapes: dict[str, list[int]]) -> None:
        """Have every tensor of the optimizer's that the giving worker has."""
        for name, shape in shapes.items():
            number, _, field = name.partition("/")
            if field:
                parameter = self.parameters[int(number)]
                whole = torch.zeros_like(parameter) if shape == list(parameter.shape) else torch.zeros(shape)
                self.optimizer.state[parameter].setdefault(field, whole)

    def _everything(self) -> dict[str, Tensor]:
        """Parameters by number, and the optimizer's tensors by number and name."""
        found: dict[str, Tensor] = {}
        for number, parameter in enumerate(self.parameters):
            found[f"{number}"] = parameter
            for field, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                if isinstance(value, Tensor):
                    found[f"{number}/{field}"] = value
        return found | {f"buffer {number}": value for number, value in enumerate(self._buffers)}

    def _check_same(self) -> None:
        """Refuse parameters, or buffers that are averaged along, that differ between workers."""
        tensors = [*self.parameters, *self._buffers]
        sizes = self._together([float(len(tensors)), float(sum(each.numel() for each in tensors))]) or [[]]
        if any(size != sizes[0] for size in sizes):
            self.workers.leave()
            raise OptionError("workers have other numbers of parameters: build the same model on each")
        sums = self._together(_checksums(tensors)) or []
        for number, tensor in enumerate(tensors):
            if len({each[number] for each in sums}) > 1:
                self.workers.leave()
                buffer = number - len(self.parameters)
                what = f"buffer {buffer}" if buffer >= 0 else f"parameter {number}"
                raise OptionError(
                    f"{what} of shape {tuple(tensor.shape)} differs between workers at the start: seed them alike, or load the same weights"
                )

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _note_rate(self) -> None:
        if not any(isinstance(group["lr"], Tensor) and group["lr"].is_cuda for group in self.optimizer.param_groups):
            self._rate = driving_rate(self._rates(), self.drive)


def _did(kind: float, step: float) -> str:
    return f"{'ended' if kind == _FINISH else 'goes on'} after {int(step):,} steps"


def _buffers(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _checksums(tensors: Sequence[Tensor]) -> list[float]:
    """A number for each tensor's bits, exact in float64."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
    sums = [flat(tensor).view(kinds[tensor.dtype.itemsize]).sum(dtype=torch.int64) for tensor in tensors]
    return [float(int(each) % (1 << 52)) for each in sums]
