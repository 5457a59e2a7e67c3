"""Calibration: how far a model's confidence can be trusted, and two corrections that change no weight."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

BINS = 15  # of equal width, the usual number since Guo et al. (2017)


@dataclass(frozen=True)
class Reliability:
    """Per bin of confidence: mean confidence, accuracy, and share of the examples (NaN-free; empty bins have share 0)."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    share: tuple[float, ...]

    @classmethod
    def of(cls, probabilities: NDArray, targets: NDArray, bins: int = BINS) -> "Reliability":
        """Bin class probabilities [examples, labels] and the right labels [examples]."""
        sure = probabilities.max(1)
        right = probabilities.argmax(1) == targets
        number = np.minimum((sure * bins).astype(int), bins - 1)
        counts = np.bincount(number, minlength=bins)
        divisor = np.maximum(counts, 1)
        return cls(
            tuple((np.bincount(number, sure, bins) / divisor).tolist()),
            tuple((np.bincount(number, right, bins) / divisor).tolist()),
            tuple((counts / len(targets)).tolist()),
        )

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, weighted by share; 0 to 1."""
        return sum(
            share * abs(sure - right)
            for sure, right, share in zip(self.confidence, self.accuracy, self.share, strict=True)
        )


def softmax(logits: NDArray) -> NDArray:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def scaled_ece(logits: NDArray, targets: NDArray) -> float:
    """ECE after temperature scaling (Guo et al. 2017), two-fold: each half is scaled by the temperature fitted on the other."""
    halves = np.arange(len(targets)) % 2 == 0
    scaled = np.empty(logits.shape, dtype=np.float64)
    for half in (halves, ~halves):
        if not (~half).any():
            return Reliability.of(softmax(logits), targets).ece
        scaled[half] = logits[half] / fit_temperature(logits[~half], targets[~half])
    return Reliability.of(softmax(scaled), targets).ece


def fit_temperature(logits: NDArray, targets: NDArray) -> float:
    """The divisor of the logits that gives the right labels the highest likelihood; kept within 0.01 and 100."""
    scores, right = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    log_scale = _minimise(torch.zeros(1, dtype=torch.float64), lambda s: F.cross_entropy(scores * s.exp(), right))
    return float(np.exp(-np.clip(log_scale.item(), np.log(0.01), np.log(100.0))))


def fit_bias(logits: NDArray, targets: NDArray) -> NDArray:
    """The constant per label, [labels], whose addition to the logits gives the right labels the highest likelihood."""
    scores, right = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    start = torch.zeros(logits.shape[1], dtype=torch.float64)
    # A very small ridge penalty keeps the bias finite when a label is always or never right.
    return _minimise(start, lambda b: F.cross_entropy(scores + b, right) + 1e-6 * (b**2).sum()).numpy()


def _minimise(start: torch.Tensor, loss) -> torch.Tensor:  # type: ignore[no-untyped-def]
    free = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(free)
        value.backward()
        return value

    optimiser.step(closure)
    return free.detach()
