"""Growing: weights put in little by little, each chosen by what it gains beside those that are in already."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from surgery.grafting.candidates import Candidates
from surgery.grafting.displacement import Displacement
from surgery.grafting.methods import Evidence, batches
from surgery.progress import Progress, silent

_ROUNDS, _EXAMPLES = 12, 64


def grown(
    moved: Displacement, evidence: Evidence, k: int, *, seed: int = 0, progress: Progress = silent
) -> Int64[Tensor, " k"]:
    """The k weights, numbered over all movable ones, that growing ends with; for checkpoints that moved nearly all weights.

    Twelve times over, the saliency of all weights is found in the graft as it stands, on 64 examples, and the best by its
    mean so far are put in: a twelfth of k at first, all k at last. It starts at the base, so that early rounds see the slope
    there and later ones what is still missing.
    """
    order = batches(len(evidence.rows), _EXAMPLES, seed)
    total = torch.zeros_like(moved.base)
    chosen = torch.empty(0, dtype=torch.int64, device=total.device)
    for number in range(_ROUNDS):
        moved.put_chosen(chosen)
        batch = next(order)
        total += moved.saliency([evidence.rows[i] for i in batch], evidence.soft[batch])
        chosen = total.topk(max(1, k * (number + 1) // _ROUNDS), sorted=False).indices
        progress(number + 1, _ROUNDS, "locating: growing")
    return chosen


def nearest(moved: Displacement, evidence: Evidence, choices: Sequence[Candidates], seed: int = 0) -> Candidates:
    """Whichever comes closest to the tuned model's predictions on at most 256 training examples; the first of equals."""
    sample, losses = evidence.sample(seed), []
    for support in choices:
        moved.put_support(support)
        losses.append(moved.loss(sample.rows, sample.soft))
    return choices[losses.index(min(losses))]
