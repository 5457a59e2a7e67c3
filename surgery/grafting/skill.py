"""Skill: the sparse delta that carries a task from base to tuned, with its evidence, as a folder to keep or send."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from surgery.checkpoints.applying import Direction, check_place, patch_folder, write_patched
from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.copies import STACK
from surgery.checkpoints.delta import LOW_RANK_FILE, SKILL_FILE, SparseDelta
from surgery.checkpoints.hub import located
from surgery.checkpoints.low_rank import LowRankDelta
from surgery.errors import OptionError, SkillError, TaskError
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.grafting.card import by_block, counts_of, figures_table, sentences, skill_page
from surgery.grafting.figures import draw
from surgery.grafting.low_rank_files import add_factors, take_out_factors
from surgery.grafting.schema import check_report
from surgery.grafting.stack import Layer, is_stacked, restack
from surgery.jsonfile import JsonError, load_json, parse_json
from surgery.progress import Progress, silent
from surgery.reporting.results import Result
from surgery.tasks.readout import readout_file
from surgery.tasks.task import Task

FURTHER_TASKS = "further_tasks"  # in the file's header: a list of specs, each as `task` is one


class Carried(NamedTuple):
    """A task that a skill carries, and the file that goes beside a sentence encoder, so that it is read as its base was."""

    task: Task
    readout: bytes | None = None


@dataclass(frozen=True, eq=False)
class Skill(Result):
    """What `graft` finds, or `merge_skills` makes of several.

    Attributes:
        delta: which weights, their base and their tuned values; none for a skill of low rank.
        task: the task without its examples.
        report: figures and provenance; `report["graft"]["accuracy"]` and so on.
        readout: the file that goes beside a grafted sentence encoder, so that it is read as its base was; else None.
        further: more tasks that a merged skill carries.
        factors: what a skill of low rank adds to the base's matrices; None for one of weights.
    """

    delta: SparseDelta
    task: Task
    report: Mapping[str, Any]
    readout: bytes | None = None
    further: tuple[Carried, ...] = ()
    factors: LowRankDelta | None = None

    @property
    def carried(self) -> tuple[Carried, ...]:
        """All tasks that the skill carries."""
        return (Carried(self.task, self.readout), *self.further)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks alone."""
        return tuple(task for task, _ in self.carried)

    @property
    def name(self) -> str:
        """The names of its tasks: `trec`, `trec + subj`."""
        return " + ".join(task.name for task in self.tasks)

    @property
    def readouts(self) -> dict[str, bytes]:
        """The files that go beside a grafted sentence encoder, by name."""
        return {readout_file(task): content for task, content in self.carried if content}

    @property
    def layer(self) -> Layer:
        """The skill as `surgery.grafting.stack` takes it; raises SkillError for one of low rank."""
        if self.factors is not None:
            raise SkillError(
                f"the skill {self.name} is of low rank: it moves every weight of its matrices, so it can't be stacked, merged or "
                "compared with skills of few weights; apply it to its base alone"
            )
        return Layer(self.name, self.delta, self.readouts)

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Each touched tensor's name and how many weights, or numbers of its factors, the skill holds of it."""
        return counts_of(self.held)

    @property
    def summary(self) -> list[str]:
        """What it is, and how much of what tuning gained it carries."""
        return sentences(self.held, self.tasks, self.report)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Figures of base, tuned and graft; for a skill without any, its weights by block."""
        return figures_table(self.report) if "graft" in self.report else (["block", "weights"], by_block(self.counts))

    def save(self, folder: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write `skill.safetensors`, `report.json`, figures, and a page of them: `README.md`, a model card, and `index.html`."""
        content = self.delta_bytes()
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_bytes(staged / (LOW_RANK_FILE if self.factors else SKILL_FILE), content)
            for name, readout in self.readouts.items():
                replace_bytes(staged / name, readout)
            replace_json(staged / "report.json", {**self.report, "bytes": len(content)})
            drawn = draw(self.counts, self.report, staged) if figures else []
            skill_page(self.held, self.tasks, self.report, [path.name for path in drawn]).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Skill":
        """Read a skill's folder, or fetch it by its hub id; raises SkillError for a damaged one."""
        folder = located(folder, SkillError)
        delta, factors = _held(folder)
        try:
            path = folder / "report.json"
            report = load_json(path, dict[str, Any]) if path.exists() else {}
            report = report or parse_json(delta.metadata.get("metrics", "{}"), dict[str, Any])
            check_report(report)
            specs = [delta.metadata["task"], *parse_json(delta.metadata.get(FURTHER_TASKS, "[]"), list[str])]
            tasks = [Task.from_spec(spec) for spec in specs]
        except TaskError as error:
            raise SkillError(f"{folder}: {error}") from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            what = str(error) if isinstance(error, JsonError) else repr(error)
            raise SkillError(f"{folder}: its report or task can't be read ({what}): make or fetch it again") from None
        first, *further = [Carried(task, _content(folder / readout_file(task))) for task in tasks]
        return cls(delta, first.task, report, first.readout, tuple(further), factors)

    def delta_bytes(self) -> bytes:
        """The content of `skill.safetensors`: 12 bytes a weight in float32, a table of tensors, the task and the main figures.

        For a skill of low rank that of `low-rank.safetensors`: 4 bytes a number.
        """
        return self.held.to_bytes()

    @property
    def held(self) -> SparseDelta | LowRankDelta:
        """What is applied."""
        return self.delta if self.factors is None else self.factors

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

        Applying twice is applying once. A skill of low rank goes into a new folder only, and only into the base itself.
        Raises SkillError when the checkpoint isn't the skill's base.
        """
        if self.factors is not None:
            check_place(checkpoint, output, in_place)
            return add_factors(self.factors, self.readouts, checkpoint, output, overwrite=overwrite)
        return self._write("apply", checkpoint, output, in_place, overwrite, progress)

    def revert(
        self,
        checkpoint: str | Path | Checkpoint,
        output: str | Path | None = None,
        *,
        in_place: bool = False,
        overwrite: bool = False,
        base: str | Path | Checkpoint | None = None,
        progress: Progress = silent,
    ) -> Path:
        """The inverse of `apply`: gives back the base's files byte for byte.

        Args:
            base: the skill's base, which one of low rank needs: it holds none of the base's values. Others do without.
        """
        if self.factors is not None:
            check_place(checkpoint, output, in_place)
            return take_out_factors(self.factors, self.readouts, checkpoint, output, base, overwrite=overwrite)
        if base is not None:
            raise OptionError("`base` is for skills of low rank: this one holds the base's values itself")
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
        extra = self.readouts
        opened = Checkpoint(checkpoint, half_patched=True) if in_place else open_checkpoint(checkpoint)
        if is_stacked(opened.folder, self.delta):
            place: dict[str, Any] = {"in_place": in_place, "overwrite": overwrite, "progress": progress}
            return restack(direction, [self.layer], opened, output, **place).folder
        if in_place and (opened.folder / STACK).exists():
            raise SkillError(f"{opened} holds a stack on another base than the skill's: write into a new folder")
        if in_place:
            return patch_folder(self.delta, opened.folder, direction=direction, add=extra, drop=extra)
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


def _held(folder: Path) -> tuple[SparseDelta, LowRankDelta | None]:
    """A folder's weights, or its factors and no weights."""
    if not (folder / LOW_RANK_FILE).exists():
        return SparseDelta.load(folder / SKILL_FILE), None
    if (folder / SKILL_FILE).exists():
        raise SkillError(
            f"{folder} holds {SKILL_FILE} and {LOW_RANK_FILE}, one of which is another skill's: make or fetch it again"
        )
    factors = LowRankDelta.load(folder / LOW_RANK_FILE)
    about: dict[str, Any] = {"movable": factors.movable, "base_fingerprint": factors.base_fingerprint}
    return SparseDelta.from_rows((), **about, metadata=factors.metadata, traits=factors.traits), factors


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
