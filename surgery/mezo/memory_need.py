"""Memory that tuning with forward passes needs: that of a forward pass over both halves, and a few pieces of weights."""

from collections.abc import Sequence
from pathlib import Path

import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.devices import pick_device
from surgery.memory import Need
from surgery.mezo.recipe import MezoRecipe
from surgery.mezo.weights import SCRATCH
from surgery.tasks.readout import collate
from surgery.tasks.rehearsal import (
    files_bytes,
    longest,
    model_bytes,
    most_activations,
    rehearsed,
    rehearsed_readout,
    weight_bytes,
)
from surgery.tasks.task import Task
from surgery.tuning.limits import Limits, Regions

_LOWER = "lower `batch_size` or `max_length`, or raise `accumulate`"


def mezo_need(
    base: str | Path | Checkpoint,
    task: Task,
    recipe: MezoRecipe | None = None,
    *,
    only: Regions | None = None,
    where: str | None = None,
    lora: int | None = None,
    residual: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Need:
    """Find what memory `surgery.mezo.tune` with these arguments needs at once, from shapes alone; no weights are read."""
    checkpoint, place, recipe = open_checkpoint(base), pick_device(device), recipe or MezoRecipe()
    limits = Limits.of(checkpoint, include, exclude, only)
    kind = torch.bfloat16 if str(dtype).endswith("bfloat16") else torch.float32
    examples, rows = task.need("train"), 2 * -(-recipe.batch_size // recipe.accumulate)

    def peak() -> int:
        with rehearsed(checkpoint, place, kind) as (model, meter), torch.no_grad():
            readout = rehearsed_readout(model, task)
            readout.logits(model.module, *collate(model, longest(readout.encode(examples), rows)))
            return meter.peak

    few = only is not None or where is not None or lora is not None
    whole = weight_bytes(checkpoint, limits.names, 1)
    share = float(where.partition(":")[2]) if where and where.startswith(("gradient:", "random:")) else 0.0
    tuned = limits.movable if only is not None else int(share * whole)
    known = {
        "weights": model_bytes(checkpoint, kind),
        "residual": 0 if few or kind == torch.float32 or not residual else whole,
        "tuned weights": 20 * tuned,  # a place, a value and noise each
        "gradients to locate by": 4 * whole if where and where.startswith("gradient") else 0,
        "moved weights": 2 * SCRATCH,
    }
    return Need.of_peak(
        "tuning", place, known, peak, _LOWER, {"checkpoint": files_bytes(checkpoint), "log": 9 * recipe.steps}
    )


def most_of_mezo(checkpoint: Checkpoint, task: Task, recipe: MezoRecipe) -> int:
    """Bytes that tuning never exceeds: weights, gradients to locate a region by, its places and values, and activations."""
    everything = weight_bytes(checkpoint, list(checkpoint.structure.parameters), 4)
    rows = 2 * -(-recipe.batch_size // recipe.accumulate)
    return 8 * everything + most_activations(checkpoint, max(16, rows), task.max_length)
