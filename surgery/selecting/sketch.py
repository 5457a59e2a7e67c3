"""Count-sketch of long vectors (Charikar et al. 2002): each coordinate is added, with a random sign, to one of a few buckets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surgery.errors import OptionError
from surgery.philox import philox

_GROUP = 1 << 16  # counters whose words are made at once


@dataclass(frozen=True, eq=False)
class CountSketch:
    """Count-sketch of vectors that come layer by layer; inner products are kept without bias, with variance about 1 / width.

    A coordinate's bucket and sign are words of Philox at (index, layer), so nothing random is kept but the seed.

    Attributes:
        sizes: number of weights by layer, in the order that numbers the layers.
        width: buckets; 0 keeps every coordinate.
    """

    sizes: Mapping[str, int]
    width: int
    seed: int = 0
    _slots: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.width < 0:
            raise OptionError(f"`sketch` {self.width} must be a number of buckets, or 0 for none")

    @property
    def length(self) -> int:
        """Numbers that a vector becomes."""
        return self.width or sum(self.sizes.values())

    def add(self, layer: str, values: Float[Tensor, "rows weights"], out: Float[Tensor, "rows length"]) -> None:
        """Add one layer's coordinates to the sketches of some rows, float32."""
        if not self.width:
            names = list(self.sizes)
            start = sum(self.sizes[name] for name in names[: names.index(layer)])
            out[:, start : start + values.shape[1]] += values
            return
        slots = self.slots(layer)
        if values.device.type == "cpu":
            from surgery.selecting import kernels  # compiled when first needed

            kernels.scatter(values.float().contiguous().numpy(), slots.numpy(), out.numpy())
            return
        slots = slots.to(values.device)
        signed = values.float() * (1 - 2 * (slots & 1)).float()
        out.index_add_(1, (slots >> 1).long(), signed)

    def slots(self, layer: str) -> Int[Tensor, " weights"]:
        """Twice the bucket of each weight of a layer, plus one where its sign is minus; int32, made once."""
        if layer not in self._slots:
            size, number = self.sizes[layer], list(self.sizes).index(layer)
            made = torch.empty(-(-size // 4) * 4, dtype=torch.int32)
            for start in range(0, len(made) // 4, _GROUP):
                blocks = torch.arange(start, min(start + _GROUP, len(made) // 4))
                counters = torch.stack([blocks, torch.full_like(blocks, number), *[torch.zeros_like(blocks)] * 2], -1)
                words = philox(counters, (self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF)).flatten()
                bucket = ((words >> 1) * self.width) >> 31
                made[4 * start : 4 * start + len(words)] = (2 * bucket + (words & 1)).int()
            self._slots[layer] = made[:size]
        return self._slots[layer]
