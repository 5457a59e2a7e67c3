"""Maps from a row's gradient to its feature: the gradient itself, or the step that Adam would take."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.selecting.warmup import BETAS, EPS

MAPS = ("sgd", "adam", "adam-corrected")


@dataclass(frozen=True, eq=False)
class GradientMap:
    """Map of gradients at a checkpoint.

    `adam` is LESS's (Xia et al. 2024, section 2.2 as their code has it): (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps), with eps
    inside the root and without bias correction. `adam-corrected` is Adam's next step: both moments corrected, eps outside the root,
    as dattri-llm has it.

    Attributes:
        moments: m and v by layer, `exp_avg` and `exp_avg_sq`; `sgd` looks at none.
        steps: optimiser steps before the checkpoint.
    """

    name: str
    moments: Mapping[str, Mapping[str, Tensor]]
    steps: int = 0

    def __call__(self, layer: str, gradient: Float[Tensor, "batch weights"]) -> Float[Tensor, "batch weights"]:
        """Features of one layer's weights."""
        if self.name == "sgd":
            return gradient
        state = self.moments[f"{layer}.weight"]
        mean, square = (state[moment].flatten() for moment in ("exp_avg", "exp_avg_sq"))
        first, second = BETAS
        upper = torch.add(first * mean, gradient, alpha=1 - first)
        lower = torch.addcmul(second * square, gradient, gradient, value=1 - second)
        if self.name == "adam":
            return upper.div_(lower.add_(EPS).sqrt_())
        step = self.steps + 1
        return upper.div_(1 - first**step).div_(lower.div_(1 - second**step).sqrt_().add_(EPS))
