"""Walk: what a base's weights were moved by, step by step, and the weights it leads to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import CheckpointError, OptionError
from surgery.mezo.noise import Noise
from surgery.mezo.places import Terms
from surgery.mezo.weights import LowRankTensor, RegionTensor, RoundedTensor, SixteenBitTensor, TunedTensor, factors

Precision = Literal["float32", "residual", "bfloat16"]
_NEGLIGIBLE = 1e-3  # of a movement that momentum carries on
_Walk = TypeVar("_Walk", bound="Walk")


@dataclass(frozen=True, eq=False)
class Walk:
    """What moved a base's weights: each step added `coefficients[step, d]` times its noise of direction d to them.

    Attributes:
        base: the base's fingerprint.
        noise: its kind and seed.
        tensors: names of the tensors that were tuned, by their number in the noise.
        coefficients: [steps, directions], float32: minus the learning rate times the slope, over the directions.
        precision: `float32`; `residual`, bfloat16 and eight bits; or `bfloat16`, rounded after each step.
        momentum: the share of a step's movement that the next repeats.
        region: places of tuned weights by tensor, where not all of it is tuned.
        rank: of the factors that are tuned in place of the tensors themselves.
        about: task, rates and whatever else a reader wants to know.
    """

    base: str
    noise: Noise
    tensors: tuple[str, ...]
    coefficients: NDArray[np.float32]
    precision: Precision = "float32"
    momentum: float = 0.0
    region: Mapping[str, Tensor] | None = None
    rank: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.coefficients)

    def cut(self: _Walk, steps: int) -> _Walk:
        """Its first steps: to undo the others, or to branch off there.

        Raises OptionError for more steps than there are.
        """
        if not 0 <= steps <= self.steps:
            raise OptionError(f"`to` {steps} isn't one of the trajectory's {self.steps:,} steps")
        return replace(self, coefficients=self.coefficients[:steps])

    def terms(self, first: int = 0, stop: int | None = None) -> Terms:
        """The sum of noises that steps `first` to `stop` add, in their order; momentum repeats those of earlier steps."""
        stop = self.steps if stop is None else stop
        directions = self.coefficients.shape[1]
        window = 1 if not self.momentum else 1 + int(np.ceil(np.log(_NEGLIGIBLE) / np.log(self.momentum)))
        pairs = [(step, past) for step in range(first, stop) for past in range(max(0, step - window + 1), step + 1)]
        past = np.array([past for _, past in pairs], np.int64)
        decay = np.float64(self.momentum) ** np.array([step - past for step, past in pairs], np.float64)
        scales = (self.coefficients[past].astype(np.float64) * decay[:, None]).astype(np.float32)
        return Terms(
            np.repeat(past.astype(np.uint32), directions),
            np.tile(np.arange(directions, dtype=np.uint32), len(pairs)),
            scales.reshape(-1),
        )

    def tuned(self, number: int, parameter: Tensor, stored: Tensor | None = None) -> TunedTensor:
        """The tensor of this number as the trajectory tunes it, at the base.

        Args:
            parameter: its weights, as the model has them. `stored`: as the base's files do, where these hold more.
        """
        name = self.tensors[number]
        if self.region is not None:
            return RegionTensor(name, number, parameter, self.noise, self.region[name], stored)
        kinds = {"float32": TunedTensor, "residual": RoundedTensor, "bfloat16": SixteenBitTensor}
        return kinds[self.precision](name, number, parameter, self.noise)

    def check_base(self, base: Checkpoint) -> None:
        """Raise CheckpointError for another base."""
        if base.fingerprint != self.base:
            raise CheckpointError(
                f"{base} isn't what the trajectory began at: its fingerprint is {base.fingerprint[:16]} instead of {self.base[:16]}; give that base"
            )

    def weights(self, base: Checkpoint, name: str, device: torch.device | None = None) -> TunedTensor | LowRankTensor:
        """One tensor at the end of the trajectory, made from the base's in one pass."""
        number = self.tensors.index(name)
        if self.rank is not None:
            columns = name in self.about.get("columns", ())
            low = factors(name, number, base.entries[name].shape, self.rank, self.noise, columns, device=device)
            low.walk(self.terms())
            return low
        stored = base.tensor(name, device)
        if self.region is None:  # which is written to, as the files' own memory must not be
            stored = stored.to(torch.float32 if self.precision == "float32" else torch.bfloat16, copy=True)
        tensor = self.tuned(number, stored)
        tensor.walk(self.terms())
        return tensor

    def counts(self, base: Checkpoint) -> dict[str, int]:
        """How many weights may move, how many of them moved, and how many moved too little for the files' dtype."""
        movable = moved = stored = 0
        for name in self.tensors:
            made, before = self.weights(base, name), base.tensor(name)
            after = made.written(before)
            movable += made.count
            stored += int((after != before).sum())
            moved += made.moved(before)
        return {"movable": movable, "moved": stored, "rounded_away": max(0, moved - stored)}


class MadeTensors(Mapping[str, Tensor]):
    """The tuned tensors of a walk, each made from the base's when it is asked for, in the dtype that files hold."""

    def __init__(self, walk: Walk, base: Checkpoint, device: torch.device | None = None) -> None:
        self._walk, self._base, self._device = walk, base, device

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._walk.tensors:
            raise KeyError(name)
        return self._walk.weights(self._base, name, self._device).written(self._base.tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._walk.tensors)

    def __len__(self) -> int:
        return len(self._walk.tensors)


def coefficients_of(rate: float, slopes: Sequence[float]) -> NDArray[np.float32]:
    """What a step adds of each direction's noise: minus the learning rate times the mean slope's share."""
    return (-rate / len(slopes) * np.asarray(slopes, np.float64)).astype(np.float32)
