"""Tuning with forward passes only: MeZO (Malladi et al. 2023) over a base that is never written to."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import Model, load_model
from surgery.checkpoints.region import Region
from surgery.devices import pick_device
from surgery.errors import OptionError
from surgery.files import replace_json
from surgery.mezo.forward import ShiftedModel
from surgery.mezo.locating import locate
from surgery.mezo.noise import Noise
from surgery.mezo.objectives import Measure
from surgery.mezo.pace import find_pace
from surgery.mezo.recipe import MezoRecipe, Objective, Pace
from surgery.mezo.training import MezoLoop, check_halves
from surgery.mezo.trajectory import MezoTuned, Trajectory
from surgery.mezo.walk import Precision
from surgery.mezo.weights import TunedTensor
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
    if where is not None and only is not None:
        raise OptionError("give `only` or `where`, not both")
    precision = _precision(kind, limits.only is not None or where is not None, residual, force)
    model = load_model(checkpoint, device=place, dtype=kind)
    readout = pick_readout(model, task)
    region = limits.only if where is None else locate(where, model, readout, task, limits.names, seed)
    trajectory = _begin(checkpoint, limits, region, recipe, precision, seed, onward)
    tensors = _tensors(model, trajectory)
    call: dict[str, Any] = {
        "base": str(checkpoint),
        "method": "mezo",
        "dtype": kind,
        "include": list(include),
        "exclude": list(exclude),
    }
    call |= {"objective": objective if isinstance(objective, str) else repr(objective), "where": where, **limits.call}
    shifted = ShiftedModel(model.module, tensors)
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
    about = {"task": task.spec(), "pace": pace._asdict(), "objective": call["objective"]}
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


def _precision(kind: str, region: bool, residual: bool, force: bool) -> Precision:
    """How tuned weights are kept; raises OptionError for what would lose most of the steps."""
    if kind not in ("float32", "bfloat16"):
        raise OptionError(f"`dtype` {kind} isn't for tuning: float32 or bfloat16")
    if kind == "float32" or region:
        return "float32"
    if not residual and not force:
        raise OptionError(
            f"bfloat16 weights without `residual` can't hold the steps: {_loss_of_16_bits()}; keep it, or `force` it"
        )
    return "residual" if residual else "bfloat16"


def _loss_of_16_bits() -> str:
    """What becomes of 100 steps of a usual size in bfloat16, measured on the spot."""
    from surgery.mezo.weights import SixteenBitTensor

    start = torch.randn(4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    noise, size = Noise(), 1e-5
    walk = Trajectory("", noise, ("weights",), np.full((100, 1), size, np.float32))
    kept = SixteenBitTensor("weights", 0, start.clone(), noise)
    true = TunedTensor("weights", 0, start.float(), noise)
    for tensor in (kept, true):
        tensor.walk(walk.terms())
    went, wanted = kept.values.float() - start.float(), true.values - start.float()
    share, off = float((went * wanted).sum() / wanted.square().sum()), float((went - wanted).norm() / wanted.norm())
    return f"of 100 steps of {size:g} on weights of size .02, a share of {share:.2f} arrives, with an error {off:.1f} times the whole movement"


def _begin(
    checkpoint: Checkpoint,
    limits: Limits,
    region: Region | None,
    recipe: MezoRecipe,
    precision: Precision,
    seed: int,
    onward: Trajectory | None,
) -> Trajectory:
    """A trajectory without a step, or the one to go on from; raises OptionError where that moves something else."""
    indices = None if region is None else dict(region.indices)
    names = limits.names if indices is None else tuple(sorted(indices))
    empty = np.zeros((0, recipe.directions), np.float32)
    new = Trajectory(
        checkpoint.fingerprint, Noise(recipe.noise, seed), names, empty, precision, recipe.momentum, indices
    )
    if onward is None:
        return new
    onward.check_base(checkpoint)
    same = onward.tensors == names and (onward.precision, onward.momentum) == (precision, recipe.momentum)
    same = same and onward.coefficients.shape[1] == recipe.directions and onward.noise.kind == recipe.noise
    if same and indices is not None:
        same = onward.region is not None and all(torch.equal(onward.region[name], indices[name]) for name in names)
    if not same or (onward.region is None) != (indices is None):
        raise OptionError(
            "`onward` moved other weights, or in another way (dtype, noise, directions, momentum): give what it was tuned with"
        )
    return onward


def _tensors(model: Model, trajectory: Trajectory) -> list[TunedTensor]:
    """What is tuned, at the trajectory's end."""
    tensors = []
    for number, name in enumerate(trajectory.tensors):
        stored = None if trajectory.region is None else model.checkpoint.tensor(name)
        tensor = trajectory.tuned(number, model.parameters[name], stored)
        if trajectory.steps:
            tensor.walk(trajectory.terms())
        tensors.append(tensor)
    return tensors


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
        "begins": digest([list(trajectory.tensors), trajectory.precision, trajectory.coefficients.tolist()]),
        "region": trajectory.region and Region(trajectory.region).digest,
        "objective": call["objective"],
        "dtype": call["dtype"],
    }
