"""The pieces of a block, forward, backward and descent, written out by hand: what TinT's own layers compute.

Panigrahi, Malladi, Xia, Arora: Trainable Transformer in Transformer (ICML 2024), sections 3 and 4. A projection's weight is
`[out, in]` while it is shared, `[batch, out, in]` once every row of the batch has an update of its own.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from surgery.errors import OptionError
from surgery.tint.auxiliary import Block

Mode = Literal["exact", "paper", "published"]
Rotation = tuple[Tensor, Tensor] | None

# Steps of differences, relative to what is stepped from: what the sweep of `verify` shows to be best on real models.
STEPS = {torch.float64: 1e-5, torch.float32: 3e-3}
_PUBLISHED_SCALE = 1000.0


@dataclass(frozen=True)
class Arithmetic:
    """Which approximations the backward pass makes.

    Attributes:
        scores: the gradient flows through attention scores too, so that queries and keys learn.
        closed_norms, closed_activations: closed-form derivatives; else differences (f(x + s g) - f(x - s g)) / 2s.
        step: each token's s is chosen so that s g is this large: for a norm relative to x (as root mean squares), for an
            activation absolutely. One s for all, as published, drowns in rounding where x is large and g small: on
            real models no constant does, in float32.
        scale: one N for all in place of `step`, and one-sided as the paper has it: N (f(x + g/N) - f(x)).
        gate: of the published code: tanh(10), which isn't 1 in float64, and what leaks is multiplied by N.
        down_bias: how many times over the last bias learns (the published code's four chunks each add it).
        norm_weights: norms' weights learn; in the published code only their biases do.
    """

    scores: bool
    closed_norms: bool
    closed_activations: bool
    step: float | None = None
    scale: float | None = None
    gate: float = 1.0
    down_bias: float = 1.0
    norm_weights: bool = True

    @classmethod
    def of(cls, mode: str, dtype: torch.dtype, scale: float | None = None) -> "Arithmetic":
        """A mode's arithmetic; raises OptionError for an unknown mode, a senseless scale, or half precision with differences."""
        check_mode(mode)
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise OptionError(
                f"scale {scale} must be a positive number: differences are taken over steps of gradient / scale"
            )
        if mode == "exact":
            return cls(scores=True, closed_norms=True, closed_activations=True)
        if dtype not in STEPS:
            raise OptionError(
                f"mode {mode!r} takes differences, which {str(dtype).removeprefix('torch.')} can't resolve: use float32, float64 or mode 'exact'"
            )
        plain = cls(scores=False, closed_norms=False, closed_activations=False, scale=scale)
        if mode == "paper":
            return plain if scale else replace(plain, step=STEPS[dtype])
        gate = float(torch.tensor(10.0, dtype=dtype).tanh())  # one in float32
        return replace(plain, scale=scale or _PUBLISHED_SCALE, gate=gate, down_bias=4.0, norm_weights=False)

    def stride(self, gradient: Float[Tensor, "*dims width"], size: Tensor | float) -> Tensor | float:
        """The s of each token, [..., 1], or the one for all."""
        if self.scale is not None:
            return 1 / self.scale
        assert self.step is not None, "differences come with a step or a scale"
        rms = _mean_square(gradient).sqrt()
        return self.step * size / rms.clamp_min(torch.finfo(rms.dtype).tiny ** 0.5)


def check_mode(mode: str) -> None:
    """Raise OptionError for a mode that isn't one of `Mode`."""
    if mode not in get_args(Mode):
        raise OptionError(f"mode {mode!r} isn't one of {', '.join(get_args(Mode))}")


def linear(x: Float[Tensor, "batch tokens in"], block: Block, name: str) -> Float[Tensor, "batch tokens out"]:
    """W x + b."""
    weight, bias = block[f"{name}.weight"], block.get(f"{name}.bias")
    if weight.dim() == 2:
        return F.linear(x, weight, bias if bias is None or bias.dim() == 1 else bias[0])
    if len(x) == 1:
        return F.linear(x, weight[0], bias if bias is None or bias.dim() == 1 else bias[0])
    out = torch.bmm(x, weight.mT)
    return out if bias is None else out + (bias if bias.dim() == 1 else bias.unsqueeze(1))


def linear_backward(gradient: Float[Tensor, "batch tokens out"], weight: Tensor) -> Float[Tensor, "batch tokens in"]:
    """The transpose of W on the gradient."""
    return gradient @ (weight[0] if weight.dim() == 3 and len(gradient) == 1 else weight)


def normalise(x: Float[Tensor, "*dims width"], kind: str, epsilon: float) -> Float[Tensor, "*dims width"]:
    """LayerNorm or RMSNorm without weight and bias."""
    if kind == "layer":
        return F.layer_norm(x, x.shape[-1:], eps=epsilon)
    return F.rms_norm(x, x.shape[-1:], eps=epsilon)


def affine(x: Float[Tensor, "batch tokens width"], block: Block, name: str) -> Float[Tensor, "batch tokens width"]:
    """A norm's weight and bias, each of its own row where it has learnt."""
    bias = block.get(f"{name}.bias")
    out = x * _by_row(block[f"{name}.weight"])
    return out if bias is None else out + _by_row(bias)


def normalise_backward(
    gradient: Float[Tensor, "*dims width"],
    x: Float[Tensor, "*dims width"],
    normalised: Float[Tensor, "*dims width"],
    kind: str,
    epsilon: float,
    arithmetic: Arithmetic,
) -> Float[Tensor, "*dims width"]:
    """The Jacobian is symmetric, so its product with the gradient is a directional derivative (section 4, LayerNorm).

    Closed form, or the difference of two normalisations.
    """
    if arithmetic.closed_norms:
        if kind == "layer":
            scale = torch.rsqrt(x.var(-1, keepdim=True, correction=0) + epsilon)
            centred = gradient - gradient.mean(-1, keepdim=True)
        else:
            scale = torch.rsqrt(_mean_square(x) + epsilon)
            centred = gradient
        return scale * (centred - normalised * (gradient * normalised).mean(-1, keepdim=True))
    gate = arithmetic.gate
    if gate == 1.0:
        spread = (x.var(-1, keepdim=True, correction=0) if kind == "layer" else _mean_square(x)) + epsilon
        s = arithmetic.stride(gradient, spread.sqrt())
        moved = s * gradient
        if arithmetic.scale is None:
            return (normalise(x + moved, kind, epsilon) - normalise(x - moved, kind, epsilon)) / (2 * s)
        return (normalise(x + moved, kind, epsilon) - normalised) / s
    n = 1 / arithmetic.stride(gradient, 1.0)
    # The published code gates before, within and after; what its gates let through of the rest is not times N, but the
    # stored value that is subtracted has not been through them, and that difference is.
    moved = gate * (x + gradient / n) + (1 - gate) * gradient
    again = gate * normalise(moved, kind, epsilon) + (1 - gate) * moved
    return gate * (gate * n * (again - normalised) + (1 - gate) * again)


def activate(x: Tensor, kind: str) -> Tensor:
    """ReLU, GELU (by erf or by tanh) or SiLU."""
    if kind == "gelu_new":
        return F.gelu(x, approximate="tanh")
    if kind == "silu":
        return F.silu(x)
    return F.relu(x) if kind == "relu" else F.gelu(x)


def activate_backward(gradient: Tensor, x: Tensor, activated: Tensor, kind: str, arithmetic: Arithmetic) -> Tensor:
    """Elementwise: the derivative in closed form, or the difference N (f(x + g/N) - f(x)) (section 4, activations)."""
    if arithmetic.closed_activations:
        return gradient * _derivative(x, kind)
    # ReLU is straight but for its kink, which a smaller step meets less often.
    s = arithmetic.stride(gradient, 0.003 if kind == "relu" else 1.0)
    moved = s * gradient
    if arithmetic.scale is None:
        return (activate(x + moved, kind) - activate(x - moved, kind)) / (2 * s)
    return (activate(x + moved, kind) - activated) / s


def _derivative(x: Tensor, kind: str) -> Tensor:
    if kind == "relu":
        return (x > 0).to(x.dtype)
    if kind == "silu":
        gate = torch.sigmoid(x)
        return gate * (1 + x * (1 - gate))
    if kind == "gelu":
        return 0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    slope, cubic = math.sqrt(2 / math.pi), 0.044715
    squared = x.square()
    bent = torch.tanh(slope * x * (1 + cubic * squared))
    return 0.5 * (1 + bent) + 0.5 * x * (1 - bent.square()) * slope * (1 + 3 * cubic * squared)


def rotate(
    x: Float[Tensor, "batch tokens heads width"], rotation: Rotation, *, back: bool = False
) -> Float[Tensor, "batch tokens heads width"]:
    """Rotary positions; `back` is the transposed map, which is the turn the other way."""
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    if not back:
        return x * cos + turned * sin
    # Cosines and sines come in equal halves, so the transposed map only turns the sine's sign.
    return x * cos - turned * sin


def attend(
    q: Float[Tensor, "batch tokens heads width"],
    k: Float[Tensor, "batch tokens key_heads width"],
    v: Float[Tensor, "batch tokens key_heads width"],
    visible: Bool[Tensor, "batch tokens tokens"] | None,
) -> Float[Tensor, "batch tokens heads width"]:
    """Softmax attention; `visible` says which tokens (last axis) each token reads, None all up to itself."""
    mask = None if visible is None else visible.unsqueeze(1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2)


def attend_backward(
    gradient: Float[Tensor, "batch tokens heads width"],
    q: Float[Tensor, "batch tokens heads width"],
    k: Float[Tensor, "batch tokens key_heads width"],
    v: Float[Tensor, "batch tokens key_heads width"],
    visible: Bool[Tensor, "batch tokens tokens"] | None,
    *,
    scores: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of queries, keys and values; of values alone unless `scores` (the paper's construction drops the rest).

    The probabilities are computed again, and applied transposed. Grouped queries: a group's gradients add up at its key.
    """
    batch, tokens, heads, width = q.shape
    groups = k.shape[2]
    g, query = (x.reshape(batch, tokens, groups, heads // groups, width).permute(0, 2, 3, 1, 4) for x in (gradient, q))
    key, value = (x.transpose(1, 2).unsqueeze(2) for x in (k, v))
    if visible is None:
        visible = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril().unsqueeze(0)
    raw = (query @ key.mT) * width**-0.5
    p = raw.masked_fill_(~visible[:, None, None], -math.inf).softmax(-1)

    def at_keys(left: Tensor, right: Tensor) -> Tensor:
        return (left.mT @ right).sum(2).transpose(1, 2)

    value_gradient = at_keys(p, g)
    if not scores:
        return None, None, value_gradient
    inward = g @ value.mT
    score_gradient = p * (inward - (p * inward).sum(-1, keepdim=True)) * width**-0.5
    query_gradient = (score_gradient @ key).permute(0, 3, 1, 2, 4).reshape(batch, tokens, heads, width)
    return query_gradient, at_keys(score_gradient, query), value_gradient


def cross_entropy(
    hidden: Float[Tensor, "positions width"], head: Float[Tensor, "vocabulary width"], targets: Tensor, chunk: int = 512
) -> tuple[Float[Tensor, " positions"], Float[Tensor, "positions width"]]:
    """The loss of each position and its gradient at the final norm's output, head^T (softmax - onehot) (section 4, loss).

    In chunks: logits over a whole vocabulary are the largest thing there is.
    """
    losses, gradients = [], []
    for rows, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = F.linear(rows, head)
        logs = logits.log_softmax(-1)
        index = torch.arange(len(rows), device=rows.device)
        losses.append(-logs[index, wanted])
        p = logs.exp_()
        p[index, wanted] -= 1
        gradients.append(p @ head)
    if not losses:
        return hidden.new_zeros(0), torch.zeros_like(hidden)
    return torch.cat(losses), torch.cat(gradients)


def _by_row(vector: Tensor) -> Tensor:
    return vector if vector.dim() == 1 else vector.unsqueeze(1)


def _mean_square(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True)
