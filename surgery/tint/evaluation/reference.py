"""What the simulation is measured against: autograd and plain gradient descent on the Hugging Face model itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surgery.tint.auxiliary import Auxiliary, Block
from surgery.tint.descent import DivergedError
from surgery.tint.segments import Plan

_DETACHED = "surgery_detached_scores"


def autograd(auxiliary: Auxiliary, plan: Plan, *, detached: bool = False) -> tuple[Block, ...]:
    """Gradients of the summed loss with respect to each block's tensors, by block and name; one row.

    Args:
        detached: no gradient flows through attention scores, as in the paper's construction.
    """
    parameters = _leaves(auxiliary, range(auxiliary.shape.layers))
    _loss(auxiliary, parameters, plan, detached=detached).backward()
    by_block = []
    for block, sites in zip(auxiliary.blocks, auxiliary.sites, strict=True):
        gradients = {name: parameters[site.parameter].grad for name, site in sites.items()}
        by_block.append(
            {name: torch.zeros_like(block[name]) if g is None else sites[name].view(g) for name, g in gradients.items()}
        )
    return tuple(by_block)


def dynamic_evaluation(
    auxiliary: Auxiliary,
    input_ids: Any,
    train_mask: Any,
    lr: float = 1e-4,
    *,
    steps: int = 1,
    layers: Sequence[int] | None = None,
    segments: Any = None,
    loss_mask: Any = None,
) -> tuple[Float[Tensor, "1 tokens vocabulary"], dict[str, Tensor]]:
    """Plain gradient descent by autograd on the same tensors, the same summed loss and rate; one row, as `TinT` takes it.

    Returns the logits with the updated parameters, and those parameters by name. The model itself isn't changed.

    Raises:
        DivergedError: the descent became NaN.
    """
    plan = Plan.of(
        input_ids,
        train_mask,
        loss_mask=loss_mask,
        segments=segments,
        shape=auxiliary.shape,
        device=auxiliary.device,
        whole=True,
    )
    return descend(auxiliary, plan, lr, steps=steps, layers=layers)


def descend(
    auxiliary: Auxiliary, plan: Plan, lr: float, *, steps: int = 1, layers: Sequence[int] | None = None
) -> tuple[Float[Tensor, "1 tokens vocabulary"], dict[str, Tensor]]:
    """Dynamic evaluation of a row that is put in order already."""
    parameters = _leaves(auxiliary, range(auxiliary.shape.layers) if layers is None else layers)
    for step in range(1, steps + 1):
        loss = _loss(auxiliary, parameters, plan)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        named = zip(parameters, gradients, strict=True)
        for what, value in (*((f"gradient of {name}", gradient) for name, gradient in named), ("loss", loss)):
            if bool((~torch.isfinite(value)).any()):
                raise DivergedError(
                    f"dynamic evaluation, step {step}: the {what} is NaN or infinite: lower the learning rate (now {lr:g})"
                )
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter -= lr * gradient
    with torch.no_grad():
        logits = plain_logits(auxiliary, plan.ids, plan.positions, plan.visible, parameters)
    return logits, {name: parameter.detach() for name, parameter in parameters.items()}


def plain_logits(
    auxiliary: Auxiliary,
    input_ids: Int[Tensor, "batch tokens"],
    positions: Int[Tensor, "batch tokens"],
    visible: Bool[Tensor, "batch tokens tokens"] | None,
    parameters: Mapping[str, Tensor] | None = None,
    *,
    detached: bool = False,
) -> Float[Tensor, "batch tokens vocabulary"]:
    """The Hugging Face model's logits, with some parameters replaced."""
    if visible is None:
        visible = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool, device=input_ids.device).tril()
        visible = visible.expand(len(input_ids), -1, -1)
    # Additive, and spelled out, so that no version of the library makes a mask of its own.
    mask = torch.zeros(visible.shape, dtype=auxiliary.dtype, device=visible.device)
    mask = mask.masked_fill(~visible, torch.finfo(auxiliary.dtype).min).unsqueeze(1)
    given = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
    with _attention(auxiliary, detached=detached):
        return torch.func.functional_call(auxiliary.module, dict(parameters or {}), (), given).logits


def _loss(auxiliary: Auxiliary, parameters: Mapping[str, Tensor], plan: Plan, *, detached: bool = False) -> Tensor:
    ids = plan.ids[:, : plan.train_tokens]
    positions = plan.positions[:, : plan.train_tokens]
    logits = plain_logits(auxiliary, ids, positions, plan.train_visible, parameters, detached=detached)
    return F.cross_entropy(logits.flatten(0, 1)[plan.pairs], ids.flatten()[plan.pairs + 1], reduction="sum")


def _leaves(auxiliary: Auxiliary, layers: Sequence[int]) -> dict[str, Tensor]:
    named = dict(auxiliary.module.named_parameters(remove_duplicate=False))
    names = dict.fromkeys(site.parameter for layer in layers for site in auxiliary.sites[layer].values())
    return {name: named[name].detach().clone().requires_grad_() for name in names}


@contextmanager
def _attention(auxiliary: Auxiliary, *, detached: bool) -> Iterator[None]:
    """Run the model with plain attention, or with attention whose scores are detached, and in its own precision throughout."""
    from transformers import AttentionInterface

    AttentionInterface.register(_DETACHED, _detached_attention)
    config = auxiliary.module.config
    before, training = config._attn_implementation, auxiliary.module.training
    auxiliary.module.eval()  # no dropout: a model fresh from its constructor would have it
    # Not "eager", which rounds probabilities to float32 in some families.
    config._attn_implementation = _DETACHED if detached else "sdpa"
    try:
        with _own_precision(auxiliary):
            yield
    finally:
        config._attn_implementation = before
        auxiliary.module.train(training)


def _detached_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling) + attention_mask
    p = scores.softmax(-1).detach()
    return (p @ value).transpose(1, 2), p


@contextmanager
def _own_precision(auxiliary: Auxiliary) -> Iterator[None]:
    """The library's RMSNorm rounds to float32 whatever the model's precision: in float64 that would hide what is measured."""
    if auxiliary.shape.norm != "rms" or auxiliary.dtype != torch.float64:
        yield
        return
    kind = type(auxiliary.module.model.norm)
    before = kind.forward
    kind.forward = lambda self, x: self.weight * F.rms_norm(x, x.shape[-1:], eps=self.variance_epsilon)
    try:
        yield
    finally:
        kind.forward = before
