"""Regions located at the base, to be tuned alone."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.checkpoints.models import Model, steady_attention
from surgery.checkpoints.region import Region
from surgery.errors import OptionError
from surgery.tasks.gradients import check_gradients
from surgery.tasks.readout import Readout, alike, collate
from surgery.tasks.task import Task

_EXAMPLES, _PIECE = 256, 16


def locate(where: str, model: Model, readout: Readout, task: Task, names: tuple[str, ...], seed: int) -> Region:
    """A share of the weights of some tensors.

    Args:
        where: `gradient:SHARE`, those with the largest gradients of the loss at the base, by a pass backwards over up to
            256 training examples; `random:SHARE`, drawn by the seed.

    Raises:
        OptionError: anything else.
    """
    kind, colon, number = where.partition(":")
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if kind not in ("gradient", "random") or not colon or not 0 < share <= 1:
        raise OptionError(f"`where` {where} must be gradient:SHARE or random:SHARE, such as gradient:1e-4")
    sizes = [model.checkpoint.entries[name].size for name in names]
    count = max(1, round(share * sum(sizes)))
    if kind == "random":
        drawn = np.random.default_rng([seed, 2]).choice(sum(sizes), count, replace=False)
        return Region.of_places(model.checkpoint, names, torch.from_numpy(drawn))
    size = torch.cat([gradient.abs().reshape(-1).cpu() for gradient in _gradients(model, readout, task, names, seed)])
    return Region.of_places(model.checkpoint, names, size.topk(count).indices)


def _gradients(model: Model, readout: Readout, task: Task, names: tuple[str, ...], seed: int) -> list[Tensor]:
    examples = task.need("train")
    rows, targets = readout.encode(examples), torch.tensor(task.targets(examples))
    check_gradients(model, readout, names, rows[0])
    weights = [model.parameters[name].requires_grad_(True) for name in names]
    numbers = np.random.default_rng([seed, 3]).permutation(len(rows))[:_EXAMPLES]
    try:
        for start in range(0, len(numbers), _PIECE):
            for piece in alike(model, rows, numbers[start : start + _PIECE].tolist()):
                batch, positions = collate(model, [rows[number] for number in piece])
                with steady_attention():
                    scores = readout.logits(model.module, batch, positions)
                F.cross_entropy(scores, targets[piece].to(model.device), reduction="sum").backward()
        return [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    finally:
        for weight in weights:
            weight.grad = None
            weight.requires_grad_(False)
