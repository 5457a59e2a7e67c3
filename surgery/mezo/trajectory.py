"""Trajectory: the few bytes a step from which tuned weights can be made again, at any step, bit for bit; and those weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.checkpoints.delta import SKILL_FILE, SparseDelta
from surgery.checkpoints.models import load_model, load_tokenizer
from surgery.errors import CheckpointError, OptionError
from surgery.files import check_apart, new_folder, replace_bytes, replace_json
from surgery.jsonfile import JsonError, load_json, parse_json
from surgery.mezo.adapters import save_adapter
from surgery.mezo.noise import Noise
from surgery.mezo.walk import MadeTensors, Precision, Walk
from surgery.mezo.weights import LowRankTensor, RegionTensor
from surgery.provenance import provenance
from surgery.reporting.results import Result, Shown
from surgery.tasks.readout import PhraseReadout, readout_file
from surgery.tasks.task import Task

TRAJECTORY_FILE = "trajectory.safetensors"
FORMAT = "surgery.mezo-trajectory"
SCHEMA = "1"
_RECENT = 20  # steps whose values are averaged


class _Header(TypedDict):
    """A file's header, as JSON."""

    base: str
    noise: Literal["rademacher", "gaussian"]
    seed: int
    precision: Precision
    momentum: float
    rank: int | None
    tensors: list[str]
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trajectory(Walk, Shown):
    """A walk that is shown, kept in a file and replayed."""

    @property
    def summary(self) -> list[str]:
        """What it moves, and how far."""
        what = f"{sum(map(len, self.region.values())):,} weights" if self.region else f"{len(self.tensors):,} tensors"
        path = float(np.abs(self.coefficients).sum())
        return [
            f"{self.steps:,} steps of {what} in {len(self.to_bytes()):,} bytes; each weight moved {path:.2g} back and forth."
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The movement of each tenth of the steps."""
        stops = sorted({-(-self.steps * tenth // 10) for tenth in range(1, 11)})
        rows: list[list[Any]] = [
            [stop, float(np.abs(self.coefficients[start:stop]).sum())] for start, stop in pairwise([0, *stops])
        ]
        return ["step", "movement of a weight"], rows

    def replay(
        self, base: str | Path | Checkpoint, to: int | None = None, *, device: str | torch.device | None = None
    ) -> "MezoTuned":
        """The checkpoint that the tuning had made by a step, in seconds and without data.

        Raises CheckpointError for another base, OptionError for a step that isn't there.
        """
        walked, checkpoint = self if to is None else self.cut(to), open_checkpoint(base)
        walked.check_base(checkpoint)
        task = Task.from_spec(walked.about["task"])
        readout = None
        if checkpoint.structure.kind == "encoder":
            readout = PhraseReadout.of(load_model(checkpoint, device=device), task)
        call = {"base": str(checkpoint), "method": "mezo, replayed", "include": [], "exclude": []}
        report = {
            **provenance(call={"tune": call}, inputs={"base": checkpoint.fingerprint}),
            "task": task.spec(),
            **walked.counts(checkpoint),
            "losses": [],
            "dev": [],
            "stopped_at": walked.steps,
        }
        return MezoTuned(checkpoint, walked, task, readout, report)

    def to_bytes(self) -> bytes:
        """A safetensors file: four bytes a step and direction, the region's places, and a header."""
        header: _Header = {
            "base": self.base,
            "noise": "gaussian" if self.noise.kind == "gaussian" else "rademacher",
            "seed": self.noise.seed,
            "precision": self.precision,
            "momentum": self.momentum,
            "rank": self.rank,
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
                rank=header["rank"],
                about=header["about"],
            )
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: name a trajectory.safetensors") from None
        except (SafetensorError, OSError, KeyError, ValueError, JsonError) as error:
            raise CheckpointError(f"{path} can't be read as a trajectory ({error}): make or fetch it again") from None


@dataclass(frozen=True, eq=False)
class MezoTuned(Result):
    """A checkpoint tuned by MeZO: its base, and the trajectory that its weights are made again from.

    Attributes:
        readout: the base's phrase embeddings, for a sentence encoder.
        report: what was done; fewer fields for one that was replayed.
    """

    base: Checkpoint
    trajectory: Trajectory
    task: Task
    readout: PhraseReadout | None
    report: dict[str, Any]

    @property
    def tensors(self) -> MadeTensors:
        """The tuned tensors, each made when it is asked for."""
        return MadeTensors(self.trajectory, self.base)

    @property
    def summary(self) -> list[str]:
        """How far it went, and how the objective and the dev examples came out."""
        report = self.report
        sentences = [f"{report['moved']:,} of {report['movable']:,} weights moved in {self.trajectory.steps:,} steps."]
        if last := report["losses"][-_RECENT:]:
            sentences.append(f"The objective came to {sum(last) / len(last):.3f} over the last {len(last)} steps.")
        if dev := report["dev"]:
            best = max(dev, key=lambda scored: scored["value"])
            sentences.append(
                f"The weights kept are those of step {best['step']:,}, {best['value']:.3f} on the dev examples."
            )
        return sentences

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Mean objective up to each evaluation of the dev examples, or each tenth of the way, and what they scored there."""
        losses, dev = self.report["losses"], {scored["step"]: scored for scored in self.report["dev"]}
        stops = sorted(dev) or sorted({-(-len(losses) * tenth // 10) for tenth in range(1, 11)})
        rows: list[list[Any]] = []
        for start, stop in pairwise([0, *stops]):
            mean = float(np.mean(losses[start:stop])) if losses[start:stop] else None
            rows.append([stop, mean, dev[stop]["value"] if stop in dev else None])
        return ["step", "objective", self.task.metric], rows

    def skill(self) -> SparseDelta:
        """The tuned region as a skill's delta; raises OptionError where whole tensors were tuned."""
        if self.trajectory.region is None:
            raise OptionError("only a region's weights make a skill: tune with `only` or `where`")
        region, parts = self.trajectory.region, {}
        for name in self.trajectory.tensors:
            made = self.trajectory.weights(self.base, name)
            assert isinstance(made, RegionTensor)
            parts[name] = (region[name], made.values)
        return SparseDelta.from_parts(
            self.base,
            parts,
            movable=sum(self.base.entries[name].size for name in self.base.block_weights()),
            metadata={"task": json.dumps(self.task.spec()), "metrics": "{}"},
        )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a Hugging Face folder with the base's files, dtypes and tensor names, the trajectory and `report.json`.

        A tuned region is written as a skill too, in the folder's `skill`; low-rank factors as `peft` reads them, in its
        `adapter`.
        """
        check_apart(Path(folder), self.base.folder)
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            rewrite(self.base, self.tensors, staged)
            readouts = {readout_file(self.task): self.readout.to_bytes()} if self.readout else {}
            for name, content in readouts.items():
                replace_bytes(staged / name, content)
            self.trajectory.save(staged / TRAJECTORY_FILE)
            replace_json(staged / "report.json", self.report)
            if self.trajectory.region is not None:
                self._save_skill(staged / "skill", readouts)
            if self.trajectory.rank is not None:
                made = [self.trajectory.weights(self.base, name) for name in self.trajectory.tensors]
                low = [tensor for tensor in made if isinstance(tensor, LowRankTensor)]
                save_adapter(staged / "adapter", self.base, low, self.trajectory.rank)
        return Path(folder)

    def _save_skill(self, folder: Path, readouts: dict[str, bytes]) -> None:
        delta = self.skill()
        for name, content in {SKILL_FILE: delta.to_bytes(), **readouts}.items():
            replace_bytes(folder / name, content)
        call = {"graft": {"base": str(self.base), "weights": delta.weights}}
        figures = {"weights": delta.weights, "sparsity": delta.sparsity, "movable": delta.movable, "method": "mezo"}
        made = {key: self.report[key] for key in ("schema", "surgery", "made", "inputs", "seed")}
        replace_json(folder / "report.json", {**made, "call": call, "task": self.task.spec(), **figures})

    @classmethod
    def load(cls, folder: str | Path, base: str | Path | Checkpoint | None = None) -> "MezoTuned":
        """Read what `save` wrote, without the task's examples.

        Args:
            base: what it was tuned from; by default where that lay then.

        Raises:
            CheckpointError: no report of such a tuning, or a base that isn't the one it names.
        """
        path = Path(folder).expanduser() / "report.json"
        try:
            report = load_json(path, dict[str, Any])
            call, task = report["call"]["tune"], Task.from_spec(report["task"])
            report["losses"], report["dev"], report["moved"], report["movable"]
        except (OSError, JsonError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is no report of a tuning by MeZO ({error!r}): name a folder that it wrote"
            ) from None
        trajectory = Trajectory.load(path.with_name(TRAJECTORY_FILE))
        before, after = open_checkpoint(call["base"] if base is None else base), Checkpoint(folder)
        trajectory.check_base(before)
        return cls(before, trajectory, task, _kept_readout(after, task), report)


def _kept_readout(checkpoint: Checkpoint, task: Task) -> PhraseReadout | None:
    file = checkpoint.folder / readout_file(task)
    if checkpoint.structure.kind != "encoder" or not file.exists():
        return None
    phrases = tuple(task.phrases[label] for label in task.labels)
    return PhraseReadout.from_file(file, load_tokenizer(checkpoint), phrases, task.max_length)


def _checksum(header: str, arrays: Mapping[str, Tensor]) -> str:
    total = xxhash.xxh3_128(header.encode())
    for name in sorted(arrays):
        total.update(name.encode())
        total.update(arrays[name].contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
