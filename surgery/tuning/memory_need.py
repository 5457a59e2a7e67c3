"""Memory that fine-tuning needs: two of its own steps rehearsed on the longest rows."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import Model
from surgery.devices import pick_device
from surgery.memory import Need
from surgery.tasks.rehearsal import (
    files_bytes,
    longest,
    model_bytes,
    most_activations,
    rehearsed,
    rehearsed_readout,
    split,
    weight_bytes,
)
from surgery.tasks.task import Task, several
from surgery.tasks.texts import Texts
from surgery.tuning.limits import Limits, Regions
from surgery.tuning.recipe import Pace, Recipe
from surgery.tuning.training import TrainingLoop, gradient_norm_at_base, mixed_precision
from surgery.tuning.training_sets import LabelledSet, TextSet

_LOWER = "lower `batch_size` or `max_length`, raise `accumulate`, or let fewer tensors move (`include`)"


def tune_need(
    base: str | Path | Checkpoint,
    task: Task | Texts | Sequence[Task | Texts],
    recipe: Recipe | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    only: Regions | None = None,
    outside: Regions | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    processes: int = 1,
) -> Need:
    """Find what memory `tune` with these arguments needs at once, from shapes alone; no weights are read.

    `processes`: over how many the model is split; the need is that of one of them.

    Within 15% of the measured peak for models of a hundred megabytes or more; libraries take what they take beside it.
    """
    checkpoint, place, tasks = open_checkpoint(base), pick_device(device), several(task)
    limits = Limits.of(checkpoint, include, exclude, only, outside)
    recipe = limits.recipe(recipe or Recipe())
    # A split model's weights in 16 bits are a block's; its activations are counted in 32.
    mixed = mixed_precision(place, dtype) if processes == 1 else nullcontext()
    needs = [_need(checkpoint, one, recipe, limits, place, mixed) for one in tasks]
    # A split model has the gradients of whole tensors when a backward pass ends, of a region too.
    gradients = weight_bytes(checkpoint, limits.names, 4)
    return split(max(needs, key=lambda need: need.total), checkpoint, processes, gradients=gradients)


def _need(
    checkpoint: Checkpoint, task: Task | Texts, recipe: Recipe, limits: Limits, place: torch.device, mixed: Any
) -> Need:
    names = limits.names

    def peak() -> int:
        with rehearsed(checkpoint, place, torch.float32) as (model, meter):
            examples = _rehearsed_set(model, task, recipe)
            if recipe.needs_gradient_norm:
                gradient_norm_at_base(model, examples, names, 0)
            loop = TrainingLoop(model, recipe, Pace(0.1, 0.1, 2, 0.1), limits.moving(model), None)
            if task.dev:
                loop.best = {name: weight.detach().clone() for name, weight in loop.weights.items()}
            for _ in range(2):  # momentum is there from the second on
                loop.advance(examples, range(min(len(examples.rows), recipe.batch_size)), mixed)
                loop.step += 1
            return meter.peak

    whole, moving = weight_bytes(checkpoint, names, 4), 4 * limits.trained
    optimizer = moving if recipe.optimizer.startswith("sgd") else 2 * moving
    best = moving if task.dev else 0
    known = {
        "weights": model_bytes(checkpoint, torch.float32),
        "the base's copy": moving,
        "optimizer": optimizer,
        "gradients": moving if limits.only else whole,
        "the best so far": best,
    }
    files = {"checkpoint": files_bytes(checkpoint), "state to go on from": moving + optimizer + best}
    return Need.of_peak("tuning", place, known, peak, _LOWER, files)


def _rehearsed_set(model: Model, task: Task | Texts, recipe: Recipe) -> LabelledSet | TextSet:
    """As many examples as a step takes, each as long as the longest."""
    count = max(16, recipe.batch_size)
    if isinstance(task, Texts):
        return TextSet.of(model, task, tried=False).longest(count)
    readout = rehearsed_readout(model, task)
    rows = longest(readout.encode(task.need("train")), count)
    return LabelledSet(task, readout, rows, torch.zeros(len(rows), dtype=torch.long))


def most_of_tuning(checkpoint: Checkpoint, names: Sequence[str], task: Task | Texts, recipe: Recipe) -> int:
    """Bytes that `tune` never exceeds: weights, the base's copy, gradients, the best so far, and AdamW's two states with their root."""
    everything = weight_bytes(checkpoint, list(checkpoint.structure.parameters), 4)
    moving = weight_bytes(checkpoint, names, 4)
    return everything + 6 * moving + most_activations(checkpoint, max(16, recipe.batch_size), task.max_length)
