"""What each stage of a study does. A stage reads what earlier ones left, and returns what the report needs, as JSON."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoints.applying import write_patched
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.region import Region
from surgery.files import discard
from surgery.grafting.algebra import difference, merge, overlap
from surgery.grafting.localization import graft
from surgery.grafting.skill import Skill
from surgery.grafting.study.bench import Bench, kept
from surgery.grafting.study.lora import tune_lora
from surgery.grafting.study.rivals import merges
from surgery.grafting.study.settings import Stage
from surgery.tasks.calibration import fit_temperature
from surgery.tasks.readout import PhraseReadout, readout_file
from surgery.tasks.task import Task
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe

_MORE_STEPS = 10  # of a union of regions, after Panigrahi et al. 2023
_ADAM_RATE = 1e-3  # of biases, as usual for them (Ben Zaken et al. 2022)


def run_stage(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    """Do a stage's work; `scratch` keeps what a stopped stage goes on from."""
    return _WORK[stage.kind](bench, stage, scratch)


def _base(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    targets = {name: bench.task(0, name).targets(bench.task(0, name).test) for name in bench.settings.tasks}
    return {"scores": {"base": bench.scores(None)}, "targets": targets}


def _skill(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    task, name = bench.task(stage.seed, stage.task), f"seed{stage.seed}"
    tuned, report = _tuned(bench, stage, scratch, bench.start, task)
    skill = _located(bench, stage, tuned.folder, scratch)
    delta = SparseDelta.between(bench.base, tuned)
    bench.keep(f"{name}-tuned-{task.name}", delta)
    skill.save(bench.folder / "skills" / f"{name}-{task.name}", overwrite=True, figures=False)
    group, held = bench.group(task.name), bench.held(stage.seed, task.name)
    right = torch.tensor(task.targets(held)).numpy()
    temperature = {
        who: fit_temperature(bench.logits(each, task.name, held), right)
        for who, each in (("tuned", delta), ("graft", skill.delta))
    }
    return {
        "scores": {"tuned": bench.scores(delta, group), "graft": bench.scores(skill.delta, group)},
        "temperature": temperature,
        "moved": report["moved"],
        "weights": skill.delta.weights,
        "steps": report["stopped_at"],
    }


def _multi(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    tasks = [bench.task(stage.seed, name) for name in bench.settings.tasks]
    steps = None if bench.settings.steps is None else bench.settings.steps * len(tasks)
    tuned, report = _tuned(bench, stage, scratch, bench.start, tasks, Recipe(steps=steps))
    delta = SparseDelta.between(bench.base, tuned)
    bench.keep(f"seed{stage.seed}-multi", delta)
    return {"scores": {"multi": bench.scores(delta)}, "moved": report["moved"], "steps": report["stopped_at"]}


def _locate(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    """A task's region in the model of all tasks, and what every task gains by it."""
    delta = bench.kept(f"seed{stage.seed}-multi")
    folder = _written(bench, delta, scratch / "multi")
    skill = _located(bench, stage, folder, scratch)
    bench.keep(f"seed{stage.seed}-region-{stage.task}", skill.delta)
    return {"scores": {"region": bench.scores(skill.delta)}, "weights": skill.delta.weights}


def _regions(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    """Overlaps of the regions in the model of all tasks, and the union of all of them, as it is and after ten more steps."""
    names = bench.settings.tasks
    regions = {name: bench.kept(f"seed{stage.seed}-region-{name}") for name in names}
    shares = {one: {two: overlap(regions[one], regions[two]).of_second for two in names} for one in names}
    union = merge(list(regions.values()), "mean", list(names))
    folder = _written(bench, union, scratch / "union")
    tasks = [bench.task(stage.seed, name) for name in names]
    recipe = Recipe("sgd", steps=_MORE_STEPS * len(names))
    only = Region(Region.of(union).indices)
    more, _ = _tuned(bench, stage, scratch, Checkpoint(folder), tasks, recipe, only=only)
    after = SparseDelta.between(bench.base, more)
    return {"overlap": shares, "scores": {"union": bench.scores(union), "union, ten more steps": bench.scores(after)}}


def _in_a_row(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    """The next task learnt by the model that has learnt those before it."""
    seed, names = stage.seed, bench.settings.tasks
    skills = [Skill.load(bench.folder / "skills" / f"seed{seed}-{name}").delta for name in names[: stage.place + 1]]
    if stage.place > 1:
        before = bench.kept(f"seed{seed}-{stage.kind}-{names[stage.place - 1]}")
    else:
        before = bench.kept(f"seed{seed}-tuned-{names[0]}") if stage.kind == "plain" else skills[0]
    options: dict[str, Any] = {}
    if stage.kind != "plain":
        region = skills[-1]
        if stage.kind == "disjoint":
            region = difference(region, merge(skills[:-1], "first"))
        if not region.weights:  # earlier skills have all of them: nothing is left to learn with
            bench.keep(stage.name, before)
            return {"scores": {"after": bench.scores(before)}, "movable": 0, "moved": 0}
        options["only"] = Region(Region.of(region).indices)
    folder = _written(bench, before, scratch / "before")
    tuned, report = _tuned(bench, stage, scratch, Checkpoint(folder), bench.task(seed, stage.task), **options)
    delta = SparseDelta.between(bench.base, tuned)
    bench.keep(stage.name, delta)
    return {"scores": {"after": bench.scores(delta)}, "movable": report["movable"], "moved": report["moved"]}


def _biases(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    """Tuning of one-dimensional weights alone: biases and norms of the blocks."""
    flat = [name for name in bench.base.block_weights() if len(bench.base.entries[name].shape) == 1]
    only = Region({name: torch.arange(bench.base.entries[name].size) for name in flat})
    recipe = Recipe("adamw", rate=_ADAM_RATE, steps=bench.settings.steps)
    tuned, report = _tuned(bench, stage, scratch, bench.start, bench.task(stage.seed, stage.task), recipe, only=only)
    delta = SparseDelta.between(bench.base, tuned)
    scores = {"biases only": bench.scores(delta, bench.group(stage.task))}
    return {"scores": scores, "trained": report["movable"]}


def _lora(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    found = tune_lora(bench, stage.seed, stage.task)
    if found is None:
        return {"missing": "peft isn't installed: pip install 'surgery[lora]'"}
    scores, trained = found
    return {"scores": {"LoRA": {name: kept(each) for name, each in scores.items()}}, "trained": trained}


def _merges(bench: Bench, stage: Stage, scratch: Path) -> dict[str, Any]:
    return merges(bench, stage.seed)


_WORK: Mapping[str, Callable[[Bench, Stage, Path], dict[str, Any]]] = {
    "base": _base,
    "skill": _skill,
    "multi": _multi,
    "locate": _locate,
    "regions": _regions,
    "plain": _in_a_row,
    "fresh": _in_a_row,
    "disjoint": _in_a_row,
    "biases": _biases,
    "lora": _lora,
    "merges": _merges,
}


def _tuned(
    bench: Bench,
    stage: Stage,
    scratch: Path,
    base: Checkpoint,
    task: Task | list[Task],
    recipe: Recipe | None = None,
    **options: Any,
) -> tuple[Checkpoint, Mapping[str, Any]]:
    """Tune, and write the checkpoint into the scratch folder; the report with it."""
    common: dict[str, Any] = {"seed": stage.seed, "device": bench.device, "progress": bench.progress}
    tuned = tune(base, task, recipe or bench.recipe, resume=scratch / "tune", **common, **options)
    folder = tuned.save(scratch / "tuned", overwrite=True)
    return Checkpoint(folder), tuned.report


def _located(bench: Bench, stage: Stage, tuned: Path, scratch: Path) -> Skill:
    """The skill of the stage's task, with its phrases' embeddings."""
    task = bench.task(stage.seed, stage.task)
    common: dict[str, Any] = {"seed": stage.seed, "device": bench.device, "progress": bench.progress}
    skill = graft(bench.start, tuned, task, sparsity=bench.settings.sparsity, resume=scratch / "graft", **common)
    readout = bench.readouts[task.name]
    file = (bench.base.folder / readout_file(task)).exists()
    return replace(skill, readout=readout.to_bytes()) if isinstance(readout, PhraseReadout) and not file else skill


def _written(bench: Bench, delta: SparseDelta, folder: Path) -> Path:
    """The base with a delta in it, as a folder that is made again each time."""
    if folder.exists():
        discard(folder)
    return write_patched(delta, bench.start, folder)


def clear(scratch: Path) -> None:
    """Throw away what a stage that is done has left to go on from."""
    shutil.rmtree(scratch, ignore_errors=True)
