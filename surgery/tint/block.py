"""One block of the auxiliary model, forward with what backward needs, and backward with descent on the way."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from surgery.tint.auxiliary import Block
from surgery.tint.descent import Learner
from surgery.tint.modules import (
    Arithmetic,
    Rotation,
    activate,
    activate_backward,
    affine,
    attend,
    attend_backward,
    linear,
    linear_backward,
    normalise,
    normalise_backward,
    rotate,
)
from surgery.tint.shape import Shape


@dataclass(frozen=True, eq=False)
class Activations:
    """A block's activations that its backward pass reads, each [batch, tokens, ...].

    Attributes:
        x: the block's input. `middle`: the residual stream after attention. `..._normalised`: before the norm's weight.
        attended: what attention gives, before its output projection.
        preactivation: the input of the activation: `up`'s output, or of gated ones `gate`'s.
        multiplier: of gated ones `up`'s output, which the activation is multiplied by; else None.
    """

    x: Tensor
    x_normalised: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    attended: Tensor
    middle: Tensor
    middle_normalised: Tensor
    preactivation: Tensor
    multiplier: Tensor | None
    activated: Tensor

    @property
    def inner(self) -> Tensor:
        """The input of the feed-forward layer's last projection."""
        return self.activated if self.multiplier is None else self.activated * self.multiplier


def forward(
    x: Float[Tensor, "batch tokens width"],
    block: Block,
    shape: Shape,
    rotation: Rotation,
    visible: Bool[Tensor, "batch tokens tokens"] | None,
) -> tuple[Float[Tensor, "batch tokens width"], Activations]:
    """The block's output, and the activations that its backward pass reads."""
    x_normalised = normalise(x, shape.norm, shape.epsilon)
    a = affine(x_normalised, block, "norm1")
    q, k, v = (linear(a, block, name).unflatten(-1, (-1, shape.head_width)) for name in "qkv")
    q, k = rotate(q, rotation), rotate(k, rotation)
    attended = attend(q, k, v, visible).flatten(2)
    middle = x + linear(attended, block, "o")
    middle_normalised = normalise(middle, shape.norm, shape.epsilon)
    b = affine(middle_normalised, block, "norm2")
    preactivation = linear(b, block, "gate" if shape.gated else "up")
    multiplier = linear(b, block, "up") if shape.gated else None
    activated = activate(preactivation, shape.activation)
    kept = Activations(
        x, x_normalised, q, k, v, attended, middle, middle_normalised, preactivation, multiplier, activated
    )
    return middle + linear(kept.inner, block, "down"), kept


def backward(
    gradient: Float[Tensor, "batch tokens width"],
    kept: Activations,
    layer: int,
    block: Block,
    shape: Shape,
    rotation: Rotation,
    visible: Bool[Tensor, "batch tokens tokens"] | None,
    arithmetic: Arithmetic,
    learner: Learner | None,
    *,
    inward: bool = True,
) -> Float[Tensor, "batch tokens width"]:
    """The gradient at the block's input; `learner`, where there is one, gets each tensor's gradient.

    A tensor is used before it learns: the gradient passes through the weights of the forward pass. Without `inward` the
    gradient at the input isn't needed (no block below learns) and what is returned is of no use.
    """
    middle = gradient + _feed_backward(gradient, kept, layer, block, shape, arithmetic, learner)
    g_attended = linear_backward(middle, block["o.weight"])
    _learn(learner, layer, block, "o", middle, kept.attended)
    g_q, g_k, g_v = attend_backward(
        g_attended.unflatten(-1, (shape.heads, shape.head_width)),
        kept.q,
        kept.k,
        kept.v,
        visible,
        scores=arithmetic.scores,
    )
    if g_q is not None and g_k is not None:
        g_q, g_k = rotate(g_q, rotation, back=True), rotate(g_k, rotation, back=True)
    normed = affine(kept.x_normalised, block, "norm1") if learner is not None else kept.x
    g_a: Tensor | None = None
    for name, g in (("q", g_q), ("k", g_k), ("v", g_v)):
        if g is not None:
            flat = g.flatten(2)
            part = linear_backward(flat, block[f"{name}.weight"])
            g_a = part if g_a is None else g_a + part
            _learn(learner, layer, block, name, flat, normed)
    assert g_a is not None, "values always have a gradient"
    at_norm = g_a * _rows(block["norm1.weight"])
    _learn_norm(learner, layer, block, "norm1", g_a, kept.x_normalised, arithmetic)
    if not inward:
        return middle
    return middle + normalise_backward(at_norm, kept.x, kept.x_normalised, shape.norm, shape.epsilon, arithmetic)


def _feed_backward(
    gradient: Tensor,
    kept: Activations,
    layer: int,
    block: Block,
    shape: Shape,
    arithmetic: Arithmetic,
    learner: Learner | None,
) -> Tensor:
    """The feed-forward sublayer's share of the gradient at its input."""
    g_inner = linear_backward(gradient, block["down.weight"])
    _learn(learner, layer, block, "down", gradient, kept.inner, arithmetic.down_bias)
    normed = affine(kept.middle_normalised, block, "norm2")
    if kept.multiplier is None:
        g_preactivation = activate_backward(g_inner, kept.preactivation, kept.activated, shape.activation, arithmetic)
        g_b = linear_backward(g_preactivation, block["up.weight"])
        _learn(learner, layer, block, "up", g_preactivation, normed)
    else:
        g_preactivation = activate_backward(
            g_inner * kept.multiplier, kept.preactivation, kept.activated, shape.activation, arithmetic
        )
        g_multiplier = g_inner * kept.activated
        g_b = linear_backward(g_preactivation, block["gate.weight"]) + linear_backward(g_multiplier, block["up.weight"])
        _learn(learner, layer, block, "gate", g_preactivation, normed)
        _learn(learner, layer, block, "up", g_multiplier, normed)
    at_norm = g_b * _rows(block["norm2.weight"])
    _learn_norm(learner, layer, block, "norm2", g_b, kept.middle_normalised, arithmetic)
    return normalise_backward(at_norm, kept.middle, kept.middle_normalised, shape.norm, shape.epsilon, arithmetic)


def _learn(
    learner: Learner | None, layer: int, block: Block, name: str, gradient: Tensor, x: Tensor, bias: float = 1.0
) -> None:
    if learner is None:
        return
    learner.projection(layer, f"{name}.weight", gradient, x)
    if f"{name}.bias" in block:
        learner.vector(layer, f"{name}.bias", bias * gradient.sum(1))


def _learn_norm(
    learner: Learner | None,
    layer: int,
    block: Block,
    name: str,
    gradient: Tensor,
    normalised: Tensor,
    arithmetic: Arithmetic,
) -> None:
    if learner is None:
        return
    if arithmetic.norm_weights:
        learner.vector(layer, f"{name}.weight", (gradient * normalised).sum(1))
    if f"{name}.bias" in block:
        learner.vector(layer, f"{name}.bias", gradient.sum(1))


def _rows(vector: Tensor) -> Tensor:
    return vector if vector.dim() == 1 else vector.unsqueeze(1)


def learnt(shape: Shape, block: Block, arithmetic: Arithmetic) -> tuple[str, ...]:
    """Names of the tensors that learn in this arithmetic, in a block of this shape."""
    return tuple(
        name
        for name in block
        if (arithmetic.scores or name[0] not in "qk")
        and (arithmetic.norm_weights or not name.endswith(("norm1.weight", "norm2.weight")))
    )
