"""Weights that are tuned: how each tensor holds them, and pieces of it moved along noise.

A float32 tensor that is tuned whole is its own store. A region of a tensor of any dtype has its values in float32 beside
it, and the tensor stays as it is. A tensor of bfloat16 that is tuned whole has eight more bits a weight beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, Int64
from torch import Tensor

from surgery.mezo.noise import Noise
from surgery.mezo.places import Place, Terms

SCRATCH = 4 << 20  # bytes of weights that are made at once
FIRST = 0xFFFFFFFF  # the step whose noise the first values of factors are
LORA_SCALE = 2.0  # alpha over rank (Malladi et al. 2023, appendix)
Units = slice | Tensor  # rows or columns of a tensor, which a vector has one a weight of


@dataclass
class Shift:
    """Where a forward pass stands: the weights plus each scale times the noise of a step's direction.

    Attributes:
        scales: one for each equal part of the batch.
        rows: of the batch, all parts together.
    """

    scales: tuple[float, ...] = (0.0,)
    step: int = 0
    direction: int = 0
    rows: int = 1


@dataclass(eq=False)
class TunedTensor:
    """A tensor of a model that is tuned whole, in float32.

    Attributes:
        name: in the checkpoint's files. `number`: the tensor's in the noise.
        parameter: the model's own; noise is addressed by the indices of its weights.
    """

    name: str
    number: int
    parameter: Tensor
    noise: Noise

    @property
    def count(self) -> int:
        """How many weights are tuned."""
        return self.parameter.numel()

    @property
    def values(self) -> Float[Tensor, " weights"]:
        """The tuned weights as they stand."""
        return self.parameter.detach().reshape(-1)

    def touched(self, axis: int) -> Int64[Tensor, " units"] | None:
        """Rows (axis 0) or columns (axis 1) that hold tuned weights, ascending; None for all of them."""
        return None

    def walk(self, terms: Terms) -> None:
        """Add a sum of noises to the tuned weights, term by term."""
        self.noise.walk(self.parameter.detach().view(-1), self.number, terms)

    def pieces(self, shift: Shift, axis: int, units: Units, scratch: Tensor | None = None) -> Sequence[Tensor]:
        """The weights of some rows, or of a slice of columns, for each scale, in the parameter's dtype.

        Args:
            scratch: float32 memory to make them in, if they fit; fresh memory costs as much as the noise.
        """
        if not any(shift.scales):
            return [_take(self.parameter.detach(), axis, units)] * len(shift.scales)
        values = self._float32(axis, units)
        width = self.parameter[0].numel()
        if isinstance(units, slice):
            starts = [units.start * width] if axis == 0 else range(units.start, self.parameter.numel(), width)
            flat = values.reshape(1, -1) if axis == 0 else values
            first = torch.tensor(starts, device=values.device)
        else:
            flat, first = values.reshape(len(units), -1), units * width
        size, out = len(shift.scales) * flat.numel(), None
        if scratch is not None and size <= len(scratch):
            out = scratch[:size].view(len(shift.scales), *flat.shape)
        moved = self.noise.spread(flat, first, shift.scales, Place(self.number, shift.step, shift.direction), out)
        return moved.view(len(shift.scales), *values.shape).to(self.parameter.dtype).unbind()

    def versions(self, shift: Shift) -> Sequence[Tensor]:
        """All of the tensor for each scale."""
        return self.pieces(shift, 0, slice(0, len(self.parameter)))

    def moved(self, stored: Tensor) -> int:
        """How many weights aren't what the base's are, before they are rounded to the files' dtype."""
        return int((self.values.cpu() != stored.reshape(-1).to(self.values.dtype)).sum())

    def written(self, stored: Tensor) -> Tensor:
        """The whole tensor as files are to hold it; `stored` as they hold the base's, on the CPU."""
        own = self.parameter.detach()
        return (own if own.dtype == stored.dtype else self.values.view(stored.shape)).to("cpu", stored.dtype)

    def _float32(self, axis: int, units: Units) -> Float32[Tensor, "..."]:
        return _take(self.parameter.detach(), axis, units)


@dataclass(eq=False)
class RoundedTensor(TunedTensor):
    """A tensor of bfloat16 that is tuned whole, with eight more bits a weight: a float32 without its last eight bits.

    The model reads it rounded to the nearest bfloat16; `low` says by how much, in the last place of the 24 bits.
    """

    low: Int8[Tensor, " weights"] = field(init=False)

    def __post_init__(self) -> None:
        self.low = torch.zeros(self.parameter.numel(), dtype=torch.int8, device=self.parameter.device)

    @property
    def values(self) -> Float32[Tensor, " weights"]:
        """The tuned weights as they stand."""
        return join(self.parameter.detach().reshape(-1), self.low)

    def walk(self, terms: Terms) -> None:
        """Add a sum of noises, rounding to 24 bits after each term, a piece of the tensor at a time."""
        high, step = self.parameter.detach().view(-1), SCRATCH // 4
        for start in range(0, len(high), step):
            stretch = slice(start, start + step)
            values = join(high[stretch], self.low[stretch])
            self.noise.walk_rounded(values, self.number, terms, start)
            high[stretch], self.low[stretch] = split(values)

    def _float32(self, axis: int, units: Units) -> Float32[Tensor, "..."]:
        high, low = (_take(part, axis, units) for part in (self.parameter.detach(), self.low.view_as(self.parameter)))
        return join(high, low)


class SixteenBitTensor(TunedTensor):
    """A tensor of 16 bits that is tuned whole without any more: most of what a step adds is rounded away."""

    def walk(self, terms: Terms) -> None:
        """Add a sum of noises, rounding to the nearest after each term, a piece of the tensor at a time."""
        flat, step = self.parameter.detach().view(-1), SCRATCH // 4
        for start in range(0, len(flat), step):
            values = flat[start : start + step].float()
            for term in zip(*terms, strict=True):
                self.noise.walk(values, self.number, Terms(*(np.array([part]) for part in term)), start)
                values = values.to(flat.dtype).float()
            flat[start : start + step] = values.to(flat.dtype)

    def _float32(self, axis: int, units: Units) -> Float32[Tensor, "..."]:
        return _take(self.parameter.detach(), axis, units).float()


class RegionTensor(TunedTensor):
    """A tensor of which some weights are tuned, kept in float32 beside it.

    Attributes:
        indices: int64 [weights], into the flattened tensor, ascending.
    """

    def __init__(
        self,
        name: str,
        number: int,
        parameter: Tensor,
        noise: Noise,
        indices: Int64[Tensor, " weights"],
        stored: Tensor | None = None,
    ) -> None:
        """`stored`: the tensor as the checkpoint's files hold it, where the model's dtype holds less."""
        super().__init__(name, number, parameter, noise)
        self.indices = indices.to(parameter.device)
        held = (parameter if stored is None else stored).detach().reshape(-1)
        self._values = held[indices.to(held.device)].float().to(parameter.device)
        self._made: tuple[Place | None, Tensor] = (None, self._values)
        self._units: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def count(self) -> int:
        """How many weights are tuned."""
        return len(self.indices)

    @property
    def values(self) -> Float32[Tensor, " weights"]:
        """The tuned weights as they stand."""
        return self._values

    def touched(self, axis: int) -> Int64[Tensor, " units"] | None:
        """The rows or columns with tuned weights, or None where they are half of all and more."""
        found = self._by_unit(axis)[0].unique_consecutive()
        return found if 2 * len(found) < self.parameter.shape[axis] else None

    def walk(self, terms: Terms) -> None:
        """Add a sum of noises to the tuned weights, term by term."""
        self.noise.walk_at(self._values, self.indices, self.number, terms)

    def moved(self, stored: Tensor) -> int:
        """How many weights aren't what the base's are."""
        return super().moved(stored.reshape(-1)[self.indices.cpu()])

    def written(self, stored: Tensor) -> Tensor:
        """The whole tensor as files are to hold it; `stored` as they hold the base's, on the CPU."""
        whole = stored.clone()
        whole.view(-1)[self.indices.cpu()] = self._values.to("cpu", stored.dtype)
        return whole

    def pieces(self, shift: Shift, axis: int, units: Units, scratch: Tensor | None = None) -> Sequence[Tensor]:
        """The weights of some rows or columns, ascending where they aren't a slice, for each scale."""
        part = _take(self.parameter.detach(), axis, units)
        moved = part[None].expand(len(shift.scales), *part.shape).clone(memory_format=torch.contiguous_format)
        chosen, places = self._within(axis, units, part.shape)
        values, noise = self._values[chosen], self._noise(shift)[chosen] if any(shift.scales) else None
        for one, scale in zip(moved, shift.scales, strict=True):
            now = values if noise is None else values + noise * torch.tensor(scale, dtype=torch.float32)
            one.view(-1)[places] = now.to(one.dtype)
        return moved.unbind()

    def _noise(self, shift: Shift) -> Float32[Tensor, " weights"]:
        """The noise of the whole region, which several pieces ask for."""
        place = Place(self.number, shift.step, shift.direction)
        if self._made[0] != place:
            self._made = (place, self.noise.at(self.indices, place))
        return self._made[1]

    def _by_unit(self, axis: int) -> tuple[Int64[Tensor, " weights"], Int64[Tensor, " weights"]]:
        """Each tuned weight's row or column, ascending, and which weight of the region that is."""
        if axis not in self._units:
            width = self.parameter[0].numel()
            units = self.indices // width if axis == 0 else self.indices % width
            self._units[axis] = tuple(units.sort(stable=True))  # type: ignore[assignment]
        return self._units[axis]

    def _within(self, axis: int, units: Units, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Which weights of the region lie in a piece, and where in it when flattened."""
        sorted_units, order = self._by_unit(axis)
        width = self.parameter[0].numel()
        if isinstance(units, slice):
            edges = torch.tensor([units.start, units.stop], device=order.device)
            first, last = torch.searchsorted(sorted_units, edges).tolist()
            chosen = order[first:last]
            local = sorted_units[first:last] - units.start
        else:
            inside = torch.isin(sorted_units, units)
            chosen = order[inside]
            local = torch.searchsorted(units, sorted_units[inside])
        flat = self.indices[chosen]
        return chosen, local * width + flat % width if axis == 0 else flat // width * shape[1] + local


class LowRankTensor:
    """A matrix that factors are added to, in float32: scale * B A, or its transpose where outputs are columns.

    Attributes:
        down: A, [rank, inputs]. `up`: B, [outputs, rank].
    """

    def __init__(self, name: str, down: TunedTensor, up: TunedTensor, scale: float, transposed: bool) -> None:
        self.name, self.down, self.up, self.scale, self.transposed = name, down, up, scale, transposed

    @property
    def count(self) -> int:
        """How many weights the matrix has."""
        return len(self.up.parameter) * self.down.parameter.shape[1]

    def walk(self, terms: Terms) -> None:
        """Add a sum of noises to both factors, term by term."""
        self.down.walk(terms)
        self.up.walk(terms)

    def moved(self, stored: Tensor) -> int:
        """How many of the matrix's weights are moved, before they are rounded to the files' dtype."""
        return int((self._product() != 0).sum())

    def written(self, stored: Tensor) -> Tensor:
        """The matrix with the factors added, as files are to hold it; `stored` as they hold the base's."""
        return (stored.float() + self._product()).to(stored.dtype)

    def _product(self) -> Float32[Tensor, "rows columns"]:
        product = self.scale * (self.up.parameter.detach() @ self.down.parameter.detach()).cpu()
        return product.T if self.transposed else product


def factors(
    name: str,
    number: int,
    shape: Sequence[int],
    rank: int,
    noise: Noise,
    transposed: bool,
    made: tuple[Tensor, Tensor] | None = None,
    device: torch.device | None = None,
) -> LowRankTensor:
    """Factors of a matrix of a shape at the base: A drawn by the noise's seed, B zero.

    Args:
        number: the matrix's; the factors are numbers 2 n and 2 n + 1 in the noise.
        made: memory for A and B, such as an adapter's.
    """
    inputs, outputs = shape if transposed else reversed(shape)
    down, up = made or (torch.empty(rank, inputs, device=device), torch.empty(outputs, rank, device=device))
    drawn = Noise("gaussian", noise.seed).at(torch.arange(rank * inputs), Place(2 * number, FIRST))
    with torch.no_grad():
        down.copy_((drawn * (3 * inputs) ** -0.5).view(rank, inputs))
        up.zero_()
    parts = (TunedTensor(f"{name}, A", 2 * number, down, noise), TunedTensor(f"{name}, B", 2 * number + 1, up, noise))
    return LowRankTensor(name, *parts, LORA_SCALE, transposed)


def join(high: Tensor, low: Tensor) -> Tensor:
    """The float32 numbers that bfloat16 ones and what they are rounded by stand for."""
    return (((high.view(torch.int16).int() << 8) + low.int()) << 8).view(torch.float32)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 to each float32 number of 24 bits, and the rest in its last place: the inverse of `join`."""
    whole = values.view(torch.int32) >> 8
    high = (whole + 128) >> 8
    return high.to(torch.int16).view(torch.bfloat16), (whole - (high << 8)).to(torch.int8)


def _take(tensor: Tensor, axis: int, units: Units) -> Tensor:
    if not isinstance(units, slice):
        return tensor.index_select(axis, units)
    return tensor[units] if axis == 0 else tensor[:, units]
