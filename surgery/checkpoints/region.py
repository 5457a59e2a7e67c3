"""Region: weights of a checkpoint by tensor and place, such as those of a skill, without values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import xxhash
from jaxtyping import Int64
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SKILL_FILE, SparseDelta, as_integers
from surgery.checkpoints.hub import located
from surgery.errors import SkillError


@runtime_checkable
class HasDelta(Protocol):
    """Anything with a delta, such as a skill."""

    @property
    def delta(self) -> SparseDelta:
        """The delta."""


@dataclass(frozen=True, eq=False)
class Region:
    """Weights by place.

    Attributes:
        indices: tensor name -> int64 places in the flattened tensor, ascending and without repeats, on the CPU. Every
            tensor that is named has one place at least.
        origins: the deltas whose weights they are. A checkpoint that the region is to be used on must hold these deltas'
            base values or their tuned values; without any, only shapes are looked at.
    """

    indices: Mapping[str, Int64[Tensor, " _"]]
    origins: tuple[SparseDelta, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for name, index in self.indices.items():
            if not len(index) or int(index[0]) < 0 or not bool((index.diff() > 0).all()):
                raise SkillError(f"the region's places in tensor {name} must be 0 or more, ascend, and be one at least")

    @classmethod
    def of(cls, source: "str | Path | Region | SparseDelta | HasDelta") -> "Region":
        """The region of a skill, a delta or a skill's folder or hub id; a region is returned as it is.

        Raises SkillError for a folder that holds no skill, or a damaged one, and for a skill of low rank.
        """
        if isinstance(source, Region):
            return source
        if isinstance(source, str | Path):
            source = SparseDelta.load(located(source, SkillError) / SKILL_FILE)
        if getattr(source, "factors", None) is not None:
            raise SkillError("a skill of low rank moves every weight of its matrices: give a skill of weights")
        delta = source if isinstance(source, SparseDelta) else source.delta
        return cls({name: delta.part(name)[0] for name in delta.tensors}, (delta,))

    @classmethod
    def union(cls, regions: Iterable["Region"]) -> "Region":
        """All weights of several regions."""
        held = list(regions)
        names = sorted({name for region in held for name in region.indices})
        parts = {name: [region.indices[name] for region in held if name in region.indices] for name in names}
        indices = {name: torch.cat(part).unique() for name, part in parts.items()}
        return cls(indices, tuple(delta for region in held for delta in region.origins))

    @classmethod
    def of_places(cls, checkpoint: Checkpoint, names: Sequence[str], places: Int64[Tensor, " weights"]) -> "Region":
        """From places in the flattened tensors `names` put end to end, in that order."""
        indices: dict[str, Tensor] = {}
        places, start = places.to("cpu").sort().values, 0
        for name in names:
            size = checkpoint.entries[name].size
            own = places[torch.searchsorted(places, start) : torch.searchsorted(places, start + size)] - start
            indices |= {name: own} if len(own) else {}
            start += size
        return cls(indices)

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return sum(len(index) for index in self.indices.values())

    @cached_property
    def digest(self) -> str:
        """Names the places: 32 hex digits, the same for the same places."""
        total = xxhash.xxh3_128()
        for name in sorted(self.indices):
            total.update(name.encode() + b"\0")
            total.update(self.indices[name].contiguous().numpy().data)
        return total.hexdigest()

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """Raise SkillError unless the checkpoint has these places, and the origins' base or tuned values in theirs."""
        for name, index in self.indices.items():
            entry = checkpoint.entries.get(name)
            if entry is None or int(index[-1]) >= entry.size:
                what = "has no such tensor" if entry is None else f"has {entry.size:,} weights there"
                raise SkillError(f"the region has tensor {name}, and {checkpoint} {what}: take a skill of this base")
        for delta in self.origins:
            if delta.base_fingerprint != checkpoint.fingerprint and (wrong := _other_values(delta, checkpoint)):
                raise SkillError(
                    f"the skill isn't one of {checkpoint}, which holds other values than its base or tuned ones in tensor {wrong}: take a skill of this base"
                )

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values there of tensors in memory, such as a model's parameters: copies, flat, by tensor."""
        return {
            name: named[name].detach().reshape(-1)[index.to(named[name].device)] for name, index in self.indices.items()
        }

    def scatter(self, named: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Put values, as `gather` gives them, into tensors in memory; nothing else in these changes."""
        with torch.no_grad():
            for name, index in self.indices.items():
                target = named[name]
                target.view(-1)[index.to(target.device)] = values[name].detach().to(target.device, target.dtype)


def _other_values(delta: SparseDelta, checkpoint: Checkpoint) -> str:
    """The first tensor that holds, where the delta has a weight, neither its base value nor its tuned one; else empty."""
    for name, extent in delta.tensors.items():
        entry = checkpoint.entries[name]
        if (entry.shape, entry.dtype) != (extent.shape, extent.dtype):
            return name
        index, tuned, base = delta.part(name)
        held: Any = as_integers(checkpoint.tensor(name).reshape(-1)[index])
        if not bool(((held == as_integers(tuned)) | (held == as_integers(base))).all()):
            return name
    return ""
