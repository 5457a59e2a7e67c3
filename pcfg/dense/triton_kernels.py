"""The steps of `steps.TensorSteps` fused into few kernels for a card, in Triton, where it is installed.

A pass over a chart is so many small operations that each costs more than its arithmetic; here a width takes three kernels
and a product each way. One program does a span of a sentence. No two programs of a kernel write the same place: what
spans give to left children and to right ones is added by two kernels, in this order, so that the bits are always the same.
"""

import warnings
from functools import lru_cache
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Num
from torch import Tensor

from pcfg.dense.chart import Inside, Outside, Potentials, Scores, times
from pcfg.dense.steps import TensorSteps

MOST_SYMBOLS = 64  # nonterminals: a program holds a matrix of them in registers
SPLITS = 16  # summed over at once: the least that tl.dot takes
reasons: dict[
    tuple[torch.device, int], str
] = {}  # why kernels aren't used, by device and padded number of nonterminals
TRIED = 21  # words of the chart on which kernels are tried: more inner splits than `SPLITS`, and not a multiple of it
VARYING = ["n", "batch", "width"]  # arguments for whose values kernels aren't compiled anew


@triton.jit
@no_type_check
def _sums(scales, i, b, u, inside, n, batch, width):
    """Logarithms of splits by the width of the left child; -inf where there is none."""
    left = tl.load(scales + (i * batch + b) * (n + 1) + u, inside, other=-float("inf"))
    right = tl.load(scales + ((i + u) * batch + b) * (n + 1) + width - u, inside, other=-float("inf"))
    return left + right


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _weigh(
    chart,
    scales,
    left_words,
    right_words,
    weights,
    best,
    raw,
    pairs,
    n,
    batch,
    width,
    symbols: tl.constexpr,
    total: tl.constexpr,
    side: tl.constexpr,
    longest: tl.constexpr,
    step: tl.constexpr,
):
    """Weights of a span's splits; sums over those with a word (raw) and products over the others (pairs).

    Children beside a word are weighed by `first` and `last`, computed again: Triton takes no single entry out of a vector.
    """
    span = tl.program_id(0).to(tl.int64)  # 64 bits: offsets into rules exceed 32
    i, b = span // batch, span % batch
    splits = tl.arange(0, longest) + 1
    held = splits < width
    sums = _sums(scales, i, b, splits, held, n, batch, width)
    top = tl.max(sums, 0)
    tl.store(best + span, top)
    known = tl.maximum(top, -1.7976931348623157e308)
    tl.store(weights + span * (width - 1) + splits - 1, tl.exp(sums - known).to(tl.float32), held)
    first = tl.exp(tl.max(_sums(scales, i, b, splits, splits == 1, n, batch, width), 0) - known).to(tl.float32)
    last = tl.exp(tl.max(_sums(scales, i, b, splits, splits == width - 1, n, batch, width), 0) - known).to(tl.float32)
    a = tl.arange(0, side)
    square = (a < symbols)[:, None] & (a < symbols)[None, :]
    right = tl.load(chart + (((i + 1) * batch + b) * (n + 1) + width - 1) * symbols + a, a < symbols, other=0.0) * first
    left = tl.load(chart + ((i * batch + b) * (n + 1) + width - 1) * symbols + a, a < symbols, other=0.0) * last
    rules = tl.load(left_words + (span * symbols + a[:, None]) * total + a[None, :], square, other=0.0)
    value = tl.sum(rules * right[None, :], 1)
    at_end = (i + width - 1) * batch + b
    rules = tl.load(right_words + (at_end * symbols + a[:, None]) * symbols + a[None, :], square, other=0.0)
    value += tl.sum(rules * left[None, :], 1)
    tl.store(raw + span * symbols + a, value, a < symbols)
    if width > 3:
        product = tl.zeros((side, side), tl.float32)
        for begin in range(2, width - 1, step):
            u = begin + tl.arange(0, step)
            inner = u < width - 1
            w = tl.exp(_sums(scales, i, b, u, inner, n, batch, width) - known).to(tl.float32)
            both = inner[None, :] & (a < symbols)[:, None]
            lefts = tl.load(chart + ((i * batch + b) * (n + 1) + u)[None, :] * symbols + a[:, None], both, other=0.0)
            places = ((i + u) * batch + b) * (n + 1) + width - u
            both = inner[:, None] & (a < symbols)[None, :]
            rights = tl.load(chart + places[:, None] * symbols + a[None, :], both, other=0.0)
            product += tl.dot(lefts * w[None, :], rights, input_precision="ieee")
        tl.store(pairs + (span * symbols + a[:, None]) * symbols + a[None, :], product, square)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _scale(raw, best, chart, scales, peaks, tiny, n, batch, width, symbols: tl.constexpr, side: tl.constexpr):
    """Divide a span's sums by the largest; tl.div_rn rounds as torch does, so both ways of computing agree."""
    span = tl.program_id(0).to(tl.int64)
    place = span * (n + 1) + width
    a = tl.arange(0, side)
    value = tl.load(raw + span * symbols + a, a < symbols, other=0.0)
    peak = tl.max(value, 0)
    divisor = tl.maximum(peak, tiny)
    tl.store(peaks + place, divisor)
    tl.store(chart + place * symbols + a, tl.div_rn(value, divisor), a < symbols)
    tl.store(scales + place, tl.log(peak.to(tl.float64)) + tl.load(best + span))


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _receive(
    chart, peaks, weights, out, here, at_left, at_right, n, batch, width, symbols: tl.constexpr, side: tl.constexpr
):
    """Outside scores of a span's rules, and what its splits with a word pass on, by first word and by end."""
    span = tl.program_id(0).to(tl.int64)
    place = span * (n + 1) + width
    a = tl.arange(0, side)
    inside = tl.load(chart + place * symbols + a, a < symbols, other=0.0)
    received = tl.load(out + place * symbols + a, a < symbols, other=0.0)
    received = tl.where(inside == 0.0, 0.0, received)
    tl.store(out + place * symbols + a, received, a < symbols)
    value = tl.div_rn(received, tl.load(peaks + place))
    tl.store(here + span * symbols + a, value, a < symbols)
    first = tl.load(weights + span * (width - 1))
    last = tl.load(weights + span * (width - 1) + width - 2)
    tl.store(at_left + place * symbols + a, value * first, a < symbols)
    end = (span + width * batch) * (n + 1) + n - width
    tl.store(at_right + end * symbols + a, value * last, a < symbols)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _to_left(
    chart,
    weights,
    rules,
    here,
    right_words,
    out,
    n,
    batch,
    width,
    symbols: tl.constexpr,
    side: tl.constexpr,
    step: tl.constexpr,
):
    """Add to the left children of a width's spans what their parents give. One program a span: its left children are its own."""
    span = tl.program_id(0).to(tl.int64)
    i, b = span // batch, span % batch
    a = tl.arange(0, side)
    square = (a < symbols)[:, None] & (a < symbols)[None, :]
    last = tl.load(weights + span * (width - 1) + width - 2)
    parent = tl.load(here + span * symbols + a, a < symbols, other=0.0) * last
    at_end = (i + width - 1) * batch + b
    words = tl.load(right_words + (at_end * symbols + a[:, None]) * symbols + a[None, :], square, other=0.0)
    place = out + (span * (n + 1) + width - 1) * symbols + a
    tl.store(place, tl.load(place, a < symbols, other=0.0) + tl.sum(words * parent[:, None], 0), a < symbols)
    if width > 3:
        # By right child first: its transpose.
        rule = tl.load(rules + (span * symbols + a[None, :]) * symbols + a[:, None], square, other=0.0)
        for begin in range(2, width - 1, step):
            u = begin + tl.arange(0, step)
            inner = u < width - 1
            both = inner[:, None] & (a < symbols)[None, :]
            places = ((i + u) * batch + b) * (n + 1) + width - u
            rights = tl.load(chart + places[:, None] * symbols + a[None, :], both, other=0.0)
            w = tl.load(weights + span * (width - 1) + u - 1, inner, other=0.0)
            value = tl.dot(rights, rule, input_precision="ieee") * w[:, None]
            to = out + (span * (n + 1) + u)[:, None] * symbols + a[None, :]
            tl.store(to, tl.load(to, both, other=0.0) + value, both)


@triton.jit(do_not_specialize=VARYING)
@no_type_check
def _to_right(
    chart,
    weights,
    rules,
    here,
    left_words,
    out,
    n,
    batch,
    width,
    symbols: tl.constexpr,
    total: tl.constexpr,
    side: tl.constexpr,
    step: tl.constexpr,
):
    """Add to the right children likewise; each is that of one split of one span of this width, so no two programs meet."""
    span = tl.program_id(0).to(tl.int64)
    i, b = span // batch, span % batch
    a = tl.arange(0, side)
    square = (a < symbols)[:, None] & (a < symbols)[None, :]
    parent = tl.load(here + span * symbols + a, a < symbols, other=0.0) * tl.load(weights + span * (width - 1))
    words = tl.load(left_words + (span * symbols + a[:, None]) * total + a[None, :], square, other=0.0)
    place = out + (((i + 1) * batch + b) * (n + 1) + width - 1) * symbols + a
    tl.store(place, tl.load(place, a < symbols, other=0.0) + tl.sum(words * parent[:, None], 0), a < symbols)
    if width > 3:
        rule = tl.load(rules + (span * symbols + a[:, None]) * symbols + a[None, :], square, other=0.0)
        for begin in range(2, width - 1, step):
            u = begin + tl.arange(0, step)
            inner = u < width - 1
            both = inner[:, None] & (a < symbols)[None, :]
            w = tl.load(weights + span * (width - 1) + u - 1, inner, other=0.0)
            lefts = tl.load(chart + (span * (n + 1) + u)[:, None] * symbols + a[None, :], both, other=0.0)
            value = tl.dot(lefts * w[:, None], rule, input_precision="ieee")
            places = ((i + u) * batch + b) * (n + 1) + width - u
            to = out + places[:, None] * symbols + a[None, :]
            tl.store(to, tl.load(to, both, other=0.0) + value, both)


class TritonSteps(TensorSteps):
    """The steps in kernels of Triton, for float32 on a card."""

    latest: Tensor | None = None  # sums over splits between nonterminals, of the width at hand

    @staticmethod
    def suits(tags: Num[Tensor, "n B T"], nonterminals: int) -> bool:
        """Whether they can run here."""
        if tags.dtype != torch.float32 or nonterminals > MOST_SYMBOLS:
            return False
        return works(tags.device, _padded(nonterminals))

    def weigh(
        self, inside: Inside, width: int
    ) -> tuple[Num[Tensor, "spans B splits"], Float[Tensor, "spans B"], Num[Tensor, "spans B N"]]:
        """As `TensorSteps.weigh`, and the sums over splits between nonterminals."""
        if width == 2:
            return super().weigh(inside, width)
        n, batch, nonterminals = inside.n, inside.batch, inside.nonterminals
        spans = n - width + 1
        weights, best = inside.tags.new_empty(spans, batch, width - 1), inside.scales.new_empty(spans, batch)
        raw = pairs = inside.tags.new_empty(spans, batch, nonterminals)
        if width > 3 and inside.products is not None:
            pairs = inside.products[inside.inner_spans(width)]
        elif width > 3:
            pairs = inside.tags.new_empty(spans, batch, nonterminals**2)
        given = (inside.by_start, inside.scales, inside.left_words, inside.right_words, weights, best, raw, pairs)
        sizes = {"symbols": nonterminals, "total": inside.left_words.shape[3], "side": _padded(nonterminals)}
        _weigh[(spans * batch,)](*given, n, batch, width, **sizes, longest=_padded(n), step=SPLITS)
        self.latest = pairs
        return weights, best, raw

    def add_pairs(self, inside: Inside, width: int, raw: Num[Tensor, "spans B N"]) -> None:
        """As `TensorSteps.add_pairs`."""
        pairs, self.latest = self.latest, None
        assert pairs is not None
        if inside.inner.dim() == 2:
            raw.flatten(0, 1).addmm_(pairs.flatten(0, 1), inside.inner.mT)
        else:
            raw.transpose(0, 1).baddbmm_(pairs.transpose(0, 1), inside.inner.mT)

    def scale(self, inside: Inside, width: int, raw: Num[Tensor, "spans B N"], best: Float[Tensor, "spans B"]) -> None:
        """As `TensorSteps.scale`."""
        given = (raw.contiguous(), best, inside.by_start, inside.scales, inside.peaks, inside.tiny)
        nonterminals = inside.nonterminals
        grid = (raw.shape[:2].numel(),)
        _scale[grid](
            *given, inside.n, inside.batch, width, symbols=nonterminals, side=_padded(nonterminals), num_warps=1
        )

    def receive(self, outside: Outside, width: int, here: Num[Tensor, "spans B N"]) -> None:
        """As `TensorSteps.receive`, but that siblings of words are given theirs with the others."""
        inside = outside.inside
        given = (inside.by_start, inside.peaks, inside.weights[width - 2], outside.by_start, here)
        grid, sizes = (here.shape[:2].numel(),), (inside.n, inside.batch, width)
        more = {"symbols": inside.nonterminals, "side": _padded(inside.nonterminals)}
        _receive[grid](*given, outside.at_left, outside.at_right, *sizes, **more, num_warps=1)
        if width == 3:
            self._give(outside, width, here, here)

    def pass_on(self, outside: Outside, width: int, here: Num[Tensor, "spans B N"]) -> None:
        """As `TensorSteps.pass_on`."""
        self._give(outside, width, here, times(here, outside.inside.inner))

    def _give(self, outside: Outside, width: int, here: Tensor, rules: Tensor) -> None:
        inside = outside.inside
        given = (inside.by_start, inside.weights[width - 2], rules, here)
        grid, sizes = (here.shape[:2].numel(),), (inside.n, inside.batch, width)
        more: dict[str, Any] = {"symbols": inside.nonterminals, "side": _padded(inside.nonterminals), "step": SPLITS}
        _to_left[grid](*given, inside.right_words, outside.by_start, *sizes, **more)
        _to_right[grid](*given, inside.left_words, outside.by_start, *sizes, total=inside.left_words.shape[3], **more)


def _padded(size: int) -> int:
    """Sizes of what a program holds are powers of two, 16 at least for products."""
    return max(16, triton.next_power_of_2(size))


@lru_cache
def works(device: torch.device, size: int) -> bool:
    """Whether kernels for so many nonterminals compile on this device, and find what operations of torch do."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((size + 2,), (size, size + 2, size + 2), (3, TRIED, 2))
    start, binary, words = (torch.randn(shape, generator=draw).to(device) for shape in shapes)
    scores = Scores(start, binary, words, torch.full((3,), TRIED).to(device))
    try:
        results = []
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a compiler's, of its own settings
            for steps in (TensorSteps, TritonSteps):
                inside = Inside(Potentials.of(scores, torch.float32), size, torch.Tensor.relu, steps)
                results.append((inside.log_z, Outside(inside).binary_counts()))
        for one, two in zip(*results, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)  # products may be in TF32
    except Exception as error:  # whatever a compiler or driver may raise: charts go on without
        reasons[device, size] = f"{type(error).__name__}: {error}"
        return False
    return True
