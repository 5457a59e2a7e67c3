"""Ways to choose exactly k of the candidates. Each returns k candidate numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.grafting.candidates import GraftedModel
from surgery.progress import Progress, silent
from surgery.tasks.readout import Encoded

METHODS = ("averaging", "sigmoid", "movement")

Chosen = Int64[Tensor, " k"]


class Evidence(NamedTuple):
    """What a method learns from: encoded training examples and, for each, the label and the tuned model's probabilities."""

    rows: Sequence[Encoded]
    labels: Int64[Tensor, " examples"]
    soft: Float[Tensor, "examples labels"]


def averaging(
    grafted: GraftedModel,
    evidence: Evidence,
    k: int,
    *,
    seed: int = 0,
    rounds: int = 25,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Chosen:
    """Dual averaging of saliency, from a prior of movement and path saliency.

    A weight's saliency is what going from its base to its tuned value gains, to first order: minus (tuned - base) times
    the gradient of the cross-entropy to the tuned model's predictions. The prior score is its mean along the straight
    path from base to tuned (integrated gradients; Sundararajan et al. 2017) plus the distance moved, scaled to be as
    large on its own k best. Each round then puts the k_t best candidates in and adds the saliency found there, so that a
    weight is judged beside those it will be used with; k_t falls geometrically from 4 k to k over the first 60% of the
    rounds. Last, the k best and the k that moved furthest are both put in, and those stay that come closer to the tuned
    model's predictions on the training examples.

    Learning from the tuned model's predictions rather than the labels serves agreement and calibration; the prior on
    movement serves large budgets, where saliency alone is too noisy to rank the many small weights.
    """
    order = _batches(len(evidence.rows), batch_size, seed)

    def saliency() -> Tensor:
        batch = next(order)
        return -grafted.slope([evidence.rows[i] for i in batch], evidence.soft[batch])

    along = torch.zeros_like(grafted.delta)
    for number in range(_PATH):
        grafted.wear(torch.full_like(grafted.delta, (number + 0.5) / _PATH))
        along += saliency() / _PATH
        progress(number + 1, _PATH + rounds, "locating: saliency from base to tuned")
    moved = grafted.delta.abs()
    scale = _mean_of_best(along, k) / _mean_of_best(moved, k)
    # A path that gains nothing on average tells nothing; then movement alone is the prior.
    score = _PATH_WEIGHT * along + _MOVED_WEIGHT * scale * moved if scale > 0 else moved
    for number in range(rounds):
        wide = round(k * _WIDE ** max(0.0, 1 - number / (0.6 * rounds)))
        grafted.wear_only(_best(score, wide))
        score += saliency()
        progress(_PATH + number + 1, _PATH + rounds, "locating: saliency in the graft")
    choices = [_best(score, k), movement(grafted, k)]
    return min(choices, key=lambda chosen: _distance(grafted, evidence, chosen, seed))


# Chosen on held-out training examples of trec, one seed: a rough choice. The prior outweighs all rounds together.
_PATH, _PATH_WEIGHT, _MOVED_WEIGHT, _WIDE = 8, 10.0, 100.0, 4.0


def sigmoid(
    grafted: GraftedModel,
    evidence: Evidence,
    k: int,
    *,
    epochs: int = 10,
    rate: float = 1e7,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Chosen:
    """The published method (Panigrahi et al. 2023, section 3.1, with the constants of its code).

    Gates gamma = g + (1 - 2 g) * sigmoid(S - 10) start at the k weights that moved furthest (g = 1 there). S takes one
    plain gradient step an epoch, on the cross-entropy over at most 1,024 examples; the mask that predicts these best is kept.
    Published without a budget; here the k largest gates are taken, and
    only candidates have a gate. Published with 10 to 100 epochs; `epochs` sets them.
    """
    start = movement(grafted, k)
    inside = torch.zeros_like(grafted.delta)
    inside[start] = 1.0
    sign = 1 - 2 * inside
    logit = torch.zeros_like(grafted.delta)
    count = min(1024, len(evidence.rows))
    pieces = np.array_split(np.arange(count), -(-count // batch_size))
    best, best_right = start, -1
    for epoch in range(epochs + 1):
        gate = inside + sign * torch.sigmoid(logit - 10)
        chosen = _best(gate, k)
        grafted.wear_only(chosen)
        right = 0
        for piece in pieces:
            scores = grafted.scores([evidence.rows[i] for i in piece]).cpu()
            right += int((scores.argmax(1) == evidence.labels[piece]).sum())
        if right > best_right:
            best, best_right = chosen, right
        if epoch == epochs:
            break
        grafted.wear(gate)
        slope = torch.zeros_like(gate)
        for piece in pieces:
            slope += grafted.slope([evidence.rows[i] for i in piece], evidence.labels[piece]) * (len(piece) / count)
        opening = torch.sigmoid(logit - 10)
        logit -= rate * slope * sign * opening * (1 - opening)
        progress(epoch + 1, epochs, "locating: gates")
    return best


def movement(grafted: GraftedModel, k: int) -> Chosen:
    """The k weights that moved furthest in fine-tuning."""
    return _best(grafted.delta.abs(), k)


def _best(score: Tensor, k: int) -> Chosen:
    return score.topk(min(k, len(score)), sorted=False).indices


def _distance(grafted: GraftedModel, evidence: Evidence, chosen: Chosen, seed: int) -> float:
    """Mean cross-entropy of the graft to the tuned model's predictions on at most 256 examples."""
    grafted.wear_only(chosen)
    drawn = np.random.default_rng(seed).permutation(len(evidence.rows))[:256].tolist()
    numbers = sorted(drawn, key=lambda number: len(evidence.rows[number].ids))
    total = 0.0
    for start in range(0, len(numbers), 32):
        piece = numbers[start : start + 32]
        scores = grafted.scores([evidence.rows[i] for i in piece]).cpu()
        total += float(F.cross_entropy(scores, evidence.soft[piece].to(scores.dtype), reduction="sum"))
    return total / len(numbers)


def _mean_of_best(score: Tensor, k: int) -> float:
    return float(score[_best(score, k)].mean())


def _batches(examples: int, size: int, seed: int):  # type: ignore[no-untyped-def]
    """Example numbers without end: one permutation after another."""
    random = np.random.default_rng(seed)
    size = min(size, examples)
    while True:
        order = random.permutation(examples)
        yield from (order[start : start + size] for start in range(0, examples - size + 1, size))
