"""LowRankDelta: changes of whole matrices as factors, for a base whose own values it doesn't hold.

File layout (`low-rank.safetensors`): for each touched tensor `left/NAME` [rows, rank] and `right/NAME` [rank, columns], float32
(float64 for a float64 base), the tensor taken as a matrix of its first axis by all others; the header's metadata holds the table
of touched tensors with a digest of each one's base values, the base's fingerprint and its traits. Changes are *added*, and
rounded to the dtype of the base: the base's bits can't be had back without the base.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import xxhash
from jaxtyping import Float
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import sort_header
from surgery.checkpoints.tensorfile import DTYPES
from surgery.checkpoints.traits import Traits
from surgery.errors import SkillError
from surgery.jsonfile import parse_json

SCHEMA = 1
_FORMAT = "surgery.low-rank-delta"
_KNOWN = {"format", "schema", "movable", "base_fingerprint", "tensors", "checksum", "traits"}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_Natural = Annotated[int, Meta(ge=0, le=1 << 62)]
_TableRow = tuple[str, str, list[_Natural], str]  # name, type, shape and digest of the base's tensor


class Factors(NamedTuple):
    """A tensor's change as left @ right, the tensor taken as a matrix: what its first axis has by all others; a vector is one column."""

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "rank columns"]

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return self.left.numel() + self.right.numel()


class Touched(NamedTuple):
    """A tensor of the base that a delta changes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, eq=False, repr=False)
class LowRankDelta:
    """Changes of low rank to some tensors of a checkpoint; every weight of those tensors moves.

    Attributes:
        factors: each touched tensor's change, by name. `touched`: what those tensors are in the base.
        movable: how many weights could have moved, the denominator of `share`.
        base_fingerprint: `Checkpoint.fingerprint` of the base. `traits`: what decides its computation besides its weights.
        metadata: further short strings for the file's header.
    """

    factors: Mapping[str, Factors]
    touched: Mapping[str, Touched]
    movable: int
    base_fingerprint: str
    traits: Traits | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line."""
        return f"<LowRankDelta: {self.numbers:,} numbers, rank {self.rank:,} in {len(self.factors):,} tensors, base {self.base_fingerprint[:12]}>"

    def __post_init__(self) -> None:
        if self.factors.keys() != self.touched.keys():
            raise SkillError("its factors and its table are of different tensors")
        for name, (left, right) in self.factors.items():
            shape = self.touched[name].shape
            sides = (shape[0], int(np.prod(shape[1:], dtype=np.int64))) if shape else ()
            if left.dim() != 2 or right.dim() != 2 or (left.shape[0], right.shape[1]) != sides:
                raise SkillError(
                    f"tensor {name}: factors {tuple(left.shape)} and {tuple(right.shape)} don't make {shape}"
                )
            if left.shape[1] != right.shape[0] or left.dtype != right.dtype or not left.dtype.is_floating_point:
                raise SkillError(f"tensor {name}: its factors don't fit each other")
            if not bool(left.isfinite().all() and right.isfinite().all()):
                raise SkillError(f"tensor {name}: its factors hold NaN or infinity")

    @classmethod
    def of(
        cls,
        base: Checkpoint,
        factors: Mapping[str, Factors],
        *,
        movable: int,
        metadata: Mapping[str, str] | None = None,
    ) -> "LowRankDelta":
        """From factors by the base's tensor names."""
        touched = {
            name: Touched(base.entries[name].dtype, base.entries[name].shape, base.digests[name]) for name in factors
        }
        held = {
            name: Factors(*(side.detach().cpu().contiguous() for side in factors[name])) for name in sorted(factors)
        }
        return cls(held, touched, movable, base.fingerprint, Traits.of(base), metadata or {})

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return sum(factors.numbers for factors in self.factors.values())

    @property
    def rank(self) -> int:
        """The number of components, of all tensors together."""
        return sum(factors.left.shape[1] for factors in self.factors.values())

    @property
    def share(self) -> float:
        """The numbers it holds over the weights that could have moved."""
        return self.numbers / self.movable if self.movable else 0.0

    def tensors(self, base: Checkpoint) -> dict[str, Tensor]:
        """The touched tensors with the change added, in the base's dtypes. Raises SkillError for any other checkpoint."""
        self.check_base(base)
        made = {}
        for name, (left, right) in self.factors.items():
            before = base.tensor(name)
            made[name] = (before.to(left.dtype) + (left @ right).view(before.shape)).to(before.dtype)
        return made

    def check_base(self, checkpoint: Checkpoint) -> None:
        """Raise SkillError unless a checkpoint is the base, naming what differs."""
        remedy = "apply the skill to the checkpoint it was made from"
        if self.traits and (difference := self.traits.difference(Traits.of(checkpoint, self.traits))):
            raise SkillError(f"{checkpoint} is not the skill's base: its {difference}; {remedy}")
        if checkpoint.fingerprint == self.base_fingerprint:
            return
        wrong = [name for name, own in self.touched.items() if checkpoint.digests.get(name) != own.digest]
        where = f"first differing tensor {wrong[0]}" if wrong else "in tensors that the skill doesn't touch"
        raise SkillError(
            f"{checkpoint} is not the skill's base: fingerprint {checkpoint.fingerprint[:16]} instead of {self.base_fingerprint[:16]}, {where}; {remedy}"
        )

    def to_bytes(self) -> bytes:
        """The content of `low-rank.safetensors`, the same bytes for the same delta."""
        names = sorted(self.factors)
        table = [
            [name, _CODES[own.dtype], list(own.shape), own.digest] for name in names for own in [self.touched[name]]
        ]
        header = {
            **self.metadata,
            "format": _FORMAT,
            "schema": str(SCHEMA),
            "movable": str(self.movable),
            "base_fingerprint": self.base_fingerprint,
            "tensors": json.dumps(table, separators=(",", ":")),
            "checksum": self._checksum(),
            **({"traits": self.traits.to_json()} if self.traits else {}),
        }
        sides = {f"left/{name}": self.factors[name].left.contiguous() for name in names}
        sides |= {f"right/{name}": self.factors[name].right.contiguous() for name in names}
        return sort_header(save(sides, metadata=header))

    def _checksum(self) -> str:
        total = xxhash.xxh3_128()
        for name in sorted(self.factors):
            for side in self.factors[name]:
                total.update(side.contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    @classmethod
    def load(cls, file: str | Path) -> "LowRankDelta":
        """Read and check a file that `to_bytes` made; raises SkillError for one that is damaged or isn't such a delta."""
        file = Path(file)
        try:
            with safe_open(file, "pt") as opened:
                header = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError:
            raise SkillError(f"{file} is missing: name a skill folder") from None
        except (SafetensorError, OSError) as error:
            raise SkillError(f"{file} is damaged ({error}): make or fetch it again") from None
        if header.get("format") != _FORMAT:
            raise SkillError(f"{file} is no low-rank skill file: its header doesn't say {_FORMAT}")
        if header.get("schema") != str(SCHEMA):
            raise SkillError(
                f"{file} has schema {header.get('schema')}, this version reads {SCHEMA}: install the version that wrote it"
            )
        try:
            rows = parse_json(header["tensors"], list[_TableRow])
            touched = {name: Touched(DTYPES[code], tuple(shape), digest) for name, code, shape, digest in rows}
            if len(touched) < len(rows) or arrays.keys() != {
                f"{side}/{n}" for n in touched for side in ("left", "right")
            }:
                raise ValueError("arrays that aren't those of its table")
            delta = cls(
                {name: Factors(arrays[f"left/{name}"], arrays[f"right/{name}"]) for name in touched},
                touched,
                int(header["movable"]),
                header["base_fingerprint"],
                Traits.from_json(header["traits"]) if "traits" in header else None,
                {key: value for key, value in header.items() if key not in _KNOWN},
            )
            if delta._checksum() != header["checksum"]:
                raise SkillError("its factors don't match its checksum: make or fetch it again")
            return delta
        except SkillError as error:
            raise SkillError(f"{file}: {error}") from None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise SkillError(
                f"{file}: its header or arrays can't be read ({error!r}): make or fetch it again"
            ) from None
