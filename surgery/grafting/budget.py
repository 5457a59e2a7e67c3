"""How many weights a graft may have: from a share or a number, along a sweep, and the candidates kept to choose them from."""

import math
from collections.abc import Sequence

import numpy as np

from surgery.errors import OptionError

_CANDIDATES_PER_WEIGHT, _FEWEST_CANDIDATES = 16, 1 << 20


def candidate_limit(ladder: Sequence[int]) -> int:
    """How many candidates are kept at most to choose so many weights from, each in turn."""
    return max(_FEWEST_CANDIDATES, _CANDIDATES_PER_WEIGHT * max(ladder))


def budget(movable: int, sparsity: float | None, weights: int | None) -> int:
    """The number of weights a graft may have; raises OptionError when it is out of range."""
    if sparsity is not None and weights is not None:
        raise OptionError("give `sparsity` or `weights`, not both")
    if weights is not None:
        if not 1 <= weights <= movable:
            raise OptionError(f"`weights` {weights} must lie between 1 and the {movable:,} movable weights")
        return weights
    share = 1e-4 if sparsity is None else sparsity
    if not 0 < share <= 1:
        raise OptionError(f"`sparsity` {share:g} must lie above 0 and be at most 1")
    return max(1, int(share * movable))


def parse_sweep(text: str) -> list[float]:
    """`1e-5:1e-2` as sparsities from the first to the second, two a decade; or a comma-separated list of them."""
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        low, high = (float(part) for part in text.split(":"))
        if not 0 < low < high <= 1:
            raise ValueError
    except ValueError:
        raise OptionError(
            f"`sweep` {text!r} must be LOW:HIGH with 0 < LOW < HIGH <= 1, such as 1e-5:1e-2, or sparsities with commas"
        ) from None
    return np.geomspace(low, high, max(2, round(2 * math.log10(high / low)) + 1)).tolist()
