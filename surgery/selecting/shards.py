"""Shards: rows' features on disk, normalised, in 16, 8 or 1 bit a number, read a few rows at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from surgery.errors import OptionError, SelectionError
from surgery.jsonfile import JsonError, load_named
from surgery.selecting.seals import digest_of, opened
from surgery.selecting.warmup import Checkpoints
from surgery.tasks.rows import RowFile

FORMAT = "surgery features 1"
PRECISIONS = ("float16", "int8", "bit")
_TINY = torch.finfo(torch.float32).tiny
GRADIENT = "gradient"  # beside the maps: the largest number of each row's own gradient
_CHUNK = 256  # rows unpacked at once


class Header(TypedDict):
    """What a store of features says of itself in `report.json`."""

    format: str
    base: str
    fingerprint: str
    rows: int
    shard_rows: int
    maps: list[str]
    precision: str
    sketch: int
    seed: int
    length: int
    weights: int
    loss: str
    max_length: int
    answers: list[str]
    sources: list[str]
    hidden: bool
    remarks: list[str]
    call: dict[str, Any]
    origin: dict[str, Any]
    digest: NotRequired[str]  # of the rows' file


@dataclass(frozen=True, repr=False)
class Store:
    """A folder of features: `report.json`, the pool's rows, the warm-up, and shards of consecutive rows.

    Attributes:
        header: what it was made of and with.
    """

    folder: Path
    header: Header
    _checked: set[int] = field(default_factory=set, compare=False)

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Open a store; raises SelectionError for anything else."""
        path = Path(folder).expanduser()
        try:
            header = load_named(path / "report.json", FORMAT, Header)
        except (OSError, JsonError) as error:
            raise SelectionError(
                f"{path / 'report.json'} can't be read as a store of features ({error}): name a folder that `surgery select` wrote"
            ) from None
        return cls(path, header)

    def __len__(self) -> int:
        return self.header["rows"]

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The warm-up's checkpoints."""
        return Checkpoints.load(self.folder / "warmup")

    @cached_property
    def about(self) -> Mapping[str, NDArray]:
        """Columns of numbers, one a row: `key`, `tokens`, `source` (its number), `offsets` (one more)."""
        return about_rows(self.folder)

    @cached_property
    def pool(self) -> RowFile:
        """The pool's rows; raises SelectionError for a file that isn't what was written."""
        file = self.folder / "pool.jsonl"
        if not file.exists() or self.header.get("digest", "") not in ("", digest_of([file])):
            raise SelectionError(f"{file} isn't what was written: collect the features again")
        return RowFile(file, self.about["offsets"])

    def chunks(self, name: str) -> Iterator[tuple[slice, Float[Tensor, "chunk length"]]]:
        """A map's features at a checkpoint (`adam.0`), or `hidden`, in float32, and which rows they are of; one chunk in memory at a time."""
        for shard in range(shard_count(len(self), self.header["shard_rows"])):
            first = shard * self.header["shard_rows"]
            with self._shard(shard) as file:
                rows = file.get_slice(name).get_shape()[0]
                for start in range(0, rows, _CHUNK):
                    place = slice(start, min(start + _CHUNK, rows))
                    yield slice(first + place.start, first + place.stop), self._read(file, name, place)

    def row(self, name: str, number: int) -> Float[Tensor, " length"]:
        """One row's features."""
        shard, place = divmod(number, self.header["shard_rows"])
        with self._shard(shard) as file:
            return self._read(file, name, slice(place, place + 1))[0]

    def _shard(self, number: int) -> Any:
        """A shard's file, whose content is checked when it is first opened."""
        found = opened(shard_file(self.folder, number), check=number not in self._checked)
        self._checked.add(number)
        return found

    def _read(self, file: Any, name: str, place: slice) -> Float[Tensor, "chunk length"]:
        values = file.get_slice(name)[place]
        scale = file.get_slice(f"{name}.scale")[place] if values.dtype == torch.int8 else None
        found = unpack(values, scale, self.header["length"])
        if values.dtype == torch.uint8:  # signs, which zeros have none of
            found[file.get_slice(f"{name}.norm")[place] == 0] = 0.0
        return found

    @cached_property
    def broken(self) -> NDArray[np.bool_]:
        """Which rows' gradients are NaN or infinite."""
        found = np.zeros(len(self), bool)
        for shard in range(shard_count(len(self), self.header["shard_rows"])):
            first = shard * self.header["shard_rows"]
            with self._shard(shard) as file:
                for name in file.keys():  # noqa: SIM118 (no dictionary)
                    if name.startswith(f"{GRADIENT}."):
                        norms = file.get_tensor(name).numpy()
                        found[first : first + len(norms)] |= np.isnan(norms)
        return found

    def norms(self, name: str) -> Float[Tensor, " rows"]:
        """The features' norms before they were normalised."""
        found = []
        for shard in range(shard_count(len(self), self.header["shard_rows"])):
            with self._shard(shard) as file:
                found.append(file.get_tensor(f"{name}.norm"))
        return torch.cat(found)


def about_rows(folder: Path) -> dict[str, NDArray]:
    """The columns of `rows.safetensors`."""
    with opened(folder / "rows.safetensors") as file:
        return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (no dictionary)


def shard_count(rows: int, shard_rows: int) -> int:
    """Number of shards."""
    return -(-rows // shard_rows)


def shard_file(folder: Path, number: int) -> Path:
    """A shard's file."""
    return folder / f"features-{number:05d}.safetensors"


def normalised(features: Float[Tensor, "rows length"]) -> tuple[Float[Tensor, "rows length"], Float[Tensor, " rows"]]:
    """Features of norm 1, and their norms; rows of zeros stay zeros, however small others are."""
    largest = features.abs().amax(1)
    near_one = features / largest.clamp_min(_TINY)[:, None]  # whose squares are neither 0 nor infinite
    norms = near_one.norm(dim=1)
    return near_one / norms.clamp_min(_TINY)[:, None], norms * largest


def pack(features: Float[Tensor, "rows length"], precision: str) -> tuple[dict[str, Tensor], Float[Tensor, " rows"]]:
    """Normalised features as they are kept, by the ending of their name; and their norms. Rows of zeros stay zeros.

    `int8` has a scale a row, the largest number / 127; `bit` keeps signs.
    """
    unit, norms = normalised(features)
    if precision == "float16":
        return {"": unit.half()}, norms
    if precision == "int8":
        scale = unit.abs().amax(1).clamp_min(_TINY) / 127
        return {"": (unit / scale[:, None]).round().to(torch.int8), ".scale": scale}, norms
    if precision == "bit":
        return {"": torch.from_numpy(np.packbits(unit.numpy() >= 0, axis=1))}, norms
    raise OptionError(f"`precision` {precision} isn't one of {', '.join(PRECISIONS)}")


def unpack(values: Tensor, scale: Tensor | None, length: int) -> Float[Tensor, "rows length"]:
    """What `pack` kept as float32; signs as numbers of norm 1 together."""
    if values.dtype == torch.uint8:
        bits = torch.from_numpy(np.unpackbits(values.numpy(), axis=1, count=length))
        return bits.float().mul_(2).sub_(1).mul_(length**-0.5)
    return values.float() if scale is None else values.float() * scale[:, None]
