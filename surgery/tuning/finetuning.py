"""Plain fine-tuning with a frozen readout: what grafting starts from.

The default is SGD with a proximal L1 pull towards the base, which leaves most weights exactly where they were: then
few weights carry the skill, and grafting can find them. AdamW without L1 moves every weight a little and doesn't
localise (Panigrahi et al. 2023, section 5.2).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.checkpoints.models import load_model, load_tokenizer
from surgery.devices import pick_device
from surgery.errors import CheckpointError
from surgery.files import check_apart, new_folder, replace_bytes, replace_json
from surgery.jsonfile import JsonError, conform, load_json
from surgery.memory import check_before
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.resuming import digest, resumable
from surgery.tasks.gradients import check_gradients
from surgery.tasks.readout import PhraseReadout, pick_readout, readout_file
from surgery.tasks.task import Task
from surgery.tuning.limits import Limits, Regions
from surgery.tuning.memory_need import most_of_tuning, tune_need
from surgery.tuning.recipe import Recipe
from surgery.tuning.training import Scored, TrainingLoop, gradient_norm_at_base, mixed_precision

_RECENT = 20  # steps whose losses are averaged


@dataclass(frozen=True, eq=False)
class Tuned(Result):
    """A fine-tuned checkpoint in memory.

    Attributes:
        base: what it was tuned from.
        tensors: the tensors that may have moved, by their name in the base's files.
        readout: the base's phrase embeddings, for a sentence encoder.
        report: what was done, with losses, dev scores and the number of weights moved.
    """

    base: Checkpoint
    tensors: dict[str, Tensor]
    task: Task
    readout: PhraseReadout | None
    report: dict[str, Any]

    @property
    def summary(self) -> list[str]:
        """How many weights moved, and how the loss and the dev examples came out."""
        report = self.report
        steps, last = report["stopped_at"], report["losses"][-_RECENT:]
        moved = f"{report['moved']:,} of {report['movable']:,} block weights moved in {number_of(steps, 'step')}"
        sentences = [f"{moved}, to a loss of {sum(last) / len(last):.3f} over the last {len(last)}."]
        if dev := report["dev"]:
            best = max(dev, key=lambda scored: scored["value"])
            sentences.append(
                f"The weights kept are those of step {best['step']:,}, {best['value']:.3f} on the dev examples."
            )
        return sentences

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Mean training loss up to each evaluation of the dev examples, or each tenth of the way, and what they scored there."""
        losses, dev = self.report["losses"], {scored["step"]: scored for scored in self.report["dev"]}
        stops = sorted(dev) or sorted({-(-len(losses) * tenth // 10) for tenth in range(1, 11)})
        rows: list[list[Any]] = []
        for start, stop in pairwise([0, *stops]):
            scored: dict[str, Any] = dev.get(stop, {})
            rows.append([stop, sum(losses[start:stop]) / (stop - start), scored.get("value"), scored.get("ece")])
        return ["step", "loss", self.task.metric, "ECE"], rows

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a Hugging Face folder with the base's files, dtypes and tensor names, and `report.json`."""
        check_apart(Path(folder), self.base.folder)
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            rewrite(self.base, self.tensors, staged)
            if self.readout:
                replace_bytes(staged / readout_file(self.task), self.readout.to_bytes())
            replace_json(staged / "report.json", self.report)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, base: str | Path | Checkpoint | None = None) -> "Tuned":
        """Read what `save` wrote, without the task's examples.

        Args:
            base: what it was tuned from; by default where that lay then.

        Raises:
            CheckpointError: no report of a tuning, or a base that isn't the one it names.
        """
        path = Path(folder).expanduser() / "report.json"
        try:
            report = load_json(path, dict[str, Any])
            conform(report, _Report)
        except (OSError, JsonError) as error:
            raise CheckpointError(f"{path} is no report of a tuning ({error}): name a folder that tune wrote") from None
        call, task = report["call"]["tune"], Task.from_spec(report["task"])
        before, after = open_checkpoint(call["base"] if base is None else base), Checkpoint(folder)
        if before.fingerprint != report["inputs"]["base"]:
            raise CheckpointError(
                f"{before} isn't what {folder} was tuned from: its fingerprint differs; give that as `base`"
            )
        names = before.block_weights(call["include"], call["exclude"])
        readout = _kept_readout(after, task)
        return cls(before, {name: after.tensor(name) for name in names}, task, readout, report)


class _Call(TypedDict):
    base: str
    include: list[str]
    exclude: list[str]


class _Tune(TypedDict):
    tune: _Call


class _Inputs(TypedDict):
    base: str


class _Report(TypedDict):
    """What `Tuned` reads of its report."""

    call: _Tune
    inputs: _Inputs
    task: dict[str, Any]
    moved: int
    movable: int
    stopped_at: int
    losses: Annotated[list[float], Meta(min_length=1)]
    dev: list[Scored]


def _kept_readout(checkpoint: Checkpoint, task: Task) -> PhraseReadout | None:
    file = checkpoint.folder / readout_file(task)
    if checkpoint.structure.kind != "encoder" or not file.exists():
        return None
    phrases = tuple(task.phrases[label] for label in task.labels)
    return PhraseReadout.from_file(file, load_tokenizer(checkpoint), phrases, task.max_length)


# Long: options and what they mean.
def tune(
    base: str | Path | Checkpoint,
    task: Task,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    only: Regions | None = None,
    outside: Regions | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Fine-tune a checkpoint's block weights on a task's training examples; dropout is off.

    Args:
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.
        only: train nothing but these weights: a skill's, a region's, or those of a sequence of them. All others keep
            their bits, and by default there is no pull (`l1`): few weights move as it is.
        outside: train all but these weights.
        dtype: float32, or bfloat16 for mixed precision over float32 weights; default bfloat16 where CUDA has it.
        resume: a folder for the state, saved every half minute and when interrupted; a later call with the same
            arguments goes on from there (`surgery.resuming`). The caller deletes it.
        progress: called with step, steps and a line on how it goes.

    Raises:
        OptionError: more memory than the device has free. SurgeryError: the loss becomes NaN.
        SkillError: a region of another base.
    """
    checkpoint = open_checkpoint(base)
    examples = task.need("train")
    began = time.monotonic()
    limits = Limits.of(checkpoint, include, exclude, only, outside)
    recipe, place = limits.recipe(recipe or Recipe()), pick_device(device)
    dtype = None if dtype is None else str(dtype).removeprefix("torch.")
    mixed = mixed_precision(place, dtype)  # refused before the model is loaded
    names = limits.names
    asked: dict[str, Any] = {"include": include, "exclude": exclude, "only": only, "outside": outside}
    check_before(
        most_of_tuning(checkpoint, names, task, recipe),
        lambda: tune_need(checkpoint, task, recipe, device=place, dtype=dtype, **asked),
        place,
    )
    model = load_model(checkpoint, device=place)
    readout = pick_readout(model, task)
    rows, targets = readout.encode(examples), torch.tensor(task.targets(examples))
    check_gradients(model, readout, names, rows[0])
    norm = gradient_norm_at_base(model, readout, names, rows, targets, seed) if recipe.needs_gradient_norm else 0.0
    pace = recipe.pace(model.kind, limits.movable, len(examples), norm)
    with resumable(resume, _identity(checkpoint, task, recipe, seed, names) | limits.digests) as state:
        loop = TrainingLoop(model, readout, recipe, pace, limits.moving(model), state)
        history = loop.run(rows, targets, seed, task, mixed, progress)
    tensors, counts = _as_stored(checkpoint, loop)
    call = {"base": str(checkpoint), "dtype": dtype, "include": list(include), "exclude": list(exclude), **limits.call}
    report = {
        **provenance(call={"tune": call}, inputs={"base": checkpoint.fingerprint}, seed=seed),
        **_about(task),
        "recipe": {**asdict(recipe), **loop.pace._asdict()},
        **counts,
        "movable": limits.movable,
        **history,
        "seconds": round(time.monotonic() - began, 2),
    }
    return Tuned(checkpoint, tensors, task, readout if isinstance(readout, PhraseReadout) else None, report)


def _about(task: Task) -> dict[str, Any]:
    examples = {"train": len(task.train), "dev": len(task.dev), "dev_in_train": task.repeated("dev")}
    return {"task": task.spec(), "examples": examples}


def _identity(checkpoint: Checkpoint, task: Task, recipe: Recipe, seed: int, names: Sequence[str]) -> dict[str, Any]:
    """What decides the tuned weights, but for the device, on which a run may go on that began on another."""
    return {
        "what": "tune",
        "base": checkpoint.fingerprint,
        "task": task.spec(),
        "examples": digest([task.train, task.dev]),
        "recipe": asdict(recipe),
        "seed": seed,
        "tensors": digest(names),
    }


def _as_stored(checkpoint: Checkpoint, loop: TrainingLoop) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tuned tensors as the files will hold them, and how many weights moved: in 16 bits a small difference may round to none."""
    dtypes = {name: checkpoint.entries[name].dtype for name in loop.weights}
    whole = {name: loop.model.parameters[name] for name in loop.weights}
    tensors = {name: tensor.detach().to(dtypes[name]) for name, tensor in whole.items()}
    trained = moved = 0
    for name, weight in loop.weights.items():
        trained += int((weight != loop.base[name]).sum())
        moved += int((weight.to(dtypes[name]) != loop.base[name].to(dtypes[name])).sum())
    return tensors, {"moved": moved, "rounded_away": trained - moved}
