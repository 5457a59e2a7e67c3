"""Low rank: the components of each matrix's change that carry a task. Every weight of those matrices moves; it localises nothing."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from surgery.checkpoints.low_rank import Factors
from surgery.errors import OptionError
from surgery.grafting.displacement import Displacement
from surgery.grafting.methods import Evidence, batches
from surgery.progress import Progress, silent

_ROUNDS, _EXAMPLES = 12, 64


def low_rank(
    moved: Displacement, evidence: Evidence, numbers: int, *, seed: int = 0, progress: Progress = silent
) -> dict[str, Factors]:
    """Components of each tensor's tuned - base, of all together at most so many numbers; none is changed, nothing is trained.

    Components come from singular value decompositions. One's saliency is that of all weights along it: what putting it in
    gains, to first order. As in `grown`, the best by their mean saliency a number so far are put in, a twelfth of the budget
    at first, all of it at last. Raises OptionError for a budget below one component.
    """
    found = decompose(moved, numbers, progress)
    cost = torch.cat([torch.full((factors.left.shape[1],), sum(_sides(factors))) for factors in found.values()])
    order = batches(len(evidence.rows), _EXAMPLES, seed)
    total = torch.zeros(len(cost), dtype=moved.base.dtype)
    taken = torch.zeros(len(cost), dtype=torch.bool)
    for number in range(_ROUNDS):
        put_factors(moved, kept(found, taken))
        batch = next(order)
        gradient = moved.gradient([evidence.rows[i] for i in batch], evidence.soft[batch])
        places = dict(moved.stretches())
        slopes = [_slopes(gradient[places[name]], factors) for name, factors in found.items()]
        total -= torch.cat(slopes).cpu()
        taken = _within(total / cost, cost, numbers * (number + 1) // _ROUNDS)
        progress(number + 1, _ROUNDS, "locating: components")
    if not bool(taken.any()):
        raise OptionError(f"no component of a matrix fits into {numbers:,} numbers: raise `sparsity`")
    return kept(found, taken)


def decompose(moved: Displacement, numbers: int, progress: Progress = silent) -> dict[str, Factors]:
    """Every tensor's change, as far as it fits into so many numbers, the largest components first."""
    found, names = {}, list(moved.stretches())
    for done, (name, stretch) in enumerate(names, 1):
        shape = moved.model.parameters[name].shape
        matrix = (moved.tuned[stretch] - moved.base[stretch]).reshape(shape[0], -1)
        rank = min(*matrix.shape, max(1, numbers // sum(matrix.shape)))
        left, size, right = torch.linalg.svd(matrix, full_matrices=False)
        rank = min(rank, int((size > 0).sum()))
        found[name] = Factors(left[:, :rank] * size[:rank], right[:rank].clone())
        progress(done, len(names), "locating: singular values")
    return found


def kept(found: dict[str, Factors], taken: Bool[Tensor, " components"]) -> dict[str, Factors]:
    """The components taken, of the tensors that have any."""
    pieces = taken.split([factors.left.shape[1] for factors in found.values()])
    return {
        name: Factors(factors.left[:, own], factors.right[own])
        for (name, factors), piece in zip(found.items(), pieces, strict=True)
        if bool((own := piece.to(factors.left.device)).any())
    }


def put_factors(moved: Displacement, factors: dict[str, Factors]) -> None:
    """Set the model to the base plus factors."""
    moved.put(moved.base)
    for name, stretch in moved.stretches():
        if name in factors:
            left, right = (side.to(moved.base.device) for side in factors[name])
            moved.model.fill(name, moved.base[stretch] + (left @ right).reshape(-1))


def _slopes(gradient: Float[Tensor, " weights"], factors: Factors) -> Float[Tensor, " rank"]:
    """The loss's derivative with respect to a multiple of each component."""
    matrix = gradient.reshape(len(factors.left), -1)
    return ((factors.left.T @ matrix) * factors.right).sum(1)


def _within(
    score: Float[Tensor, " components"], cost: Int64[Tensor, " components"], numbers: int
) -> Bool[Tensor, " components"]:
    """The best components, one after another, that together cost at most `numbers`; those that do harm are left out."""
    scores = score.tolist()
    order = [component for component in score.argsort(descending=True, stable=True).tolist() if scores[component] > 0]
    costs, left = cost.tolist(), numbers
    taken = torch.zeros(len(score), dtype=torch.bool)
    for component in order:
        if costs[component] <= left:
            taken[component] = True
            left -= costs[component]
    return taken


def _sides(factors: Factors) -> tuple[int, int]:
    return factors.left.shape[0], factors.right.shape[1]
