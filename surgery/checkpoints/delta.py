"""SparseDelta: which weights of a checkpoint differ, their base values and their tuned values.

File layout (`skill.safetensors`): three flat arrays for all tensors together, `indices` (U32, into each flattened
tensor, ascending), `values` (tuned) and `base_values`, plus `digests` (U8 [tensors of the base, 8]); the header's
metadata holds the table of touched tensors, the base's fingerprint and its traits (config, tokenizer). Values are
*replaced*, never added: applying twice is applying once, and reverting restores every bit.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import xxhash
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.counterparts import check_pair, counterparts
from surgery.checkpoints.patching import Edit, bits
from surgery.checkpoints.tensorfile import DTYPES
from surgery.checkpoints.traits import Traits
from surgery.errors import SkillError
from surgery.jsonfile import parse_json
from surgery.reporting.plural import number_of

SKILL_FILE, LOW_RANK_FILE = "skill.safetensors", "low-rank.safetensors"
SCHEMA = 1
_Natural = Annotated[int, Meta(ge=0, le=1 << 62)]
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_COUNTABLE = 1 << 32  # weights of one tensor: indices are kept as U32
_TableRow = tuple[str, str, list[_Natural], _Natural, _Natural]  # name, type, shape, start and stop of a tensor
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Extent:
    """The stretch `start:stop` of a delta's flat arrays that belongs to one tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def weights(self) -> int:
        """How many weights of this tensor differ."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """How many weights this tensor has."""
        return int(np.prod(self.shape, dtype=np.int64))


class Row(NamedTuple):
    """One tensor's weights, to make a delta of: `indices` ascend, values are in the tensor's `dtype`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    indices: Tensor
    values: Tensor
    base_values: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SparseDelta:
    """A sparse difference between two checkpoints of one architecture.

    Attributes:
        extents: the touched tensors, sorted by name, which share out the three arrays between them.
        indices: int64 [weights], ascending within each tensor.
        values, base_values: [weights], the tuned and the base value of each, in the tensors' dtype (in the widest one
            when they differ, which loses nothing).
        movable: how many weights could have been in it, the denominator of `sparsity`.
        base_fingerprint: `Checkpoint.fingerprint` of the base.
        base_digests: `Checkpoint.digests` of the base, in sorted order of its tensor names.
        metadata: further short strings for the file's header.
        traits: what decides the base's computation besides its weights; None in a file of an earlier version.
    """

    extents: tuple[Extent, ...]
    indices: Tensor
    values: Tensor
    base_values: Tensor
    movable: int
    base_fingerprint: str
    base_digests: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    traits: Traits | None = None

    def __repr__(self) -> str:
        """One line: a delta may hold millions of weights."""
        return f"<SparseDelta: {self.weights:,} of {self.movable:,} weights in {number_of(len(self.extents), 'tensor')}, base {self.base_fingerprint[:12]}>"

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def from_parts(
        cls,
        base: Checkpoint,
        parts: Mapping[str, tuple[Tensor, Tensor]],
        *,
        movable: int,
        metadata: Mapping[str, str] | None = None,
    ) -> "SparseDelta":
        """From `{tensor name: (indices, tuned values)}`; base values are read from `base`. Empty parts are left out."""
        rows = []
        for name, (index, tuned) in parts.items():
            entry = base.entries[name]
            index, order = index.to("cpu", torch.int64).sort()
            before = base.tensor(name).reshape(-1)[index] if len(index) else torch.empty(0, dtype=entry.dtype)
            rows.append(
                Row(name, entry.dtype, entry.shape, index, tuned.detach().to("cpu", entry.dtype)[order], before)
            )
        return cls.from_rows(
            rows,
            movable=movable,
            base_fingerprint=base.fingerprint,
            base_digests=tuple(base.digests.values()),
            traits=Traits.of(base),
            metadata=metadata or {},
        )

    @classmethod
    def from_rows(cls, rows: Iterable["Row"], **fields: Any) -> "SparseDelta":
        """From each tensor's weights, in any order; those without any are left out. `fields` are the other attributes."""
        kept = sorted((row for row in rows if len(row.indices)), key=lambda row: row.name)
        stops = list(accumulate(len(row.indices) for row in kept))
        return cls(
            extents=tuple(
                Extent(row.name, row.dtype, row.shape, stop - len(row.indices), stop)
                for row, stop in zip(kept, stops, strict=True)
            ),
            indices=torch.cat([row.indices for row in kept]) if kept else torch.empty(0, dtype=torch.int64),
            values=_concatenate([row.values for row in kept]),
            base_values=_concatenate([row.base_values for row in kept]),
            **fields,
        )

    @classmethod
    def between(cls, base: Checkpoint, tuned: Checkpoint, names: Iterable[str] | None = None) -> "SparseDelta":
        """All weights in which two checkpoints differ by a bit, within `names` (default: the base's block weights).

        Values are compared in the base's dtype. Raises CheckpointError for tensors that are missing, of another shape,
        or no floating-point weights.
        """
        names = tuple(base.block_weights() if names is None else names)
        parts = {}
        for name in names:
            other = name if name in tuned.entries else counterparts(base, tuned).get(name, name)
            check_pair(base, name, tuned, other)
            before = base.tensor(name).reshape(-1)
            after = tuned.tensor(other).reshape(-1).to(before.dtype)
            index = (as_integers(before) != as_integers(after)).nonzero().reshape(-1)
            parts[name] = (index, after[index])
        return cls.from_parts(base, parts, movable=sum(base.entries[name].size for name in names))

    @property
    def weights(self) -> int:
        """How many weights differ."""
        return len(self.indices)

    @property
    def sparsity(self) -> float:
        """The share of the movable (block) weights that differ."""
        return self.weights / self.movable if self.movable else 0.0

    @cached_property
    def tensors(self) -> dict[str, Extent]:
        """The touched tensors by name."""
        return {extent.name: extent for extent in self.extents}

    def part(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Indices, tuned values and base values of one tensor, the latter two in the tensor's own dtype."""
        extent = self.tensors[name]
        stretch = slice(extent.start, extent.stop)
        return self.indices[stretch], self.values[stretch].to(extent.dtype), self.base_values[stretch].to(extent.dtype)

    # -- algebra ---------------------------------------------------------------------------------------------------

    def keep(self, mask: Tensor) -> "SparseDelta":
        """The weights for which `mask` (bool [weights]) is true."""
        counts = [int(mask[e.start : e.stop].sum()) for e in self.extents]
        return replace(
            self,
            extents=_restart(self.extents, counts),
            indices=self.indices[mask],
            values=self.values[mask],
            base_values=self.base_values[mask],
        )

    def inverse(self) -> "SparseDelta":
        """The delta that leads back, from tuned values to base values. Its base is this delta's result, so the fingerprint is dropped."""
        return replace(self, values=self.base_values, base_values=self.values, base_fingerprint="", base_digests=())

    def overlap(self, other: "SparseDelta") -> float:
        """The share of the other's weights that this delta touches too, |A and B| / |B| (Panigrahi et al., section 5)."""
        shared = sum(
            int(torch.isin(other.part(n)[0], self.part(n)[0]).sum()) for n in self.tensors.keys() & other.tensors.keys()
        )
        return shared / other.weights if other.weights else 0.0

    # -- use -------------------------------------------------------------------------------------------------------

    def write_into(self, named: Mapping[str, Tensor], *, restore: bool = False) -> None:
        """Put the tuned values (or, with `restore`, the base values) into tensors in memory, such as a model's parameters."""
        with torch.no_grad():
            for name in self.tensors:
                index, tuned, base = self.part(name)
                target = named[name]
                target.view(-1)[index.to(target.device)] = (base if restore else tuned).to(target.device, target.dtype)

    def changes(self, checkpoint: Checkpoint, *, revert: bool = False, edits: Mapping[str, Edit] | None = None) -> int:
        """How many of the checkpoint's weights applying (or reverting, or `edits`) would change; none where that is done."""
        count = 0
        for name, edit in (self.edits(revert=revert) if edits is None else edits).items():
            entry = checkpoint.entries.get(name)
            if entry is None or (entry.shape, entry.dtype) != (self.tensors[name].shape, self.tensors[name].dtype):
                continue
            if entry.file.suffix == ".safetensors":  # mapped: only the pages that hold them are read
                held = np.memmap(entry.file, edit.wanted.dtype, "r", entry.start, (entry.size,))[edit.indices]
            else:
                held = as_integers(checkpoint.tensor(name).reshape(-1)).numpy().view(edit.wanted.dtype)[edit.indices]
            count += int((held != edit.wanted).sum())
        return count

    def edits(self, *, revert: bool = False) -> dict[str, Edit]:
        """What `surgery.checkpoints.patching` needs to apply or revert, by tensor."""
        made = {}
        for name, extent in self.tensors.items():
            index, tuned, base = self.part(name)
            raw = [values.view(torch.uint8).numpy().view(bits(extent.dtype.itemsize)) for values in (base, tuned)]
            made[name] = Edit(index.numpy(), raw[0], raw[1], raw[0] if revert else raw[1])
        return made

    # -- file ------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The content of `skill.safetensors`, the same bytes for the same delta."""
        table = [[e.name, _CODES[e.dtype], list(e.shape), e.start, e.stop] for e in self.extents]
        header = {
            **self.metadata,
            "format": "surgery.sparse-delta",
            "schema": str(SCHEMA),
            "movable": str(self.movable),
            "base_fingerprint": self.base_fingerprint,
            "tensors": json.dumps(table, separators=(",", ":")),
            "checksum": self._checksum(),
            **({"traits": self.traits.to_json()} if self.traits else {}),
        }
        digests = np.frombuffer(bytes.fromhex("".join(self.base_digests)), np.uint8).reshape(-1, 8)
        arrays = {
            "indices": self.indices.to(torch.uint32),
            "values": self.values.contiguous(),
            "base_values": self.base_values.contiguous(),
            "digests": torch.from_numpy(digests.copy()),
        }
        return sort_header(save(arrays, metadata=header))

    def _checksum(self) -> str:
        """Tells a changed bit in the arrays, which else would be applied unseen if it is in a tuned value."""
        total = xxhash.xxh3_128()
        for array in (self.indices, self.values, self.base_values):
            total.update(array.contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    @classmethod
    def load(cls, file: str | Path) -> "SparseDelta":
        """Read and check a file that `to_bytes` made; raises SkillError for one that is damaged or isn't a delta."""
        file = Path(file)
        try:
            with safe_open(file, "pt") as opened:
                header = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError:
            if (file.parent / LOW_RANK_FILE).exists():
                raise SkillError(
                    f"{file.parent} is a skill of low rank, which moves every weight of its matrices: name a skill of weights"
                ) from None
            raise SkillError(f"{file} is missing: name a skill folder") from None
        except (SafetensorError, OSError) as error:
            raise SkillError(f"{file} is damaged ({error}): make or fetch it again") from None
        if header.get("format") != "surgery.sparse-delta":
            raise SkillError(f"{file} is no skill file: its header doesn't say surgery.sparse-delta")
        if header.get("schema") != str(SCHEMA):
            raise SkillError(
                f"{file} has schema {header.get('schema')}, this version reads {SCHEMA}: install the version that wrote it"
            )
        known = {"format", "schema", "movable", "base_fingerprint", "tensors", "checksum", "traits"}
        try:
            if arrays["indices"].dtype != torch.uint32:
                raise ValueError(f"indices of {arrays['indices'].dtype}")
            if arrays["digests"].dtype != torch.uint8 or arrays["digests"].shape[1:] != (8,):
                raise ValueError("digests that aren't eight bytes each")
            delta = cls(
                extents=tuple(
                    Extent(name, DTYPES[code], tuple(shape), start, stop)
                    for name, code, shape, start, stop in parse_json(header["tensors"], list[_TableRow])
                ),
                indices=arrays["indices"].to(torch.int64),
                values=arrays["values"],
                base_values=arrays["base_values"],
                movable=int(header["movable"]),
                base_fingerprint=header["base_fingerprint"],
                base_digests=tuple(bytes(row).hex() for row in arrays["digests"].numpy()),
                traits=Traits.from_json(header["traits"]) if "traits" in header else None,
                metadata={key: value for key, value in header.items() if key not in known},
            )
            if delta._checksum() != header["checksum"]:
                raise SkillError("its weights don't match its checksum: make or fetch it again")
            return delta
        except SkillError as error:
            raise SkillError(f"{file}: {error}") from None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise SkillError(
                f"{file}: its header or arrays can't be read ({error!r}): make or fetch it again"
            ) from None


def sort_header(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which the library puts in another order at each call."""
    stop = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:stop])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # the arrays begin at a multiple of 8, as the library has it
    return len(raw).to_bytes(8, "little") + raw + content[stop:]


def _check(delta: SparseDelta) -> None:
    weights = len(delta.indices)
    arrays = delta.indices, delta.values, delta.base_values
    if any(array.dim() != 1 for array in arrays) or delta.values.dtype != delta.base_values.dtype:
        raise SkillError("indices, values and base values must be flat arrays, the latter two of one dtype")
    if len(delta.values) != weights or len(delta.base_values) != weights:
        raise SkillError(
            f"{weights} indices, {len(delta.values)} values and {len(delta.base_values)} base values don't match"
        )
    if delta.movable < weights:
        raise SkillError(f"{weights} weights can't come from {delta.movable} movable ones")
    position = 0
    names = [extent.name for extent in delta.extents]
    if names != sorted(set(names)):
        raise SkillError("the tensor table isn't sorted by name without repeats")
    for extent in delta.extents:
        if extent.start != position or extent.stop <= extent.start or extent.stop > weights:
            raise SkillError(
                f"tensor {extent.name}: the table's extent {extent.start}:{extent.stop} doesn't follow the one before"
            )
        if extent.size > _COUNTABLE:
            raise SkillError(f"tensor {extent.name} has {extent.size:,} weights, more than 32-bit indices can count")
        position = extent.stop
        index = delta.indices[extent.start : extent.stop]
        steps = index.diff()
        if bool((steps == 0).any()):
            raise SkillError(f"tensor {extent.name}: index {int(index[1:][steps == 0][0])} stands twice")
        if bool((steps < 0).any()):
            raise SkillError(f"tensor {extent.name}: the indices aren't sorted")
        if int(index[0]) < 0 or int(index[-1]) >= extent.size:
            wrong = int(index[0] if index[0] < 0 else index[-1])
            raise SkillError(f"tensor {extent.name}: index {wrong} is out of range for {extent.size:,} weights")
        if _widest([extent.dtype, delta.values.dtype]) != delta.values.dtype:
            raise SkillError(
                f"tensor {extent.name} is {extent.dtype}, which the values' {delta.values.dtype} can't hold"
            )
    if position != weights:
        raise SkillError(f"the tensor table covers {position} of {weights} weights")


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors:
        return torch.empty(0)
    widest = _widest([tensor.dtype for tensor in tensors])
    return torch.cat([tensor.to(widest) for tensor in tensors])


def _widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    try:
        return reduce(torch.promote_types, dtypes)
    except RuntimeError:  # 8-bit floats have no common type with others
        raise SkillError(f"tensors of {' and '.join(sorted(set(map(str, dtypes))))} can't share one skill") from None


def as_integers(tensor: Tensor) -> Tensor:
    """The tensor's bits, as integers of the same size."""
    return tensor.contiguous().view(_INTEGERS[tensor.dtype.itemsize])


def _restart(extents: Sequence[Extent], counts: Sequence[int]) -> tuple[Extent, ...]:
    made: list[Extent] = []
    start = 0
    for extent, count in zip(extents, counts, strict=True):
        if count:
            made.append(replace(extent, start=start, stop=start + count))
            start += count
    return tuple(made)
