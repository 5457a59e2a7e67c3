"""Noise on a card, in Triton: the bits of `surgery/philox.py`, made and added in one pass over the weights.

A program takes the weights of some blocks of words, whose place among the weights of a row begins anywhere. Products
aren't fused with the additions that follow (`enable_fp_fusion`), so that every weight takes the same roundings as on a CPU.
"""

from functools import cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from surgery.mezo.places import Place, Terms
from surgery.philox import FRACTION, SEGMENTS, quantiles

BLOCKS = 16  # blocks of words a program
VARYING = ["columns", "tensor", "step", "direction", "k0", "k1", "terms"]


@triton.jit
@no_type_check
def _noise(
    block,
    lane,
    tensor,
    step,
    direction,
    k0,
    k1,
    starts,
    slopes,
    normal: tl.constexpr,
    fraction: tl.constexpr,
    lowest: tl.constexpr,
):
    """Noise of the weights at these lanes [1, lanes] of blocks [blocks, 1]."""
    zero = block.to(tl.uint32) * 0
    c1, c2, c3 = (zero + tensor).to(tl.uint32), (zero + step).to(tl.uint32), (zero + direction).to(tl.uint32)
    key0, key1 = (zero + k0).to(tl.uint32), (zero + k1).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(block.to(tl.uint32), c1, c2, c3, key0, key1, 10)
    which = lane % 4 if normal else lane // 32
    word = tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))
    if normal:
        bits = ((word >> 9) * 2 + 1).to(tl.int32).to(tl.float32).to(tl.int32, bitcast=True)
        segment = (bits >> fraction) - lowest
        part = (bits & ((1 << fraction) - 1)).to(tl.float32) * (1.0 / (1 << fraction))
        size = tl.load(starts + segment) + part * tl.load(slopes + segment)
        return tl.where((word & 1) == 1, size, -size)
    return tl.where(((word >> (lane % 32).to(tl.uint32)) & 1) == 1, 1.0, -1.0)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _spread(
    values, rows, scales, out, whole, columns, tensor, step, direction, k0, k1, starts, slopes,
    parts: tl.constexpr, blocks: tl.constexpr, lanes: tl.constexpr, normal: tl.constexpr, fraction: tl.constexpr, lowest: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(rows + row)
    first = start // lanes + tl.program_id(1).to(tl.int64) * blocks
    block = first + tl.arange(0, blocks)[:, None]
    lane = tl.arange(0, lanes)[None, :]
    place = block * lanes + lane - start
    inside = (place >= 0) & (place < columns)
    noise = _noise(block, lane, tensor, step, direction, k0, k1, starts, slopes, normal, fraction, lowest)
    value = tl.load(values + row * columns + place, inside, other=0.0)
    for part in tl.static_range(parts):
        moved = value + tl.load(scales + part) * noise
        tl.store(out + part * whole + row * columns + place, moved, inside)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _walk(
    values, columns, start, tensor, steps, directions, scales, terms, k0, k1, starts, slopes,
    blocks: tl.constexpr, lanes: tl.constexpr, normal: tl.constexpr, fraction: tl.constexpr, lowest: tl.constexpr,
):  # fmt: skip
    block = start // lanes + tl.program_id(0).to(tl.int64) * blocks + tl.arange(0, blocks)[:, None]
    lane = tl.arange(0, lanes)[None, :]
    place = block * lanes + lane - start
    inside = place < columns
    value = tl.load(values + place, inside, other=0.0)
    for term in range(terms):
        step, direction, scale = tl.load(steps + term), tl.load(directions + term), tl.load(scales + term)
        value += scale * _noise(block, lane, tensor, step, direction, k0, k1, starts, slopes, normal, fraction, lowest)
    tl.store(values + place, value, inside)


def spread(
    values: Tensor,
    rows: Tensor,
    scales: tuple[float, ...],
    place: Place,
    key: tuple[int, int],
    normal: bool,
    out: Tensor,
) -> None:
    """`Noise.spread` of contiguous weights [rows, columns] into `out` [scales, rows, columns]."""
    lanes, columns = 4 if normal else 128, values.shape[1]
    grid = (len(values), triton.cdiv(columns, lanes * BLOCKS) + 1)  # one more: a row may begin within a block
    told = torch.tensor(scales, dtype=torch.float32, device=values.device)
    _spread[grid](
        values, rows, told, out, values.numel(), columns, *place, *key, *_tables(values.device),
        len(scales), BLOCKS, lanes, normal, FRACTION, 127 * SEGMENTS, enable_fp_fusion=False,
    )  # fmt: skip


def walk(values: Tensor, start: int, tensor: int, terms: Terms, key: tuple[int, int], normal: bool) -> None:
    """`Noise.walk` of contiguous weights in place."""
    lanes = 4 if normal else 128
    device = values.device
    steps, directions = (torch.from_numpy(part.astype("int64")).to(device) for part in terms[:2])
    scales = torch.from_numpy(terms.scales).to(device)
    grid = (triton.cdiv(len(values), lanes * BLOCKS),)
    _walk[grid](
        values, len(values), start, tensor, steps, directions, scales, len(scales), *key, *_tables(device),
        BLOCKS, lanes, normal, FRACTION, 127 * SEGMENTS, enable_fp_fusion=False,
    )  # fmt: skip


@cache
def _tables(device: torch.device) -> tuple[Any, Any]:
    starts, slopes = quantiles()
    return starts.to(device), slopes.to(device)
