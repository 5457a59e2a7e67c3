"""Ways to choose exactly k of the candidates. Each returns k candidate numbers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from surgery.errors import OptionError
from surgery.grafting.candidates import GraftedModel
from surgery.progress import Progress, silent
from surgery.tasks.readout import Encoded

METHODS = ("dual-averaging", "sigmoid", "movement")
_EARLIER_NAMES = {"averaging": "dual-averaging"}

Chosen = Int64[Tensor, " k"]


class Evidence(NamedTuple):
    """Evidence that a method learns from: encoded training examples and, for each, the label and the tuned model's probabilities."""

    rows: Sequence[Encoded]
    labels: Int64[Tensor, " examples"]
    soft: Float[Tensor, "examples labels"]

    def split(self, seed: int) -> tuple["Evidence", "Evidence"]:
        """Four fifths of the examples, and the rest; both are all of them where there are fewer than ten."""
        count = len(self.rows)
        if count < 10:
            return self, self
        order = np.random.default_rng(seed).permutation(count)
        return self.take(np.sort(order[count // 5 :])), self.take(np.sort(order[: count // 5]))

    def sample(self, seed: int) -> "Evidence":
        """At most 256 of the examples."""
        return self.take(np.random.default_rng(seed).permutation(len(self.rows))[:256])

    def take(self, numbers: NDArray) -> "Evidence":
        """Some of the examples."""
        return Evidence([self.rows[i] for i in numbers], self.labels[numbers], self.soft[numbers])


def method_named(name: str, epochs: int | None = None) -> str:
    """One of METHODS, by its name or an earlier one; raises OptionError for another, and for `epochs` that it doesn't have."""
    name = _EARLIER_NAMES.get(name, name)
    if name not in METHODS:
        raise OptionError(f"`method` {name} isn't one of {', '.join(METHODS)}")
    if epochs is not None and (name != "sigmoid" or epochs < 1):
        raise OptionError(f"`epochs` {epochs} goes with `method` sigmoid, and must be 1 or more")
    return name


def locate(
    method: str,
    grafted: GraftedModel,
    evidence: Evidence,
    k: int,
    *,
    epochs: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Chosen:
    """Choose k candidates by one of METHODS."""
    if method == "movement":
        return movement(grafted, k)
    if method == "sigmoid":
        return sigmoid(grafted, evidence, k, epochs=epochs, seed=seed, progress=progress)
    return dual_averaging(grafted, evidence, k, seed=seed, progress=progress)


def dual_averaging(
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
    order = batches(len(evidence.rows), batch_size, seed)

    def saliency() -> Tensor:
        batch = next(order)
        return -grafted.mask_gradient([evidence.rows[i] for i in batch], evidence.soft[batch])

    along = torch.zeros_like(grafted.delta)
    for number in range(_PATH):
        grafted.set_mask(torch.full_like(grafted.delta, (number + 0.5) / _PATH))
        along += saliency() / _PATH
        progress(number + 1, _PATH + rounds, "locating: saliency from base to tuned")
    moved = grafted.delta.abs()
    scale = _mean_of_best(along, k) / _mean_of_best(moved, k)
    # A path that gains nothing on average tells nothing; then movement alone is the prior.
    score = _PATH_WEIGHT * along + _MOVED_WEIGHT * scale * moved if scale > 0 else moved
    for number in range(rounds):
        wide = round(k * _WIDE ** max(0.0, 1 - number / (0.6 * rounds)))
        grafted.set_chosen(_best(score, wide))
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
    epochs: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Chosen:
    """The published method (Panigrahi et al. 2023, section 3.1), at the settings that serve it best.

    Gates gamma = g + (1 - 2 g) * sigmoid(S - 10) start at the k weights that moved furthest (g = 1 there). S takes one
    plain gradient step an epoch, on the cross-entropy over all examples. Published without a budget; here the k largest
    gates are taken, and only candidates have a gate.

    Published with 10 to 100 epochs and a rate of 1e7; here both are chosen: on four fifths of the training examples, by
    the cross-entropy of the rest. Then all examples are learnt from.

    Args:
        epochs: as many, instead of choosing; the rate is chosen for them.
    """
    train, held = evidence.split(seed)
    last = epochs or _EPOCHS[-1]
    tries: dict[tuple[float, int], float] = {}
    for number, rate in enumerate(_RATES):
        own: list[float] = []
        for epoch, chosen in enumerate(_gates(grafted, train, k, rate, last, batch_size), 1):
            progress(number * last + epoch, (len(_RATES) + 1) * last, "locating: gates, rate and epochs")
            if epoch == last or (epochs is None and epoch in _EPOCHS):
                own.append(_loss(grafted, held, chosen, held.labels))
                tries[rate, epoch] = own[-1]
                if len(own) > 2 and min(own[-2:]) >= min(own[:-2]):
                    break
    rate, count = min(tries, key=lambda tried: tries[tried])
    gates = _gates(grafted, evidence, k, rate, count, batch_size)
    for epoch in range(1, count):
        next(gates)
        progress(len(_RATES) * last + epoch, len(_RATES) * last + count, "locating: gates")
    return next(gates)


_RATES, _EPOCHS = (1e7, 1e6, 1e8), tuple(range(10, 101, 10))


def _gates(
    grafted: GraftedModel, evidence: Evidence, k: int, rate: float, epochs: int, batch_size: int
) -> Iterator[Chosen]:
    """The k largest gates after each epoch."""
    inside = torch.zeros_like(grafted.delta)
    inside[movement(grafted, k)] = 1.0
    sign, logit = 1 - 2 * inside, torch.zeros_like(grafted.delta)
    pieces = np.array_split(np.arange(len(evidence.rows)), -(-len(evidence.rows) // batch_size))
    for _ in range(epochs):
        opening = torch.sigmoid(logit - 10)
        grafted.set_mask(inside + sign * opening)
        gradient = torch.zeros_like(logit)
        for piece in pieces:
            share = len(piece) / len(evidence.rows)
            gradient += grafted.mask_gradient([evidence.rows[i] for i in piece], evidence.labels[piece]) * share
        logit -= rate * gradient * sign * opening * (1 - opening)
        yield _best(inside + sign * torch.sigmoid(logit - 10), k)


def movement(grafted: GraftedModel, k: int) -> Chosen:
    """The k weights that moved furthest in fine-tuning."""
    return _best(grafted.delta.abs(), k)


def _best(score: Tensor, k: int) -> Chosen:
    return score.topk(min(k, len(score)), sorted=False).indices


def _distance(grafted: GraftedModel, evidence: Evidence, chosen: Chosen, seed: int) -> float:
    """Mean cross-entropy of the graft to the tuned model's predictions on at most 256 examples."""
    drawn = evidence.sample(seed)
    return _loss(grafted, drawn, chosen, drawn.soft)


def _loss(grafted: GraftedModel, evidence: Evidence, chosen: Chosen, targets: Tensor) -> float:
    """Mean cross-entropy of the graft to labels or to probabilities."""
    grafted.set_chosen(chosen)
    return grafted.loss(evidence.rows, targets)


def _mean_of_best(score: Tensor, k: int) -> float:
    return float(score[_best(score, k)].mean())


def batches(examples: int, size: int, seed: int):  # type: ignore[no-untyped-def]
    """Example numbers without end: one permutation after another."""
    random = np.random.default_rng(seed)
    size = min(size, examples)
    while True:
        order = random.permutation(examples)
        yield from (order[start : start + size] for start in range(0, examples - size + 1, size))
