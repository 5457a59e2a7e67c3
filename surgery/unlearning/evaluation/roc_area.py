"""The area under the ROC curve of a membership attack's scores, and how two of them differ, with bootstrap intervals.

.5 is what guessing gives; what a number means is told only by the same attack on a bottleneck whose values never saw the rows:
its keys are the same, and where the forgotten rows placed them (`keys_from` not given) they tell of those rows too, in the
yardstick as well.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

_RESAMPLES, _MOST = 1000, 2000


class RocArea:
    """The area under the ROC curve of a score that should be higher for members, with bootstrap intervals.

    The same resamples serve every score of the same suspects, so that a difference of two has an interval of its own.

    Args:
        members, others: how many of each.
    """

    def __init__(self, members: int, others: int, seed: int = 0) -> None:
        random = np.random.default_rng([seed, 4])
        self._pick = [random.permutation(n)[:_MOST] for n in (members, others)]
        self._weights = [
            random.multinomial(len(pick), np.full(len(pick), 1 / len(pick)), _RESAMPLES).astype(np.float32) / len(pick)
            for pick in self._pick
        ]

    def of(self, members: Float[np.ndarray, " M"], others: Float[np.ndarray, " N"]) -> dict[str, float]:
        """`auc` with the 95% interval `low` to `high`."""
        return _summary(*self._area(members, others))

    def difference(self, first: Sequence[NDArray], second: Sequence[NDArray]) -> dict[str, float]:
        """First less second, each (members, others), likewise."""
        (one, ones), (two, twos) = self._area(*first), self._area(*second)
        return _summary(one - two, ones - twos)

    def beyond(self, first: Sequence[NDArray], second: Sequence[NDArray]) -> dict[str, float]:
        """How much further first is from .5 than second, on either side: an attacker may turn a score round."""
        (one, ones), (two, twos) = self._area(*first), self._area(*second)
        return _summary(abs(one - 0.5) - abs(two - 0.5), np.abs(ones - 0.5) - np.abs(twos - 0.5))

    def _area(self, members: NDArray, others: NDArray) -> tuple[float, NDArray]:
        one, two = members[self._pick[0]], others[self._pick[1]]
        wins = (one[:, None] > two).astype(np.float32) + 0.5 * (one[:, None] == two)
        resampled = ((self._weights[0] @ wins) * self._weights[1]).sum(1)
        return float(wins.mean(dtype=np.float64)), resampled


def _summary(value: float, resampled: NDArray) -> dict[str, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"auc": value, "low": float(low), "high": float(high)}
