"""Noise: what each weight is moved by, addressed by (seed, step, direction, tensor, index), with the same bits on every device.

Nothing is kept: whoever needs the noise of a step again makes it again.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from surgery import philox
from surgery.mezo.places import Place, Terms

KINDS = ("rademacher", "gaussian")


@dataclass(frozen=True)
class Noise:
    """Noise of mean 0 and variance 1, independent from weight to weight.

    Attributes:
        kind: `rademacher`, +1 or -1, or `gaussian`.
        seed: a number of 64 bits, Philox's key.
    """

    kind: str = "rademacher"
    seed: int = 0

    @cached_property
    def key(self) -> tuple[int, int]:
        """The seed as two words."""
        return self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF

    @property
    def _normal(self) -> bool:
        return self.kind == "gaussian"

    def at(self, indices: Int64[Tensor, " weights"], place: Place) -> Float32[Tensor, " weights"]:
        """The noise of single weights by their index in the flattened tensor."""
        if indices.device.type != "cpu":
            made = philox.normals if self._normal else philox.signs
            return made(indices, place, self.key)
        out = torch.empty(len(indices), dtype=torch.float32)
        _kernels().at(indices.numpy(), *place, *self.key, self._normal, out.numpy())
        return out

    def spread(
        self,
        values: Float32[Tensor, "rows columns"],
        starts: Int64[Tensor, " rows"],
        scales: tuple[float, ...],
        place: Place,
        out: Float32[Tensor, "parts rows columns"] | None = None,
    ) -> Float32[Tensor, "parts rows columns"]:
        """values + scale * noise for each scale.

        Args:
            starts: the index of each row's first weight in the flattened tensor.
            out: contiguous memory for it.
        """
        if out is None:
            out = values.new_empty(len(scales), *values.shape)
        values = values.contiguous()
        if values.device.type == "cpu":
            told = np.asarray(scales, np.float32)
            _kernels().spread(values.numpy(), starts.numpy(), told, *place, *self.key, self._normal, out.numpy())
        elif triton := _triton(values.device):
            triton.spread(values, starts, scales, place, self.key, self._normal, out)
        else:
            indices = starts[:, None] + torch.arange(values.shape[1], device=values.device)
            noise = self.at(indices.reshape(-1), place).view(values.shape)
            for part, scale in zip(out, scales, strict=True):
                torch.add(values, noise * _float32(scale, values.device), out=part)
        return out

    def walk(self, values: Float32[Tensor, " weights"], tensor: int, terms: Terms, start: int = 0) -> None:
        """Add a sum of noises to consecutive weights in place, term by term.

        Args:
            start: the index of the first, a multiple of 4,096.
        """
        if values.device.type == "cpu":
            _kernels().walk(values.numpy(), start, tensor, *terms, *self.key, self._normal)
        elif triton := _triton(values.device):
            triton.walk(values, start, tensor, terms, self.key, self._normal)
        else:
            self.walk_at(values, torch.arange(start, start + len(values), device=values.device), tensor, terms)

    def walk_rounded(self, values: Float32[Tensor, " weights"], tensor: int, terms: Terms, start: int = 0) -> None:
        """`walk` of numbers that are kept to 24 bits: each step's sum is rounded up or down by chance, without bias."""
        if values.device.type == "cpu":
            bits = values.view(torch.int32).numpy().view(np.uint32)
            _kernels().walk_rounded(bits, start, tensor, *terms, *self.key, self._normal)
            return
        indices = torch.arange(start, start + len(values), device=values.device)
        for step, direction, scale in zip(*terms, strict=True):
            place = Place(tensor, int(step), int(direction))
            moved = values + self.at(indices, place) * _float32(scale, values.device)
            chance = philox.chances(indices, place, self.key, self._normal)
            values.copy_(((moved.view(torch.int32) + chance) & ~0xFF).view(torch.float32))

    def walk_at(
        self, values: Float32[Tensor, " weights"], indices: Int64[Tensor, " weights"], tensor: int, terms: Terms
    ) -> None:
        """`walk` of single weights by their index in the flattened tensor."""
        if values.device.type == "cpu":
            _kernels().walk_at(values.numpy(), indices.numpy(), tensor, *terms, *self.key, self._normal)
            return
        for step, direction, scale in zip(*terms, strict=True):
            noise = self.at(indices, Place(tensor, int(step), int(direction)))
            values += noise * _float32(scale, values.device)


def _float32(scale: Any, device: torch.device) -> Tensor:
    """A number as float32 before it is multiplied: torch would multiply by it in double precision."""
    return torch.tensor(float(scale), dtype=torch.float32, device=device)


def _kernels() -> Any:
    from surgery.mezo import kernels  # compiled when first needed

    return kernels


def _triton(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    try:
        from surgery.mezo import triton_kernels
    except ImportError:
        return None
    return triton_kernels
