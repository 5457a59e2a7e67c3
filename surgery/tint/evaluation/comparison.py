"""The simulation held against the Hugging Face model: its pieces against submodules, its updates against autograd."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.errors import TintError
from surgery.tint.auxiliary import Auxiliary, Block
from surgery.tint.block import Activations, forward
from surgery.tint.descent import DivergedError
from surgery.tint.evaluation.reference import autograd, plain_logits
from surgery.tint.modules import Arithmetic, affine, linear
from surgery.tint.segments import Plan
from surgery.tint.simulator import TinT

STEPS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 1e-1)
SCALES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def forward_errors(auxiliary: Auxiliary, plan: Plan) -> tuple[list[dict[str, Any]], float]:
    """Each piece of each block against the submodule of the Hugging Face model that does it, and the logits.

    Returns:
        An entry a piece with its largest error, relative to its largest value; and the largest error of a logit, absolute.
    """
    theirs, logits = _submodule_outputs(auxiliary, plan)
    errors = []
    with torch.no_grad():
        x = auxiliary.embed(plan.ids, plan.positions)
        rotation = auxiliary.rotation(x, plan.positions)
        for layer, block in enumerate(auxiliary.blocks):
            x, kept = forward(x, block, auxiliary.shape, rotation, plan.visible)
            for piece, value in _pieces(block, kept).items():
                other = theirs[layer, piece].reshape(value.shape)
                largest = float(other.abs().max()) or 1.0  # a piece may be all zeros
                error = float((value - other).abs().max()) / largest
                errors.append({"layer": layer, "piece": piece, "error": error})
        own = F.linear(TinT.build(auxiliary, mode="exact").hidden(plan.ids), auxiliary.head)
    return errors, float((own - logits).abs().max())


def _pieces(block: Block, kept: Activations) -> dict[str, Tensor]:
    """What the simulation computes for each piece of a block, by the piece's name."""
    a, b = affine(kept.x_normalised, block, "norm1"), affine(kept.middle_normalised, block, "norm2")
    pieces = {"norm1": a, **{name: linear(a, block, name) for name in "qkv"}, "attention": kept.attended}
    pieces |= {"o": linear(kept.attended, block, "o"), "norm2": b}
    pieces |= (
        {"up": kept.preactivation} if kept.multiplier is None else {"gate": kept.preactivation, "up": kept.multiplier}
    )
    return pieces | {"activation": kept.inner, "down": linear(kept.inner, block, "down")}


def _submodule_outputs(auxiliary: Auxiliary, plan: Plan) -> tuple[dict[tuple[int, str], Tensor], Tensor]:
    """What the Hugging Face model's submodules give, by block and piece, and its logits.

    Raises:
        TintError: logits that are NaN or infinite.
    """
    theirs: dict[tuple[int, str], Tensor] = {}
    handles = []
    modules = dict(auxiliary.module.named_modules())

    def keep(layer: int, name: str, rows: slice) -> Any:
        return lambda _, inputs, output: theirs.__setitem__((layer, name), output.detach()[..., rows])

    def keep_input(layer: int, name: str) -> Any:
        return lambda _, inputs: theirs.__setitem__((layer, name), inputs[0].detach())

    for layer, sites in enumerate(auxiliary.sites):
        for name, site in sites.items():
            if name.endswith(".weight"):
                module = modules[site.parameter.rpartition(".")[0]]
                piece = name.removesuffix(".weight")
                handles.append(module.register_forward_hook(keep(layer, piece, site.rows)))
                if piece in ("o", "down"):
                    read = "attention" if piece == "o" else "activation"
                    handles.append(module.register_forward_pre_hook(keep_input(layer, read)))
    try:
        with torch.no_grad():
            logits = plain_logits(auxiliary, plan.ids, plan.positions, plan.visible)
    finally:
        for handle in handles:
            handle.remove()
    if not bool(torch.isfinite(logits).all()):
        raise TintError(
            f"the model's own logits are NaN or infinite in {str(auxiliary.dtype).removeprefix('torch.')}: use float32"
        )
    return theirs, logits


def compare(ours: Sequence[Block], oracle: Sequence[Block]) -> list[dict[str, Any]]:
    """Each tensor's update beside the oracle's, both [1, ...]: cosine, ratio of norms, and error relative to the oracle's norm.

    A key's bias moves all scores of a query alike, so that its true gradient is zero: a tensor whose oracle is zero but for
    rounding gets no cosine, and its error is relative to its block's largest gradient.
    """
    entries = []
    for layer, (block, truth) in enumerate(zip(ours, oracle, strict=True)):
        largest = max(float(tensor.norm()) for tensor in truth.values())
        for name, wanted in truth.items():
            norm = float(wanted.norm())
            given = block.get(name)
            value = torch.zeros_like(wanted) if given is None else given[0]
            entry: dict[str, Any] = {"layer": layer, "tensor": name, "learns": given is not None}
            if name == "k.bias" or norm <= 1e-12 * largest:
                entry |= {
                    "cosine": None,
                    "norm_ratio": None,
                    "relative_error": float((value - wanted).norm()) / (largest or 1.0),
                }
            else:
                a, b = value.double().flatten(), wanted.double().flatten()
                entry |= {
                    "cosine": float(F.cosine_similarity(a, b, dim=0)),
                    "norm_ratio": float(a.norm() / b.norm()),
                    "relative_error": float((a - b).norm() / b.norm()),
                }
            entries.append(entry)
    return entries


def worst(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The lowest cosine and the largest relative error of the tensors that learn."""
    learn = [entry for entry in entries if entry["cosine"] is not None and entry["learns"]]
    return {
        "cosine": min(entry["cosine"] for entry in learn),
        "relative_error": max(entry["relative_error"] for entry in learn),
    }


def each_alone(
    auxiliary: Auxiliary, ids: Tensor, mask: Tensor, full: Sequence[Block], tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One approximation at a time, against full autograd."""
    exact, paper = (Arithmetic.of(mode, auxiliary.dtype) for mode in ("exact", "paper"))
    alone = {
        "score gradients dropped": replace(exact, scores=False),
        "norms by differences": replace(exact, closed_norms=False, step=paper.step),
        "activations by differences": replace(exact, closed_activations=False, step=paper.step),
        "last bias four times": replace(exact, down_bias=4.0),
    }
    alone_errors = []
    simulation = TinT.build(auxiliary, mode="exact")
    for name, arithmetic in alone.items():
        entries = compare(replace(simulation, arithmetic=arithmetic).gradients(ids, mask), full)
        alone_errors.append({"approximation": name, **worst(entries), "by_tensor": entries})
    tell("approximations")
    return alone_errors


def sweep(auxiliary: Auxiliary, ids: Tensor, mask: Tensor, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Cosine and error against detached scores by step (ours) and by constant scale (the paper's N), and by dtype."""
    points = []
    for dtype, kind in DTYPES.items():
        other = auxiliary
        if kind != auxiliary.dtype:
            other = Auxiliary.of(auxiliary.module, dtype=kind)
        plan = Plan.of(ids, mask, shape=other.shape, device=other.device)
        oracle = autograd(other, plan, detached=True)
        tell("sweep: autograd")
        simulation = TinT.build(other, mode="paper")
        tries = [{"step": step} for step in STEPS] + [{"scale": scale} for scale in SCALES]
        for given in tries:
            arithmetic = replace(simulation.arithmetic, step=given.get("step"), scale=given.get("scale"))
            try:
                ours = replace(simulation, arithmetic=arithmetic).gradients(ids, mask)
                errors = worst(compare(ours, oracle))
            except DivergedError:
                errors = {"cosine": 0.0, "relative_error": 1e9}
            points.append({"dtype": dtype, **given, **errors})
            tell("sweep: differences")
    return points
