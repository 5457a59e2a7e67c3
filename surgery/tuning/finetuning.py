"""Plain fine-tuning with a frozen readout: what grafting starts from.

The default is SGD with a proximal L1 pull towards the base, which leaves most weights exactly where they were: then
few weights carry the skill, and grafting can find them. AdamW without L1 moves every weight a little and doesn't
localise (Panigrahi et al. 2023, section 5.2).
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.checkpoints.models import Model, load_tokenizer
from surgery.devices import pick_device
from surgery.errors import CheckpointError, OptionError
from surgery.files import check_apart, new_folder, replace_bytes, replace_json
from surgery.jsonfile import JsonError, conform, load_json
from surgery.memory import check_before
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.resuming import digest
from surgery.sync.sharding import loaded, unbroken
from surgery.sync.together import SyncRecipe, resumable_together, shared_call
from surgery.sync.workers import Workers
from surgery.tasks.gradients import check_reached
from surgery.tasks.readout import PhraseReadout, readout_file
from surgery.tasks.task import Task, several
from surgery.tasks.texts import NAME as TEXTS
from surgery.tasks.texts import Texts
from surgery.tuning.limits import Limits, Regions
from surgery.tuning.memory_need import most_of_tuning, tune_need
from surgery.tuning.recipe import Pace, Recipe
from surgery.tuning.training import Scored, TrainingLoop, gradient_norm_at_base, mixed_precision
from surgery.tuning.training_sets import LabelledSet, TextSet, training_set

_RECENT = 20  # steps whose losses are averaged


@dataclass(frozen=True, eq=False)
class Tuned(Result):
    """A fine-tuned checkpoint in memory.

    Attributes:
        base: what it was tuned from.
        tensors: the tensors that may have moved, by their name in the base's files.
        task: what it was tuned on, a task or texts, or the first of several.
        readout: the base's phrase embeddings, for a sentence encoder.
        report: what was done, with losses, dev scores and the number of weights moved.
        further: further tasks, each with its phrase embeddings as `readout`.
    """

    base: Checkpoint
    tensors: dict[str, Tensor]
    task: Task | Texts
    readout: PhraseReadout | None
    report: dict[str, Any]
    further: tuple[tuple[Task | Texts, PhraseReadout | None], ...] = ()

    @property
    def tasks(self) -> tuple[Task | Texts, ...]:
        """All tasks that it was tuned on."""
        return (self.task, *(task for task, _ in self.further))

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
            for task, readout in ((self.task, self.readout), *self.further):
                if readout and isinstance(task, Task):
                    replace_bytes(staged / readout_file(task), readout.to_bytes())
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
        call = report["call"]["tune"]
        task, *others = map(_of_spec, report.get("tasks", [report["task"]]))
        before, after = open_checkpoint(call["base"] if base is None else base), Checkpoint(folder)
        if before.fingerprint != report["inputs"]["base"]:
            raise CheckpointError(
                f"{before} isn't what {folder} was tuned from: its fingerprint differs; give that as `base`"
            )
        names = before.block_weights(call["include"], call["exclude"])
        further = tuple((other, _kept_readout(after, other)) for other in others)
        tensors = {name: after.tensor(name) for name in names}
        return cls(before, tensors, task, _kept_readout(after, task), report, further)


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

    tasks: NotRequired[list[dict[str, Any]]]

    call: _Tune
    inputs: _Inputs
    task: dict[str, Any]
    moved: int
    movable: int
    stopped_at: int
    losses: Annotated[list[float], Meta(min_length=1)]
    dev: list[Scored]


def _of_spec(spec: dict[str, Any]) -> Task | Texts:
    return Texts.from_spec(spec) if spec.get("name") == TEXTS and "loss" in spec else Task.from_spec(spec)


def _kept_readout(checkpoint: Checkpoint, task: Task | Texts) -> PhraseReadout | None:
    if isinstance(task, Texts) or checkpoint.structure.kind != "encoder":
        return None
    file = checkpoint.folder / readout_file(task)
    if not file.exists():
        return None
    phrases = tuple(task.phrases[label] for label in task.labels)
    return PhraseReadout.from_file(file, load_tokenizer(checkpoint), phrases, task.max_length)


# Long: options and what they mean.
def tune(
    base: str | Path | Checkpoint,
    task: Task | Texts | Sequence[Task | Texts],
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
    workers: Workers | None = None,
    sync: SyncRecipe | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Fine-tune a checkpoint's block weights on a task's training examples, or on texts; dropout is off.

    Args:
        task: one, or `Texts` (prompts with answers, dialogues) for a language model; or several of different names, whose
            batches take turns: then the number of steps by default is the sum of theirs, and what dev examples decide is
            decided by the mean of the tasks' metrics.
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.
        only: train nothing but these weights: a skill's, a region's, or those of a sequence of them. All others keep
            their bits, and by default there is no pull (`l1`): few weights move as it is.
        outside: train all but these weights.
        dtype: float32, or bfloat16 for mixed precision over float32 weights; default bfloat16 where CUDA has it.
        resume: a folder for the state, saved every half minute and when interrupted; a later call with the same
            arguments goes on from there (`surgery.resuming`). The caller deletes it.
        workers: those of a run under torchrun (`surgery.sync`): each takes its part of every batch, and all end with the same
            weights, of which the first worker's caller makes a folder.
        sync: how they share it; by default data parallel, which gives what one process gives but for rounding. `sharded` gives
            that too, with weights, gradients and the optimizer's state split over the workers, of which only the first gets the
            tuned tensors.
        progress: called with step, steps and a line on how it goes.

    Raises:
        OptionError: more memory than the device has free. SurgeryError: the loss becomes NaN.
        SkillError: a region of another base.
    """
    checkpoint, tasks = open_checkpoint(base), several(task)
    began = time.monotonic()
    limits = Limits.of(checkpoint, include, exclude, only, outside)
    recipe, place = limits.recipe(recipe or Recipe()), pick_device(device)
    dtype = None if dtype is None else str(dtype).removeprefix("torch.")
    mixed = mixed_precision(place, dtype)  # refused before the model is loaded
    asked: dict[str, Any] = {"include": include, "exclude": exclude, "only": only, "outside": outside}
    split = sync is not None and sync.kind == "sharded"
    if split and workers is None:
        raise OptionError("a sharded model is one of several workers: give `workers`")
    sharing = workers if split else None
    processes = sharing.count if sharing else 1
    check_before(
        max(most_of_tuning(checkpoint, limits.names, one, recipe) for one in tasks),
        lambda: tune_need(checkpoint, tasks, recipe, device=place, dtype=dtype, processes=processes, **asked),
        place,
    )
    half = None
    if sharing and not isinstance(mixed, nullcontext):
        # Autocast would keep a copy of every whole weight in 16 bits for the backward pass.
        half, mixed = torch.bfloat16, nullcontext()
    with loaded(checkpoint, limits.names, sharing, device=place, mixed=half) as model:
        sets = [training_set(model, one) for one in tasks]
        check_reached(model, limits.names, lambda: sets[0].loss(model, [0]))
        pace = _pace(recipe, model, sets, limits, seed)
        identity = _identity(checkpoint, tasks, recipe, seed, limits.names) | limits.digests
        with resumable_together(resume, identity | shared_call(workers, sync), workers) as state, unbroken(sharing):
            loop = TrainingLoop(model, recipe, pace, limits.moving(model), state, workers, sync)
            history = loop.run(sets, seed, mixed, progress)
        tensors, counts = _as_stored(checkpoint, limits.names, loop)
    call = {"base": str(checkpoint), "dtype": dtype, "include": list(include), "exclude": list(exclude), **limits.call}
    report = {
        **provenance(call={"tune": call}, inputs={"base": checkpoint.fingerprint}, seed=seed),
        **_about(tasks),
        **_cut(sets),
        "recipe": {**asdict(recipe), **loop.pace._asdict()},
        **counts,
        "movable": limits.movable,
        **history,
        **({} if loop.together is None else {"sync": loop.together.content()}),
        "seconds": round(time.monotonic() - began, 2),
    }
    (_, readout), *further = [(one.task, one.anchors) for one in sets]
    return Tuned(checkpoint, tensors, tasks[0], readout, report, tuple(further))


def _pace(recipe: Recipe, model: Model, sets: Sequence[LabelledSet | TextSet], limits: Limits, seed: int) -> Pace:
    """The recipe's numbers for these sets: the steps of all, and a pull by the root mean square of their gradients."""
    norms = [
        gradient_norm_at_base(model, one, limits.names, seed) if recipe.needs_gradient_norm else 0.0 for one in sets
    ]
    norm = norms[0] if len(norms) == 1 else math.sqrt(sum(each**2 for each in norms) / len(norms))
    paces = [recipe.pace(model.kind, limits.movable, len(one.rows), norm) for one in sets]
    return paces[0]._replace(steps=recipe.steps or sum(pace.steps for pace in paces))


def _cut(sets: Sequence[LabelledSet | TextSet]) -> dict[str, int]:
    cut = sum(one.cut for one in sets if isinstance(one, TextSet))
    return {"answers_cut": cut} if cut else {}


def _about(tasks: Sequence[Task | Texts]) -> dict[str, Any]:
    examples = {"train": 0, "dev": 0, "dev_in_train": 0}
    for task in tasks:
        examples["train"] += len(task.train)
        examples["dev"] += len(task.dev)
        examples["dev_in_train"] += task.repeated("dev")
    more = {"tasks": [task.spec() for task in tasks]} if len(tasks) > 1 else {}
    return {"task": tasks[0].spec(), **more, "examples": examples}


def _identity(
    checkpoint: Checkpoint, tasks: Sequence[Task | Texts], recipe: Recipe, seed: int, names: Sequence[str]
) -> dict[str, Any]:
    """What decides the tuned weights, but for the device, on which a run may go on that began on another."""
    return {
        "what": "tune",
        "base": checkpoint.fingerprint,
        "task": tasks[0].spec() if len(tasks) == 1 else [task.spec() for task in tasks],
        "examples": digest([rows for task in tasks for rows in (task.train, task.dev)]),
        "recipe": asdict(recipe),
        "seed": seed,
        "tensors": digest(names),
    }


def _as_stored(
    checkpoint: Checkpoint, names: Sequence[str], loop: TrainingLoop
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tuned tensors as the files will hold them, and how many weights moved: in 16 bits a small difference may round to none.

    Of a model that is split over workers, all count, and the first alone gets the tensors.
    """
    dtypes = {name: checkpoint.entries[name].dtype for name in names}
    split = loop.model.copies > 1
    keeps = loop.together is None or not split or loop.together.workers.first
    tensors = {}
    for name in names:
        whole = loop.model.whole(name)
        if keeps:
            tensors[name] = whole.to("cpu" if split else whole.device, dtypes[name])
    trained = moved = 0
    for name, weight in loop.weights.items():
        trained += int((weight != loop.base[name]).sum())
        moved += int((weight.to(dtypes[name]) != loop.base[name].to(dtypes[name])).sum())
    if split and loop.together is not None:
        trained, moved = (
            int(sum(column))
            for column in zip(*loop.together.workers.gather([float(trained), float(moved)]), strict=True)
        )
    return tensors, {"moved": moved, "rounded_away": trained - moved}
