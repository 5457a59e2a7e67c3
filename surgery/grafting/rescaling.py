"""Rescaled and refitted grafts: a few weights stand in for all that moved. They don't hold the tuned values.

Where tuning moved nearly all weights a little, no few of them carry the skill at their tuned values. But a few drawn at
random and moved further, so that the sum of all moves stays the same on average, can.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.displacement import Displacement
from surgery.grafting.methods import Evidence, batches
from surgery.progress import Progress, silent

_PATH, _BATCHES, _EXAMPLES = 8, 4, 16
_FLOOR = 0.3  # phi: how much of the mean root of the Fisher information every weight is counted for
_DRAWS, _SHRINKS = 6, (0.6, 0.7, 0.8, 0.9)
_STEPS, _RATE = 60, 0.05


class Draw(NamedTuple):
    """Weights drawn, numbered over all movable ones, and the values they are moved to."""

    chosen: Int64[Tensor, " k"]
    values: Float[Tensor, " k"]


def rescaled(
    moved: Displacement,
    evidence: Evidence,
    k: int,
    *,
    information: Float[Tensor, " movable"] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Candidates:
    """k weights drawn at random, each moved further than in tuning by the reciprocal of its chance to be drawn.

    A weight's chance is min(1, lambda |delta| (sqrt F + phi mean sqrt F)), F the diagonal of the Fisher information along
    the straight path from base to tuned, lambda such that k are drawn: the choice that adds least noise to the loss, to
    second order and weight by weight. Drawn systematically (Madow 1949), so that every stretch of every tensor gets its
    share. Dropping at random and rescaling (DARE; Yu et al. 2024) is the same with one chance for all weights.

    Some draws are tried, then shorter moves for the best of them; what comes closest to the tuned model's predictions on
    training examples stays.

    Args:
        information: what `fisher` gives, where it is there already.
    """
    importance = (fisher(moved, evidence, seed, progress) if information is None else information).sqrt()
    importance += _FLOOR * importance.mean()
    chance = inclusion(importance.mul_(moved.delta.abs()), k)
    random, sample = np.random.default_rng([seed, k]), evidence.sample(seed)
    tries, count = [], _DRAWS + len(_SHRINKS)

    def attempt(chosen: Tensor, shrink: float) -> None:
        before = moved.base[chosen]
        values = before + shrink * (moved.tuned[chosen] - before) / chance[chosen].to(before.dtype)
        moved.put_chosen(chosen, values)
        tries.append((moved.loss(sample.rows, sample.soft), Draw(chosen, values)))
        progress(len(tries), count, "rescaling: draws")

    for _ in range(_DRAWS):
        attempt(systematic(chance, float(random.random())), 1.0)
    best = min(tries, key=lambda tried: tried[0])[1].chosen
    for shrink in _SHRINKS:
        attempt(best, shrink)
    return moved.support(*min(tries, key=lambda tried: tried[0])[1])


def refitted(
    moved: Displacement,
    evidence: Evidence,
    k: int,
    *,
    information: Float[Tensor, " movable"] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Candidates:
    """The weights of `rescaled`, their values fitted by Adam to the tuned model's predictions on training examples."""
    support = rescaled(moved, evidence, k, information=information, seed=seed, progress=progress)
    moved.put(moved.base)
    graft = GraftedModel(moved.model, moved.readout, support)
    stretch = torch.ones_like(graft.delta)  # of each weight's move, so that one rate serves all
    optimizer = torch.optim.Adam([stretch], lr=_RATE)
    order, sample = batches(len(evidence.rows), 32, seed), evidence.sample(seed)
    graft.set_mask(stretch)
    tries = [(graft.loss(sample.rows, sample.soft), stretch.clone())]
    for number in range(_STEPS):
        graft.set_mask(stretch)
        batch = next(order)
        stretch.grad = graft.mask_gradient([evidence.rows[i] for i in batch], evidence.soft[batch])
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - number / _STEPS)
        optimizer.step()
        progress(number + 1, _STEPS, "refitting: steps")
    graft.set_mask(stretch)
    tries.append((graft.loss(sample.rows, sample.soft), stretch))
    best = min(tries, key=lambda tried: tried[0])[1]
    moved.work += graft.work
    values = (graft.base + best * graft.delta).cpu()
    graft.set_chosen(torch.empty(0, dtype=torch.int64))
    return support.with_values(values)


def fisher(
    moved: Displacement, evidence: Evidence, seed: int = 0, progress: Progress = silent
) -> Float[Tensor, " movable"]:
    """The diagonal of the Fisher information, a mean along the straight path from base to tuned.

    Labels are drawn from the model's own predictions. Then gradients of single examples are independent with mean zero, so
    the square of a batch's mean gradient, times the batch's size, has the mean square of theirs as its expectation.
    """
    order, total = batches(len(evidence.rows), _EXAMPLES, seed), torch.zeros_like(moved.base)
    random = torch.Generator().manual_seed(seed)
    for number in range(_PATH):
        moved.put_share((number + 0.5) / _PATH)
        for _ in range(_BATCHES):
            rows = [evidence.rows[i] for i in next(order)]
            labels = torch.multinomial(moved.scores(rows).float().cpu().softmax(1), 1, generator=random)[:, 0]
            total.addcmul_(*[moved.gradient(rows, labels)] * 2, value=len(rows) / (_PATH * _BATCHES))
        progress(number + 1, _PATH, "rescaling: Fisher information from base to tuned")
    return total


def inclusion(weight: Float[Tensor, " movable"], k: int) -> Float[Tensor, " movable"]:
    """Chances min(1, lambda * weight) that sum to k; weights of zero have none."""
    k = min(k, int((weight > 0).sum()))
    factor = 0.0
    while True:  # each round makes more of them certain, so it ends
        certain = weight * factor >= 1.0
        left = k - int(certain.sum())
        rest = float(weight.masked_fill(certain, 0.0).sum(dtype=torch.float64))
        if left <= 0 or rest <= 0.0 or left / rest <= factor:
            return (weight * factor).clamp_(max=1.0)
        factor = left / rest


def systematic(chance: Float[Tensor, " movable"], start: float) -> Int64[Tensor, " k"]:
    """Draw as many as the chances sum to: where their running sum passes start, start + 1, and so on; `start` in [0, 1)."""
    k = round(float(chance.sum(dtype=torch.float64)))
    marks = torch.arange(k, dtype=torch.float64, device=chance.device) + start
    reached = chance.cumsum(0, dtype=torch.float64)
    reached *= k / float(reached[-1]) if k else 1.0  # off by rounding only
    found = torch.searchsorted(reached, marks, right=True).clamp_(max=len(chance) - 1)
    return found.unique()
