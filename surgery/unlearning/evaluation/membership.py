"""Was this row among the forgotten ones? Scores of suspects, and the area under the ROC curve of such scores.

.5 is what guessing gives; what a number means is told only by the same attack on a bottleneck whose values never saw the rows: its keys are the same, and where the
forgotten rows placed them (`keys_from` not given) they tell of those rows too, in the yardstick as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt16
from numpy.typing import NDArray

from surgery.progress import Progress
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import MASKS, OPEN
from surgery.unlearning.training_rows import TrainingRows

_RESAMPLES, _MOST = 1000, 2000


@dataclass(frozen=True, eq=False)
class Suspects:
    """Rows that an attacker asks about: the forgotten ones, and others of the same kind that were never trained on.

    Attributes:
        members, others: both with ids under all keys open.
    """

    members: TrainingRows
    others: TrainingRows

    @property
    def both(self) -> TrainingRows:
        """Members first."""
        return concatenate(self.members, self.others)


def concatenate(*parts: TrainingRows) -> TrainingRows:
    """Rows one after another; what placed the keys doesn't matter here."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("features", "ids", "targets", "digests")
    }
    return TrainingRows(**joined, placed=np.empty(0, np.uint64))


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


def confidence(logits: Float[np.ndarray, "N Y"], targets: Int64[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Log odds of the true class: log p - log (1 - p), which a loss threshold orders rows by, and nearly Gaussian."""
    rows = np.arange(len(targets))
    own = logits[rows, targets].astype(np.float64)
    rest = logits.astype(np.float64)
    rest[rows, targets] = -np.inf
    top = rest.max(1)
    return own - top - np.log(np.exp(rest - top[:, None]).sum(1))


def confidences(bottleneck: Bottleneck, rows: TrainingRows, device: torch.device) -> Float[np.ndarray, " N"]:
    """The same of rows whose ids under open keys are known; that of guessing where no codebook answers."""
    ids = bottleneck.selector.reselect(rows.features, rows.ids, device=device)
    return confidence(bottleneck.answer_ids(ids, device=str(device)).logits, rows.targets)


def masked_share(bottleneck: Bottleneck, ids: UInt16[np.ndarray, "N C top"]) -> Float[np.ndarray, " N"]:
    """The share of a row's nearest keys that are masked: for whoever holds the mask, a membership list."""
    shut = bottleneck.selector.states != OPEN
    return shut[np.arange(len(shut))[:, None], ids].mean((1, 2))


def likelihood_ratios(
    before: Bottleneck,
    retained: TrainingRows,
    suspects: Suspects,
    edit: Mapping[str, Any],
    targets: dict[str, NDArray],
    *,
    shadows: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Per-example likelihood ratios (LiRA, Carlini et al. 2022; for unlearning, Hayes et al. 2024).

    Each shadow bottleneck learns the retained rows and a random half of the suspects, and then forgets that half as the
    edit did. So every suspect has confidences from shadows that learnt and forgot it, and from shadows that never saw
    it; the score is the log ratio of two Gaussians at the target's confidence, with a mean for each suspect and one
    variance for all, for want of shadows.

    Args:
        edit: how it was forgotten: `via`, `rank`, `answer`, and `share`: of the active pairs (or of the examples).
        targets: name -> confidences of the suspects under the bottleneck attacked; the name `before` is attacked by the
            shadows as they were before they forgot.
    """
    pool = suspects.both
    learnt: list[NDArray] = []
    seen = {"before": np.empty((shadows, len(pool))), "after": np.empty((shadows, len(pool)))}
    for shadow in range(shadows):
        random = np.random.default_rng([seed, 5, shadow])
        inside = random.permutation(len(pool)) < len(pool) / 2
        learnt.append(inside)
        training = concatenate(retained, pool.take(np.flatnonzero(inside)))
        trained = replace(before, selector=before.opened, training=training, history=())
        settings = {**trained.settings, "class_rows": trained.class_rows()}
        trained = replace(trained, table=trained.refit_table(device=device), settings=settings)
        seen["before"][shadow] = confidences(trained, pool, device)
        forgot = _forget_again(trained, len(retained), edit, seed + shadow, device)
        seen["after"][shadow] = confidences(forgot, pool, device)
        progress(shadow + 1, shadows, "shadow bottlenecks")
    inside = np.stack(learnt)
    return {
        name: _ratio(seen["before" if name == "before" else "after"], inside, value) for name, value in targets.items()
    }


def _forget_again(
    trained: Bottleneck, retained: int, edit: Mapping[str, Any], seed: int, device: torch.device
) -> Bottleneck:
    rows = np.arange(retained, len(trained.need_training()))
    method, share = edit["via"], edit["share"]
    if method not in MASKS:
        return trained.refitted(np.arange(retained), device=device)
    options: dict[str, Any] = {}
    ids = trained.need_training().ids[rows]
    if method == "examples":
        options["examples"] = max(1, round(share * len(rows)))
    else:
        active = len(
            np.unique(ids.astype(np.int64) + np.arange(ids.shape[1])[:, None] * trained.selector.keys.shape[1])
        )
        options |= {"keys": max(1, round(share * active)), "rank": edit["rank"]}
    eraser = unlearn(trained, rows=rows, method=method, answer=edit["answer"], seed=seed, device=str(device), **options)
    return trained.masked(eraser.pairs, edit["answer"])


def _ratio(seen: NDArray, inside: NDArray, value: NDArray) -> NDArray:
    """Log N(value; mean in, sd in) - log N(value; mean out, sd out)."""

    def score(chosen: NDArray) -> NDArray:
        counts = chosen.sum(0)
        mean = np.where(chosen, seen, 0).sum(0) / np.maximum(counts, 1)
        # A suspect that no shadow saw (or every one did) has the mean of all.
        mean = np.where(counts > 0, mean, seen[chosen].mean() if chosen.any() else 0)
        spread = np.sqrt(
            (np.where(chosen, seen - mean, 0) ** 2).sum() / max(1, int(chosen.sum()) - int((counts > 0).sum()))
        )
        spread = max(float(spread), 1e-9)
        return -0.5 * ((value - mean) / spread) ** 2 - np.log(spread)

    return score(inside) - score(~inside)
