"""Learners, which take the backward pass's gradients: a step of descent on each row's copy of the weights, or a record of them."""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.errors import OptionError, TintError
from surgery.tint.auxiliary import Block


class DivergedError(TintError):
    """A descent whose gradients, logits or loss became NaN or infinite: the learning rate is too high."""


def check_rate(lr: float) -> None:
    """Raise OptionError for a learning rate that is negative or not finite."""
    if not 0 <= lr < math.inf:
        raise OptionError(f"the learning rate {lr} must be a number, 0 or more")


@runtime_checkable
class Learner(Protocol):
    """Takes the gradient of each tensor of each block, summed over tokens, as the backward pass comes to it."""

    def projection(self, layer: int, name: str, gradient: Tensor, x: Tensor) -> None:
        """Take a weight's, [out, in]: the sum over tokens of gradient [batch, tokens, out] times x [batch, tokens, in]."""

    def vector(self, layer: int, name: str, gradient: Float[Tensor, "batch width"]) -> None:
        """Take that of a bias or of a norm's weight."""


class Descent:
    """One step W - lr * gradient, on a copy of the weights for every row of the batch; the model's own stay as they are.

    In the paper's construction prefixes attend to the training tokens with minus the learning rate in the value matrix:
    the outer products add up over tokens (section 3, linear descent).
    """

    def __init__(self, blocks: Sequence[Block], lr: float) -> None:
        self.blocks = blocks
        self.lr = lr
        self.names: list[tuple[int, str]] = []
        self.sums: list[Tensor] = []  # of each gradient: finite where all of it is

    def projection(self, layer: int, name: str, gradient: Tensor, x: Tensor) -> None:
        """One fused product: the first step makes the row's copy and moves it at once."""
        weight = self.blocks[layer][name]
        self._watch(layer, name, gradient)
        if weight.dim() == 3:
            weight.baddbmm_(gradient.mT, x, alpha=-self.lr)
        elif len(x) == 1:
            self.blocks[layer][name] = torch.addmm(weight, gradient[0].mT, x[0], alpha=-self.lr).unsqueeze(0)
        else:
            self.blocks[layer][name] = torch.baddbmm(
                weight.expand(len(x), *weight.shape), gradient.mT, x, alpha=-self.lr
            )

    def vector(self, layer: int, name: str, gradient: Float[Tensor, "batch width"]) -> None:
        """Rows of biases and norms are small: a new tensor each step."""
        self._watch(layer, name, gradient)
        self.blocks[layer][name] = self.blocks[layer][name] - self.lr * gradient

    def _watch(self, layer: int, name: str, gradient: Tensor) -> None:
        self.names.append((layer, name))
        self.sums.append(gradient.sum())


def check_sums(sums: Float[Tensor, "steps tensors"], names: Sequence[tuple[int, str]], lr: float) -> None:
    """Raise DivergedError, naming step and tensor, for a gradient that was NaN or infinite: the first of them."""
    lost = ~torch.isfinite(sums)
    if bool(lost.any()):
        step, place = lost.nonzero()[0].tolist()
        layer, name = names[place]
        raise DivergedError(
            f"step {step + 1}: the gradient of block {layer}'s {name} is NaN or infinite: lower the learning rate (now {lr:g})"
        )


class Gradients:
    """The gradients themselves: `by_block[layer][name]`, [batch, ...]."""

    def __init__(self, layers: int) -> None:
        self.by_block: tuple[Block, ...] = tuple({} for _ in range(layers))

    def projection(self, layer: int, name: str, gradient: Tensor, x: Tensor) -> None:
        """The outer products' sum."""
        self.by_block[layer][name] = torch.bmm(gradient.mT, x)

    def vector(self, layer: int, name: str, gradient: Float[Tensor, "batch width"]) -> None:
        """The gradient as it is."""
        self.by_block[layer][name] = gradient

    def check(self) -> None:
        """Raise DivergedError, naming the tensor, if a gradient is NaN or infinite."""
        for layer in reversed(range(len(self.by_block))):  # from the top, where it came from
            for name, gradient in self.by_block[layer].items():
                if not bool(torch.isfinite(gradient).all()):
                    raise DivergedError(
                        f"the gradient of block {layer}'s {name} is NaN or infinite in {str(gradient.dtype).removeprefix('torch.')}: use a dtype of more range, or another scale of differences"
                    )
