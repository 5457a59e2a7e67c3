"""Suspects: rows that an attacker asks about, and what a bottleneck shows of each: how sure it is, which keys are masked."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt16

from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.key_selection import OPEN
from surgery.unlearning.training_rows import TrainingRows


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


def share_masked(bottleneck: Bottleneck, ids: UInt16[np.ndarray, "N C top"]) -> Float[np.ndarray, " N"]:
    """The share of a row's nearest keys that are masked: for whoever holds the mask, a membership list."""
    shut = bottleneck.selector.states != OPEN
    return shut[np.arange(len(shut))[:, None], ids].mean((1, 2))
