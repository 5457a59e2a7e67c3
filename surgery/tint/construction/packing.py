"""An auxiliary model's weights into prefixes, and back bit for bit."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.tint.auxiliary import Block
from surgery.tint.construction.layout import Layout

Prefixes = dict[str, Float[Tensor, "... _"]]


def pack(layout: Layout, block: Block) -> Prefixes:
    """A block's tensors as prefixes, [prefixes, embedding] a matrix and [1, embedding] a norm."""
    prefixes: Prefixes = {}
    for name in layout.matrices:
        weight, bias = _piece(layout, block, name)
        prefixes[name] = _matrix(layout, weight, bias)
    for name in ("norm1", "norm2"):
        prefixes[name] = pack_norm(layout, block[f"{name}.weight"], block[f"{name}.bias"])
    return prefixes


def pack_norm(
    layout: Layout, weight: Float[Tensor, " width"], bias: Float[Tensor, " width"]
) -> Float[Tensor, "1 embedding"]:
    """A norm's weight and bias as one prefix."""
    d, prefix = layout.shape.width, weight.new_zeros(1, layout.embedding)
    prefix[0, :d] = weight
    prefix[0, layout.rows * d : (layout.rows + 1) * d] = bias
    prefix[0, layout.one] = prefix[0, layout.first] = 1
    return prefix


def unpack(layout: Layout, prefixes: Mapping[str, Tensor]) -> Block:
    """The inverse of `pack`, bit for bit; leading batch dimensions stay."""
    d, inner, block = layout.shape.width, layout.shape.inner, {}
    for name in "qkvo":
        block[f"{name}.weight"], block[f"{name}.bias"] = _read(layout, prefixes[name])
    ups = [_read(layout, prefixes[f"up{c}"]) for c in range(layout.chunks)]
    downs = [_read(layout, prefixes[f"down{c}"]) for c in range(layout.chunks)]
    block["up.weight"] = torch.cat([weight for weight, _ in ups], -2)[..., :inner, :]
    block["up.bias"] = torch.cat([bias for _, bias in ups], -1)[..., :inner]
    block["down.weight"] = torch.cat([weight for weight, _ in downs], -1)[..., :inner]
    block["down.bias"] = downs[0][1]
    for name in ("norm1", "norm2"):
        block[f"{name}.weight"] = prefixes[name][..., 0, :d]
        block[f"{name}.bias"] = prefixes[name][..., 0, layout.rows * d : (layout.rows + 1) * d]
    return block


def _piece(layout: Layout, block: Block, name: str) -> tuple[Tensor, Tensor | None]:
    d = layout.shape.width
    stem, chunk = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    weight, bias = block[f"{stem}.weight"], block[f"{stem}.bias"]
    if not chunk:
        return weight, bias
    part = slice(int(chunk) * d, (int(chunk) + 1) * d)
    if stem == "up":
        return weight[part], bias[part]
    return weight[:, part], bias if chunk == "0" else None


def _matrix(layout: Layout, weight: Tensor, bias: Tensor | None) -> Tensor:
    d = layout.shape.width
    square = weight.new_zeros(d, d)
    square[: weight.shape[0], : weight.shape[1]] = weight
    prefixes = weight.new_zeros(layout.prefixes, layout.embedding)
    prefixes[:, : layout.rows * d] = square.view(layout.prefixes, layout.rows * d)
    prefixes[:, layout.code : layout.code + layout.prefixes] = torch.eye(
        layout.prefixes, dtype=weight.dtype, device=weight.device
    )
    prefixes[:, layout.one] = 1
    if bias is not None:
        prefixes[0, layout.rows * d : layout.rows * d + len(bias)] = bias
        prefixes[0, layout.first] = 1
    return prefixes


def _read(layout: Layout, prefix: Tensor) -> tuple[Tensor, Tensor]:
    d = layout.shape.width
    weight = prefix[..., : layout.rows * d].reshape(*prefix.shape[:-2], d, d)
    return weight, prefix[..., 0, layout.rows * d : (layout.rows + 1) * d]
