"""Memory that grafting needs: scoring and one gradient rehearsed on the longest rows."""

from collections.abc import Sequence
from pathlib import Path

import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import pick_dtype
from surgery.devices import pick_device
from surgery.grafting.budget import budget, candidate_limit
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.memory import Need
from surgery.tasks.readout import collate
from surgery.tasks.rehearsal import (
    longest,
    model_bytes,
    most_activations,
    read_one,
    rehearsed,
    rehearsed_readout,
    split,
    weight_bytes,
)
from surgery.tasks.task import Task

_LOWER = "lower `batch_size`, `max_length` or the number of weights (`sparsity`, `sweep`), or give `dtype` bfloat16"
_BESIDE = (
    7  # numbers for each candidate that locating keeps beside base, tuned, delta and its place: most of all for gates
)


def graft_need(
    base: str | Path | Checkpoint,
    task: Task,
    *,
    sparsity: float | None = None,
    weights: int | None = None,
    sweep: Sequence[float] = (),
    method: str = "dual-averaging",
    values: str = "tuned",
    low_rank: bool = False,
    target_gain: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 32,
    processes: int = 1,
) -> Need:
    """Find what memory `graft` with these arguments needs at once, from shapes alone; no weights are read.

    `processes`: over how many the model is split; the need is that of one of them.

    As many candidates are counted as may be kept; where fewer weights moved, it needs less. Growing, which a checkpoint
    gets in which most weights moved, isn't counted: it is left out where there is no memory for it.
    """
    checkpoint, place, precision = open_checkpoint(base), pick_device(device), pick_dtype(dtype)
    names = checkpoint.block_weights(include, exclude)
    movable = sum(checkpoint.entries[name].size for name in names)
    ladder = [budget(movable, sparsity, weights), *(budget(movable, share, None) for share in sweep)]
    count = min(candidate_limit([movable] if target_gain else ladder), movable)
    whole = movable if low_rank or values != "tuned" else 0

    def peak() -> int:
        with rehearsed(checkpoint, place, precision) as (model, meter):
            readout = rehearsed_readout(model, task)
            read_one(model)
            tests = longest(readout.encode(task.need("test")), batch_size)
            with torch.no_grad():
                readout.logits(model.module, *collate(model, tests))
            rows = longest(readout.encode(task.need("train")), 32)
            grafted = GraftedModel(model, readout, _candidates(checkpoint, names, count))
            kept = [torch.zeros_like(grafted.delta) for _ in range(_BESIDE)]
            grafted.set_mask(torch.zeros_like(grafted.delta, dtype=torch.bool))
            if method != "movement":
                grafted.mask_gradient(rows, torch.zeros(len(rows), dtype=torch.long))
            del kept
            return meter.peak

    known = {
        "weights": model_bytes(checkpoint, precision),
        "candidates": count * (20 + 4 * _BESIDE),
        "every movable weight's base, tuned value and chance": displacement_bytes(whole),
        # In locating they are reduced to the candidates one at a time.
        "the largest tensor's gradient": 0
        if method == "movement"
        else precision.itemsize * _largest(checkpoint, names),
    }
    need = Need.of_peak("grafting", place, known, peak, _LOWER, {"skill": 20 * count})
    return split(need, checkpoint, processes, precision, gradients=weight_bytes(checkpoint, names, precision.itemsize))


def displacement_bytes(weights: int) -> int:
    """Bytes of `Displacement` and of what is worked out beside it: five numbers a weight, one of them in float64, and one more."""
    return 28 * weights


def most_of_grafting(
    checkpoint: Checkpoint, task: Task, limit: int, batch_size: int, dtype: torch.dtype, whole: int = 0
) -> int:
    """Bytes that `graft` never exceeds; `whole` is how many weights a product that is made of all of them looks at."""
    everything = weight_bytes(checkpoint, list(checkpoint.structure.parameters), max(4, dtype.itemsize))
    return (
        2 * everything
        + 80 * limit
        + displacement_bytes(whole)
        + most_activations(checkpoint, max(16, batch_size), task.max_length)
    )


def _largest(checkpoint: Checkpoint, names: Sequence[str]) -> int:
    return max(checkpoint.entries[name].size for name in names)


def _candidates(checkpoint: Checkpoint, names: Sequence[str], count: int) -> Candidates:
    """So many, in the first tensors, without content; on the CPU, as `Candidates.between` gives them."""
    sizes = [checkpoint.entries[name].size for name in names]
    bounds = [0]
    for number in sizes:
        bounds.append(min(count, bounds[-1] + number))
    empty = torch.empty(count)
    return Candidates(
        tuple(names),
        tuple(bounds),
        torch.empty(count, dtype=torch.long),
        empty,
        empty.clone(),
        movable=sum(sizes),
        moved=count,
    )
