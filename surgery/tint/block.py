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
class Memory:
    """What a block keeps of its forward pass; every tensor is [batch, tokens, ...]."""

    x: Tensor
    x_normalised: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    read: Tensor
    middle: Tensor
    middle_normalised: Tensor
    opened: Tensor
    raised: Tensor | None
    activated: Tensor


def forward(
    x: Float[Tensor, "batch tokens width"],
    block: Block,
    shape: Shape,
    rotation: Rotation,
    visible: Bool[Tensor, "batch tokens tokens"] | None,
) -> tuple[Float[Tensor, "batch tokens width"], Memory]:
    """The block's output, and what its backward pass needs."""
    x_normalised = normalise(x, shape.norm, shape.epsilon)
    a = affine(x_normalised, block, "norm1")
    q, k, v = (linear(a, block, name).unflatten(-1, (-1, shape.head_width)) for name in "qkv")
    q, k = rotate(q, rotation), rotate(k, rotation)
    read = attend(q, k, v, visible).flatten(2)
    middle = x + linear(read, block, "o")
    middle_normalised = normalise(middle, shape.norm, shape.epsilon)
    b = affine(middle_normalised, block, "norm2")
    opened = linear(b, block, "gate" if shape.gated else "up")
    raised = linear(b, block, "up") if shape.gated else None
    activated = activate(opened, shape.activation)
    out = middle + linear(activated if raised is None else activated * raised, block, "down")
    return out, Memory(x, x_normalised, q, k, v, read, middle, middle_normalised, opened, raised, activated)


def backward(
    gradient: Float[Tensor, "batch tokens width"],
    memory: Memory,
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
    middle = gradient + _feed_backward(gradient, memory, layer, block, shape, arithmetic, learner)
    g_read = linear_backward(middle, block["o.weight"])
    _learn(learner, layer, block, "o", middle, memory.read)
    g_q, g_k, g_v = attend_backward(
        g_read.unflatten(-1, (shape.heads, shape.head_width)),
        memory.q,
        memory.k,
        memory.v,
        visible,
        scores=arithmetic.scores,
    )
    if g_q is not None and g_k is not None:
        g_q, g_k = rotate(g_q, rotation, back=True), rotate(g_k, rotation, back=True)
    normed = affine(memory.x_normalised, block, "norm1") if learner is not None else memory.x
    g_a: Tensor | None = None
    for name, g in (("q", g_q), ("k", g_k), ("v", g_v)):
        if g is not None:
            flat = g.flatten(2)
            part = linear_backward(flat, block[f"{name}.weight"])
            g_a = part if g_a is None else g_a + part
            _learn(learner, layer, block, name, flat, normed)
    assert g_a is not None, "values always have a gradient"
    at_norm = g_a * _rows(block["norm1.weight"])
    _learn_norm(learner, layer, block, "norm1", g_a, memory.x_normalised, arithmetic)
    if not inward:
        return middle
    return middle + normalise_backward(at_norm, memory.x, memory.x_normalised, shape.norm, shape.epsilon, arithmetic)


def _feed_backward(
    gradient: Tensor,
    memory: Memory,
    layer: int,
    block: Block,
    shape: Shape,
    arithmetic: Arithmetic,
    learner: Learner | None,
) -> Tensor:
    """The feed-forward sublayer's share of the gradient at its input."""
    inner = memory.activated if memory.raised is None else memory.activated * memory.raised
    g_inner = linear_backward(gradient, block["down.weight"])
    _learn(learner, layer, block, "down", gradient, inner, arithmetic.down_bias)
    normed = affine(memory.middle_normalised, block, "norm2")
    if memory.raised is None:
        g_opened = activate_backward(g_inner, memory.opened, memory.activated, shape.activation, arithmetic)
        g_b = linear_backward(g_opened, block["up.weight"])
        _learn(learner, layer, block, "up", g_opened, normed)
    else:
        g_opened = activate_backward(
            g_inner * memory.raised, memory.opened, memory.activated, shape.activation, arithmetic
        )
        g_raised = g_inner * memory.activated
        g_b = linear_backward(g_opened, block["gate.weight"]) + linear_backward(g_raised, block["up.weight"])
        _learn(learner, layer, block, "gate", g_opened, normed)
        _learn(learner, layer, block, "up", g_raised, normed)
    at_norm = g_b * _rows(block["norm2.weight"])
    _learn_norm(learner, layer, block, "norm2", g_b, memory.middle_normalised, arithmetic)
    return normalise_backward(at_norm, memory.middle, memory.middle_normalised, shape.norm, shape.epsilon, arithmetic)


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
