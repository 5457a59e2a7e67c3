"""Skill: the sparse delta that carries a task from base to tuned, with its evidence, as a folder to keep or send."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.checkpoints.applying import Direction, patch_folder, write_patched
from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.hub import located
from surgery.errors import CheckpointError, OptionError, SkillError, TaskError
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.grafting.card import model_card
from surgery.grafting.figures import draw
from surgery.grafting.schema import check_report
from surgery.jsonfile import JsonError, load_json, parse_json
from surgery.progress import Progress, silent
from surgery.tasks.readout import readout_file
from surgery.tasks.task import Task

SKILL_FILE = "skill.safetensors"


@dataclass(frozen=True, eq=False)
class Skill:
    """What `graft` finds.

    Attributes:
        delta: which weights, their base and their tuned values.
        task: the task without its examples.
        report: figures and provenance; `report["graft"]["accuracy"]` and so on.
        readout: the file that goes beside a grafted sentence encoder, so that it is read as its base was; else None.
    """

    delta: SparseDelta
    task: Task
    report: Mapping[str, Any]
    readout: bytes | None = None

    def save(self, folder: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write `skill.safetensors`, `report.json`, a model card and figures."""
        content = self.delta_bytes()
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_bytes(staged / SKILL_FILE, content)
            if self.readout:
                replace_bytes(staged / readout_file(self.task), self.readout)
            replace_json(staged / "report.json", {**self.report, "bytes": len(content)})
            drawn = draw(self.delta, self.report, staged) if figures else []
            replace_bytes(
                staged / "README.md",
                model_card(self.delta, self.task, self.report, [path.name for path in drawn]).encode(),
            )
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Skill":
        """Read a skill's folder, or fetch it by its hub id; raises SkillError for a damaged one."""
        folder = located(folder, SkillError)
        delta = SparseDelta.load(folder / SKILL_FILE)
        try:
            path = folder / "report.json"
            report = load_json(path, dict[str, Any]) if path.exists() else {}
            report = report or parse_json(delta.metadata.get("metrics", "{}"), dict[str, Any])
            check_report(report)
            task = Task.from_spec(delta.metadata["task"])
        except TaskError as error:
            raise SkillError(f"{folder}: {error}") from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            what = str(error) if isinstance(error, JsonError) else repr(error)
            raise SkillError(f"{folder}: its report or task can't be read ({what}): make or fetch it again") from None
        readout = folder / readout_file(task)
        return cls(
            delta,
            task,
            report,
            readout.read_bytes() if readout.exists() else None,
        )

    def delta_bytes(self) -> bytes:
        """The content of `skill.safetensors`: 12 bytes a weight in float32, a table of tensors, the task and the main figures."""
        return self.delta.to_bytes()

    def apply(
        self,
        checkpoint: str | Path | Checkpoint,
        output: str | Path | None = None,
        *,
        in_place: bool = False,
        overwrite: bool = False,
        progress: Progress = silent,
    ) -> Path:
        """Graft the skill into its base: a new Hugging Face folder, or the base's own files with `in_place`.

        Applying twice is applying once. Raises SkillError when the checkpoint isn't the skill's base.
        """
        return self._write("apply", checkpoint, output, in_place, overwrite, progress)

    def revert(
        self,
        checkpoint: str | Path | Checkpoint,
        output: str | Path | None = None,
        *,
        in_place: bool = False,
        overwrite: bool = False,
        progress: Progress = silent,
    ) -> Path:
        """The inverse of `apply`: gives back the base's files byte for byte."""
        return self._write("revert", checkpoint, output, in_place, overwrite, progress)

    def _write(
        self,
        direction: Direction,
        checkpoint: str | Path | Checkpoint,
        output: str | Path | None,
        in_place: bool,
        overwrite: bool,
        progress: Progress,
    ) -> Path:
        check_place(checkpoint, output, in_place)
        extra = {readout_file(self.task): self.readout} if self.readout else {}
        if in_place:
            folder = checkpoint.folder if isinstance(checkpoint, Checkpoint) else Path(checkpoint)
            return patch_folder(self.delta, folder, direction=direction, add=extra, drop=extra)
        opened = open_checkpoint(checkpoint)
        assert output is not None
        return write_patched(
            self.delta,
            opened,
            output,
            direction=direction,
            overwrite=overwrite,
            add=extra,
            drop=extra,
            progress=progress,
        )


def check_place(checkpoint: str | Path | Checkpoint, output: str | Path | None, in_place: bool) -> None:
    """Refuse no place to write to, or two, and a hub id to be patched in place, before anything is fetched."""
    if in_place == (output is not None):
        raise OptionError("give an output folder or --in-place (in_place=True), one of the two")
    if in_place and not isinstance(checkpoint, Checkpoint) and not Path(checkpoint).is_dir():
        raise CheckpointError(f"{checkpoint} is not a folder: only a checkpoint on this disk can be patched in place")
