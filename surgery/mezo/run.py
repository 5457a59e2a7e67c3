"""Tuning with forward passes only: MeZO (Malladi et al. 2023) over a base that is never written to."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import load_model
from surgery.checkpoints.region import Region
from surgery.devices import pick_device
from surgery.files import replace_json
from surgery.memory import check_before
from surgery.mezo.beginning import begin, check_ways, leaves, pick_precision
from surgery.mezo.forward import ShiftedModel
from surgery.mezo.locating import locate
from surgery.mezo.memory_need import mezo_need, most_of_mezo
from surgery.mezo.noise import Noise
from surgery.mezo.objectives import Measure
from surgery.mezo.pace import find_pace
from surgery.mezo.recipe import MezoRecipe, Objective, Pace
from surgery.mezo.training import MezoLoop, check_halves
from surgery.mezo.trajectory import MezoTuned, Trajectory
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import digest, read_state, resumable
from surgery.tasks.readout import PhraseReadout, pick_readout
from surgery.tasks.task import Task
from surgery.tuning.limits import Limits, Regions


# Long: options and what they mean.
def tune(
    base: str | Path | Checkpoint,
    task: Task,
    recipe: MezoRecipe | None = None,
    *,
    steps: int | None = None,
    objective: str | Objective = "loss",
    only: Regions | None = None,
    where: str | None = None,
    lora: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    onward: Trajectory | None = None,
    residual: bool = True,
    force: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> MezoTuned:
    """Tune a checkpoint with forward passes alone, in the memory of inference; dropout is off.

    Args:
        steps: the recipe's, for short.
        objective: `loss` (cross-entropy), `accuracy` or `f1` of a batch, or a function of a model and a batch of examples
            that gives a number which is to become small.
        only: tune a region's weights alone, a skill's for instance; they are float32, whatever the model is.
        where: locate a region at the base: `gradient:1e-4` (the share of the weights with the largest gradients, by
            one pass backwards) or `random:1e-4`.
        lora: tune low-rank factors of this rank beside the matrices, by the library `peft`, in float32.
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.
        onward: a trajectory from the same base to go on from, such as `trajectory.cut(400)`.
        residual: keep eight more bits of each weight where whole tensors are tuned in bfloat16.
        force: tune them without, all the same.
        dtype: what the model computes in: float32 (default), or bfloat16.
        resume: a folder for a log of the steps; a later call with the same arguments goes on from there. The caller
            deletes it.

    Raises:
        OptionError: options that don't fit, more memory than is free, an objective that doesn't change.
        CheckpointError: a module whose weights can't be moved, by name. SurgeryError: the objective becomes NaN.
    """
    checkpoint, place, began = open_checkpoint(base), pick_device(device), time.monotonic()
    recipe = recipe or MezoRecipe()
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    task.need("train")
    limits = Limits.of(checkpoint, include, exclude, only)
    kind = str(dtype or "float32").removeprefix("torch.")
    few = check_ways(only=only, where=where, lora=lora)
    precision = pick_precision(kind, few, residual, force)
    asked: dict[str, Any] = {"only": only, "where": where, "lora": lora, "residual": residual}
    asked |= {"include": include, "exclude": exclude, "device": place, "dtype": kind}
    check_before(most_of_mezo(checkpoint, task, recipe), lambda: mezo_need(checkpoint, task, recipe, **asked), place)
    model = load_model(checkpoint, device=place, dtype=kind)
    readout = pick_readout(model, task)
    region = limits.only if where is None else locate(where, model, readout, task, limits.names, seed)
    new = Trajectory(
        checkpoint.fingerprint, Noise(recipe.noise, seed), (), np.zeros((0, recipe.directions), np.float32)
    )
    new = replace(new, precision=precision, momentum=recipe.momentum, about={"task": task.spec()})
    trajectory, tensors = begin(model, new, limits.names, region, lora, onward)
    call: dict[str, Any] = {"base": str(checkpoint), "method": "mezo", "dtype": kind, "where": where, "lora": lora}
    call |= {"include": list(include), "exclude": list(exclude), **limits.call}
    call |= {"objective": objective if isinstance(objective, str) else repr(objective)}
    shifted = ShiftedModel(model.module, leaves(tensors))
    try:
        measure = Measure(shifted, model, readout, task, objective, recipe.accumulate)
        check_halves(measure)
        identity = _identity(checkpoint, task, recipe, trajectory, call, seed)
        with resumable(resume, identity) as state:
            pace, probed = _pace(measure, recipe, seed, state, progress)
            loop = MezoLoop(measure, tensors, trajectory, recipe, pace, seed, state)
            history = loop.run(progress)
    finally:
        shifted.close()
    best = max(history["dev"], key=lambda scored: scored["value"])["step"] if history["dev"] else pace.steps
    about = {**trajectory.about, "pace": pace._asdict(), "objective": call["objective"]}
    done = replace(trajectory, coefficients=loop.coefficients[: loop.first + best].copy(), about=about)
    report = {
        **provenance(call={"tune": call}, inputs={"base": checkpoint.fingerprint}, seed=seed),
        "task": task.spec(),
        "examples": {"train": len(task.train), "dev": len(task.dev), "dev_in_train": task.repeated("dev")},
        "recipe": {**asdict(recipe), **pace._asdict()},
        "probed": probed,
        "precision": precision,
        **done.counts(checkpoint),
        **history,
        "stopped_at": best,
        "seconds": round(time.monotonic() - began, 2),
    }
    return MezoTuned(checkpoint, done, task, readout if isinstance(readout, PhraseReadout) else None, report)


def _pace(
    measure: Measure, recipe: MezoRecipe, seed: int, state: Path | None, progress: Progress
) -> tuple[Pace, dict[str, Any]]:
    """The pace, probed once: on some devices probes aren't the same to the last bit."""
    file = state / "pace.json" if state else None
    if file and file.exists():
        held = read_state(file, tuple[Pace, dict[str, Any]])
        return held[0], held[1]
    found = find_pace(measure, recipe, seed, progress)
    if file:
        replace_json(file, found)
    return found


def _identity(
    checkpoint: Checkpoint, task: Task, recipe: MezoRecipe, trajectory: Trajectory, call: dict[str, Any], seed: int
) -> dict[str, Any]:
    """What decides the tuned weights, but for the device."""
    return {
        "what": "tune with forward passes",
        "base": checkpoint.fingerprint,
        "task": task.spec(),
        "examples": digest([task.train, task.dev]),
        "recipe": asdict(recipe),
        "seed": seed,
        "begins": digest(
            [list(trajectory.tensors), trajectory.precision, trajectory.rank, trajectory.coefficients.tolist()]
        ),
        "region": trajectory.region and Region(trajectory.region).digest,
        "objective": call["objective"],
        "dtype": call["dtype"],
    }
