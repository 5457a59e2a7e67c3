"""Trajectory: the few bytes a step from which tuned weights can be made again, at any step, bit for bit."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.errors import CheckpointError, OptionError
from surgery.files import replace_bytes
from surgery.jsonfile import JsonError, parse_json
from surgery.mezo.noise import Kind, Noise, Terms
from surgery.mezo.weights import RegionTensor, RoundedTensor, SixteenBitTensor, TunedTensor
from surgery.reporting.results import Shown

FORMAT = "surgery.mezo-trajectory"
SCHEMA = "1"
Precision = Literal["float32", "residual", "bfloat16"]
_NEGLIGIBLE = 1e-3  # of a movement that momentum carries on


class _Header(TypedDict):
    """A file's header, as JSON."""

    base: str
    noise: Kind
    seed: int
    precision: Precision
    momentum: float
    tensors: list[str]
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trajectory(Shown):
    """What moved a base's weights: each step added `coefficients[step, d]` times its noise of direction d to them.

    Attributes:
        base: the base's fingerprint.
        noise: its kind and seed.
        tensors: names of the tensors that were tuned, by their number in the noise.
        coefficients: [steps, directions], float32: minus the learning rate times the slope, over the directions.
        precision: `float32`; `residual`, bfloat16 and eight bits; or `bfloat16`, rounded after each step.
        momentum: the share of a step's movement that the next repeats.
        region: places of tuned weights by tensor, where not all of it is tuned.
        about: task, rates and whatever else a reader wants to know.
    """

    base: str
    noise: Noise
    tensors: tuple[str, ...]
    coefficients: NDArray[np.float32]
    precision: Precision = "float32"
    momentum: float = 0.0
    region: Mapping[str, Tensor] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return len(self.coefficients)

    @property
    def summary(self) -> list[str]:
        """What it moves, and how far."""
        what = f"{sum(map(len, self.region.values())):,} weights" if self.region else f"{len(self.tensors):,} tensors"
        path = float(np.abs(self.coefficients).sum())
        return [f"{self.steps:,} steps of {what} in {len(self.to_bytes()):,} bytes; each weight moved {path:.2g} back and forth."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The movement of each tenth of the steps."""
        stops = sorted({-(-self.steps * tenth // 10) for tenth in range(1, 11)})
        rows: list[list[Any]] = [
            [stop, float(np.abs(self.coefficients[start:stop]).sum())]
            for start, stop in zip([0, *stops], stops, strict=False)
        ]
        return ["step", "movement of a weight"], rows

    def cut(self, steps: int) -> "Trajectory":
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

    def tuned(self, number: int, parameter: Tensor) -> TunedTensor:
        """The tensor of this number as the trajectory tunes it, at the base; `parameter` holds its weights."""
        name = self.tensors[number]
        if self.region is not None:
            return RegionTensor(name, number, parameter, self.noise, self.region[name])
        kinds = {"float32": TunedTensor, "residual": RoundedTensor, "bfloat16": SixteenBitTensor}
        return kinds[self.precision](name, number, parameter, self.noise)

    def check_base(self, base: Checkpoint) -> None:
        """Raise CheckpointError for another base."""
        if base.fingerprint != self.base:
            raise CheckpointError(
                f"{base} isn't what the trajectory began at: its fingerprint is {base.fingerprint[:16]} instead of {self.base[:16]}; give that base"
            )

    def weights(self, base: Checkpoint, name: str, device: torch.device | None = None) -> TunedTensor:
        """One tensor at the end of the trajectory, made from the base's in one pass."""
        number = self.tensors.index(name)
        stored = base.tensor(name, device)
        whole = self.region is None and self.precision == "float32"
        tensor = self.tuned(number, stored.float() if whole else stored.bfloat16() if self.region is None else stored)
        tensor.walk(self.terms())
        return tensor

    def replay(
        self, base: "str | Path | Checkpoint", to: int | None = None, *, device: str | torch.device | None = None
    ) -> Any:
        """The checkpoint that the tuning had made by a step, as `surgery.mezo.run.MezoTuned`; without data, in seconds.

        Raises CheckpointError for another base, OptionError for a step that isn't there.
        """
        from surgery.mezo.run import replayed

        return replayed(self if to is None else self.cut(to), open_checkpoint(base), device)

    def to_bytes(self) -> bytes:
        """A safetensors file: four bytes a step and direction, the region's places, and a header."""
        header: _Header = {
            "base": self.base,
            "noise": self.noise.kind,
            "seed": self.noise.seed,
            "precision": self.precision,
            "momentum": self.momentum,
            "tensors": list(self.tensors),
            "about": dict(self.about),
        }
        told = json.dumps(header)
        arrays = {"coefficients": torch.from_numpy(np.ascontiguousarray(self.coefficients))}
        arrays |= {f"region/{name}": index.to(torch.uint32) for name, index in (self.region or {}).items()}
        checks = {"format": FORMAT, "schema": SCHEMA, "header": told, "checksum": _checksum(told, arrays)}
        return save(arrays, metadata=checks)

    def save(self, file: str | Path) -> Path:
        """Write the file."""
        replace_bytes(Path(file), self.to_bytes())
        return Path(file)

    @classmethod
    def load(cls, file: str | Path) -> "Trajectory":
        """Read and check what `save` wrote; raises CheckpointError for anything else, or a file that is cut short."""
        path = Path(file).expanduser()
        try:
            with safe_open(path, "pt") as opened:
                about = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            if about.get("format") != FORMAT or about.get("schema") != SCHEMA:
                raise ValueError("its header doesn't say that it is a trajectory of this version")
            if _checksum(about["header"], arrays) != about["checksum"]:
                raise ValueError("its content doesn't match its checksum")
            header: _Header = parse_json(about["header"], _Header)
            region = {name[7:]: index.long() for name, index in arrays.items() if name.startswith("region/")}
            return cls(
                base=header["base"],
                noise=Noise(header["noise"], header["seed"]),
                tensors=tuple(header["tensors"]),
                coefficients=arrays["coefficients"].numpy(),
                precision=header["precision"],
                momentum=header["momentum"],
                region=region or None,
                about=header["about"],
            )
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: name a trajectory.safetensors") from None
        except (SafetensorError, OSError, KeyError, ValueError, JsonError) as error:
            raise CheckpointError(f"{path} can't be read as a trajectory ({error}): make or fetch it again") from None


class ReplayedTensors(Mapping[str, Tensor]):
    """The tuned tensors of a trajectory, each made from the base's when it is asked for, in the dtype that files hold."""

    def __init__(self, trajectory: Trajectory, base: Checkpoint, device: torch.device | None = None) -> None:
        self._trajectory, self._base, self._device = trajectory, base, device

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._trajectory.tensors:
            raise KeyError(name)
        made, entry = self._trajectory.weights(self._base, name, self._device), self._base.entries[name]
        if not isinstance(made, RegionTensor):
            return made.parameter.detach().to("cpu", entry.dtype)
        whole = made.parameter.detach().clone()
        whole.view(-1)[made.indices] = made.values.to(entry.dtype)
        return whole.cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._trajectory.tensors)

    def __len__(self) -> int:
        return len(self._trajectory.tensors)


def _checksum(header: str, arrays: Mapping[str, Tensor]) -> str:
    total = xxhash.xxh3_128(header.encode())
    for name in sorted(arrays):
        total.update(name.encode())
        total.update(arrays[name].contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def coefficients_of(rate: float, slopes: Sequence[float]) -> NDArray[np.float32]:
    """What a step adds of each direction's noise: minus the learning rate times the mean slope's share."""
    return (-rate / len(slopes) * np.asarray(slopes, np.float64)).astype(np.float32)
