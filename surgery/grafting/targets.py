"""The smallest number of weights that recovers a gain asked for, by bisection."""

import math
from collections.abc import Callable
from typing import Any

from surgery.errors import OptionError

_FEWEST, _PRECISION = 1e-5, 1.25  # the smallest share tried, and the ratio of the two shares it ends between


def check_target(target: float | None, sparsity: float | None, weights: int | None, sweep: object = ()) -> None:
    """Raise OptionError for a target out of range, or one beside a number of weights."""
    if target is None:
        return
    if not 0 < target <= 1:
        raise OptionError(f"`target_gain` {target:g} must lie above 0 and be at most 1")
    if sparsity is not None or weights is not None or sweep:
        given = "sparsity" if sparsity is not None else "weights" if weights is not None else "sweep"
        raise OptionError(f"`target_gain` finds the number of weights itself: leave out `{given}`")


def smallest(target: float, movable: int, gain: Callable[[int], float]) -> tuple[int, list[dict[str, Any]]]:
    """The smallest number of weights found to reach the target, within a quarter, and all that was tried, by number.

    Bisection of the logarithm of the share, between 1e-5 and all weights, which are the tuned checkpoint. It takes the gain
    to rise with the number of weights; where it wobbles, a smaller number may do that wasn't tried.

    Args:
        gain: what a number of weights recovers of tuning's gain.
    """
    low, high = max(1, int(_FEWEST * movable)), movable
    tried = {low: gain(low)}
    if tried[low] >= target:
        high = low
    while high > low + 1 and high / low > _PRECISION:
        middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        tried[middle] = gain(middle)
        low, high = (low, middle) if tried[middle] >= target else (middle, high)
    if high == movable:
        tried[high] = 1.0
    points = [{"weights": k, "sparsity": k / movable, "gain": share} for k, share in sorted(tried.items())]
    return high, points
