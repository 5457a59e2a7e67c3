"""Baselines that a graft is held against, at the same number of weights (Panigrahi et al. 2023, section 3.3 and appendix)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.counterparts import counterparts
from surgery.checkpoints.models import Model
from surgery.grafting.candidates import Candidates

Baseline = Literal["movement", "random", "random moved", "biases and norms", "zero outside"]
BASELINES: tuple[Baseline, ...] = ("movement", "random", "random moved", "biases and norms", "zero outside")

Parts = Mapping[str, tuple[Tensor, Tensor]]


def load_baseline(
    name: Baseline,
    model: Model,
    tuned: Checkpoint,
    names: Sequence[str],
    candidates: Candidates,
    k: int,
    region: Candidates,
    seed: int,
) -> int:
    """Put a baseline's weights, of the movable tensors `names`, into a base model; the caller restores the base afterwards.

    Returns how many weights it is made of.

    - movement: the k weights that moved furthest.
    - random: k of all movable weights; those that didn't move change nothing.
    - random moved: k of the candidates, all of which moved.
    - biases and norms: the k one-dimensional weights that moved furthest.
    - zero outside: the region's tuned values, and zero for every other movable weight (a lottery ticket not retrained).
    """
    random = np.random.default_rng([seed, k])
    if name == "random":
        parts: Parts = _random_parts(model, tuned, names, k, random)
    else:
        chosen = region if name == "zero outside" else candidates.subset(_choose(name, model, candidates, k, random))
        parts = chosen.parts(torch.arange(len(chosen)))
    if name == "zero outside":
        with torch.no_grad():
            for tensor in names:
                model.parameters[tensor].zero_()
    for tensor, own in parts.items():
        model.put(tensor, *own)
    return sum(len(index) for index, _ in parts.values())


def _choose(name: Baseline, model: Model, candidates: Candidates, k: int, random: np.random.Generator) -> Tensor:
    if name == "random moved":
        return torch.from_numpy(random.permutation(len(candidates))[:k])
    distance = (candidates.tuned - candidates.base).abs()
    if name == "biases and norms":
        for tensor, stretch in candidates.stretches():
            if model.parameters[tensor].dim() > 1:
                distance[stretch] = 0.0
    return distance.topk(min(k, int((distance > 0).sum())), sorted=False).indices


def _random_parts(
    model: Model, tuned: Checkpoint, names: Sequence[str], k: int, random: np.random.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    theirs = counterparts(model.checkpoint, tuned)
    bounds = np.cumsum([0, *(model.parameters[name].numel() for name in names)])
    drawn = np.sort(random.choice(bounds[-1], k, replace=False))
    parts = {}
    for number, name in enumerate(names):
        low, high = np.searchsorted(drawn, bounds[number : number + 2])
        index = torch.from_numpy(drawn[low:high] - bounds[number])
        parts[name] = (index, tuned.tensor(theirs[name]).reshape(-1)[index])
    return parts
