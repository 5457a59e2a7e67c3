"""Prospects of a graft before anything is located: how many weights tuning moved, and what few of them can be expected to gain."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

SPREAD = 0.5  # the share of weights moved from which on a skill counts as spread over them
SHARES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_ENOUGH, _LITTLE = 1.0, 0.25
_TUNED, _RESCALED, _LOW_RANK = 5e-2, 1e-3, 1e-2  # the shares at which each product did well where it was measured


def is_spread(moved: int, movable: int) -> bool:
    """Whether tuning moved so many of the weights that few of them can't be expected to carry what it learnt."""
    return moved >= SPREAD * movable


def ceiling(saliency: Float[Tensor, " weights"], won: float, counts: Sequence[int]) -> dict[int, float]:
    """By number of weights: what the best of them gain by their tuned values, as a share of what tuning gained, to first order.

    It leaves out curvature and what weights do together, so it is an estimate, and mostly too high, not a bound.

    Args:
        saliency: -(tuned - base) * gradient of the cross-entropy to the tuned model's predictions, at the base.
        won: the fall of that cross-entropy from base to tuned.
    """
    best = saliency.topk(min(len(saliency), max(counts))).values.clamp_(min=0).double().cumsum(0)
    return {count: float(best[min(count, len(best)) - 1]) / won if won > 0 else 0.0 for count in counts}


def prospects(found: Mapping[int, float], asked: int, moved: int, movable: int) -> dict[str, Any]:
    """What a report holds of it; `found` is what `ceiling` gives, empty where no gradient was taken."""
    points = [
        {"weights": count, "sparsity": count / movable, "ceiling": share} for count, share in sorted(found.items())
    ]
    return {"moved": moved, "movable": movable, "asked": asked, "ceiling": found.get(asked), "points": points}


def told(held: Mapping[str, Any], *, tuned_values: bool = True) -> list[str]:
    """Sentences on a report's `prospects`: what to expect, and for a graft of tuned values what to ask for instead."""
    asked, movable, moved, top = held["asked"], held["movable"], held["moved"], held["ceiling"]
    first = f"Tuning moved {moved:,} of {movable:,} block weights ({moved / movable:.2%})."
    if top is None:
        return [first]
    first += f" At their tuned values the best {asked:,} ({asked / movable:.2g}) gain {_share(top)} of what it gained, to first order and at most."
    return [first, *([proposal(held)] if tuned_values and too_few(held) else [])]


def _share(top: float) -> str:
    return f"{top:.2f}" if top < 1 else "all"


def too_few(held: Mapping[str, Any]) -> bool:
    """Whether tuning moved so much, and the weights asked for can gain so little, that something else fits the checkpoint."""
    return is_spread(held["moved"], held["movable"]) and held["ceiling"] is not None and held["ceiling"] < _ENOUGH


def proposal(held: Mapping[str, Any]) -> str:
    """What fits a checkpoint in which the weights asked for can't carry the skill at their tuned values."""
    asked = held["asked"] / held["movable"]
    more = f"`surgery graft --sparsity {_TUNED:g}`" if asked < _TUNED else "a larger `surgery graft --sparsity`"
    others = (
        f"`surgery graft --values refitted --sparsity {_RESCALED:g}` and `surgery graft --low-rank --sparsity {_LOW_RANK:g}` come near to it with few numbers, "
        f"{more} with many of the tuned values."
    )
    if held["ceiling"] < _LITTLE and asked < _RESCALED:
        return f"There is nothing of this checkpoint to find in so few weights: tune the base again with `surgery tune`, whose default leaves a skill in few. Or, for what this checkpoint does: {others}"
    return f"These are likely too few for this checkpoint at their tuned values: {others}"
