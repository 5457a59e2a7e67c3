"""One batch of scaled charts: the inside and outside passes of the dense engine, and the rule counts they give.

Every span's vector of inside scores is kept with largest entry 1 beside the logarithm of what it was divided by. A chart
is seen by first word and by end, so that the two children of all splits of a span are slices without a copy and the sum
over splits is one batched matrix product; rules come after it, as one product for all spans of a width. Preterminals
span one word and nonterminals at least two, so only the first and the last split of a span meet a preterminal: its
rules are contracted with the word once, to a matrix per word.

Axes: n words first, then batch (so that slices of words fold into the batch without a copy), then width; the view by end
has width u at index n - u, which makes right children run the same way as left ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

# Bytes of left children and products over splits that are kept for the outside pass and rule counts, on a CPU and elsewhere;
# what would take more is computed again.
KEPT_BYTES, KEPT_ON_CARD = 64 << 20, 1 << 30

Settle = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-potentials of a batch of sentences, as the caller gave them; `start` and `binary` shared or per sentence."""

    start: Float[Tensor, "*B S"]
    binary: Float[Tensor, "*B N S S"]
    emissions: Float[Tensor, "B n T"]
    lengths: Int64[Tensor, " B"]

    @property
    def symbols(self) -> tuple[int, int]:
        """Numbers of nonterminals and of preterminals."""
        return self.binary.shape[-3], self.emissions.shape[2]

    def rows(self, rows: Int64[Tensor, " r"]) -> "Scores":
        """The same for some of the sentences, cut to the longest of them."""
        start = self.start[rows] if self.start.dim() == 2 else self.start
        binary = self.binary[rows] if self.binary.dim() == 4 else self.binary
        lengths = self.lengths[rows]
        return Scores(start, binary, self.emissions[rows, : int(lengths.max())], lengths)

    def support(self) -> "Scores":
        """0 where a score is finite, -inf elsewhere: which trees there are, whatever they weigh."""
        start, binary, emissions = (
            torch.where(x > -torch.inf, 0.0, x) for x in (self.start, self.binary, self.emissions)
        )
        return Scores(start, binary, emissions, self.lengths)


@dataclass(frozen=True, eq=False)
class Potentials:
    """Potentials divided by their largest: `binary` and `start` per sentence or shared, `tags` per word.

    `offsets`: what must be added to the logarithm of a scaled tree's weight, but for its words; `scales`: of each word.
    """

    start: Num[Tensor, "b S"]
    binary: Num[Tensor, "*B N S S"]
    tags: Num[Tensor, "n B T"]
    scales: Float[Tensor, "n B"]
    offsets: Float[Tensor, " B"]
    lengths: Int64[Tensor, " B"]

    @classmethod
    def of(
        cls, scores: Scores, dtype: torch.dtype, tangent: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> "Potentials":
        """Exponentials of the scores; with a `tangent`, those of scores + i tangent, for a tangent far below rounding."""
        batch, n = scores.emissions.shape[:2]
        padding = torch.arange(n, device=scores.lengths.device) >= scores.lengths[:, None]
        logs = scores.emissions.masked_fill(padding[:, :, None], -torch.inf).transpose(0, 1)
        ways = (None, None, None) if tangent is None else (tangent[0], tangent[1], tangent[2].transpose(0, 1))
        start, top = _exponentials(scores.start.reshape(-1, scores.start.shape[-1]), 1, dtype, ways[0])
        binary, high = _exponentials(scores.binary, 3, dtype, ways[1])
        tags, scales = _exponentials(logs, 1, dtype, ways[2])
        scales = torch.where((logs > -torch.inf).any(2), scales, -torch.inf)
        offsets = (top + (scores.lengths - 1) * high).expand(batch)
        return cls(start.reshape(-1, start.shape[-1]), binary, tags, scales, offsets, scores.lengths)


def _exponentials(logs: Tensor, dims: int, dtype: torch.dtype, tangent: Tensor | None) -> tuple[Tensor, Tensor]:
    """exp(logs - largest over the last dims), and that largest in float64 (0 where there is none)."""
    if dtype != torch.float32:
        logs = logs.double()  # what float32 would already lose here no later check could see
    high = logs.amax(tuple(range(-dims, 0)), keepdim=True)
    high = high.masked_fill(high == -torch.inf, 0.0)
    values = (logs - high).exp().to(dtype)
    if tangent is not None:
        values = values * torch.complex(torch.ones_like(tangent), tangent)
    return values, high.reshape(high.shape[: logs.dim() - dims]).double()


def floor_of(scores: Scores, dtype: torch.dtype) -> float:
    """What an entry of a span can lose at most to numbers too small for the type, before the span is divided.

    An entry sums up to S^2 pairs of children over n splits, and each of these products may lose a few times `tiny`.
    """
    symbols = sum(scores.symbols)
    return 8.0 * torch.finfo(dtype).tiny * symbols * symbols * scores.emissions.shape[1]


@runtime_checkable
class Steps(Protocol):
    """What both passes do with the spans of one width, and how: `pcfg.dense.steps` and `triton_kernels` have the ways."""

    def weigh(
        self, inside: "Inside", width: int
    ) -> tuple[Num[Tensor, "spans B splits"], Float[Tensor, "spans B"], Num[Tensor, "spans B N"]]:
        """Weight of each split relative to the best of its span; the logarithm of that; sums over splits with a word."""

    def add_pairs(self, inside: "Inside", width: int, raw: Num[Tensor, "spans B N"]) -> None:
        """Add what splits between nonterminals give to a width's spans, from 4."""

    def scale(
        self, inside: "Inside", width: int, raw: Num[Tensor, "spans B N"], best: Float[Tensor, "spans B"]
    ) -> None:
        """Divide each span's sums by the largest of them, into the chart."""

    def receive(self, outside: "Outside", width: int, here: Num[Tensor, "spans B N"]) -> None:
        """Fill in the outside scores of a width's rules, and give the siblings of words theirs."""

    def pass_on(self, outside: "Outside", width: int, here: Num[Tensor, "spans B N"]) -> None:
        """Give the children of splits between nonterminals theirs."""


class Inside:
    """Inside scores of a batch.

    Args:
        settle: what is done to every freshly summed entry (what is too small is dropped).
        steps: chooses the way in which this pass and the outside one are computed.
    """

    def __init__(
        self, potentials: Potentials, nonterminals: int, settle: Settle, steps: Callable[["Inside"], Steps]
    ) -> None:
        self.potentials, self.settle = potentials, settle
        self.start, self.tags = settle(potentials.start), settle(potentials.tags)
        self.nonterminals, self.preterminals = nonterminals, self.tags.shape[2]
        self.n, self.batch = n, batch = self.tags.shape[:2]
        self.inner = potentials.binary[..., : self.nonterminals, : self.nonterminals].flatten(-2)  # [(B,) N, N * N]
        with full_precision(self.tags):
            self._contract_words()
        self.by_start, self.by_end = both_ways(self.tags.new_zeros(2 * n + 1, batch, n + 1, self.nonterminals))
        kind = self.tags.real.dtype
        self.peaks, self.tiny = self.tags.new_zeros(n, batch, n + 1, dtype=kind), torch.finfo(kind).tiny
        scales = potentials.scales.new_full((2 * n + 1, batch, n + 1), -torch.inf)
        self.scales, self.scales_by_end = both_ways(scales)
        self.scales[:, :, 1] = potentials.scales
        self.weights: list[Tensor] = []  # of each split, relative to the best of its span; from width 2
        # Weighted left children and sums over splits of left times right, by width from 4, where all take little room.
        spans, entries = max(n - 3, 0) * max(n - 2, 0) // 2, self.nonterminals**2
        most = KEPT_BYTES if self.tags.device.type == "cpu" else KEPT_ON_CARD
        kept = spans * batch * (entries + n * self.nonterminals // 3) * self.tags.element_size() <= most
        self.products = self.tags.new_empty(spans, batch, entries) if kept else None
        self.lefts: dict[int, Tensor] = {}
        self.steps = steps(self)
        with full_precision(self.tags):
            for width in range(2, n + 1):
                self._fill(width)

    def _contract_words(self) -> None:
        """Rules with a word as left child: [n, B, N, S] over the right; as right child: [n, B, N, N] over the left."""
        binary, nonterminals = self.potentials.binary, self.nonterminals
        left, right = (
            binary[..., nonterminals:, :].transpose(-3, -2),
            binary[..., :nonterminals, nonterminals:].movedim(-1, -3),
        )
        self.left_rules, self.right_rules = left.flatten(-2), right.flatten(-2)  # [(B,) T, N * S], [(B,) T, N * N]
        self.left_words = times(self.tags, self.left_rules).unflatten(-1, (nonterminals, -1))
        self.right_words = times(self.tags, self.right_rules).unflatten(-1, (nonterminals, -1))
        # The same for batched products: words and sentences together, and the right a nonterminal.
        self.left_flat = self.left_words.flatten(0, 1)[..., :nonterminals]
        self.right_flat = self.right_words.flatten(0, 1)

    def _fill(self, width: int) -> None:
        weights, best, raw = self.steps.weigh(self, width)
        self.weights.append(weights)
        if width > 3:
            self.steps.add_pairs(self, width, raw)
        self.steps.scale(self, width, self.settle(raw), best)

    def children(self, width: int) -> tuple[Tensor, Tensor]:
        """Weighted left and bare right children of all inner splits [spans * B, splits, N]."""
        n, spans = self.n, self.n - width + 1
        left = self.lefts.get(width)
        if left is None:
            left = self.by_start[:spans, :, 2 : width - 1] * self.weights[width - 2][:, :, 1:-1, None]
            left = left.flatten(0, 1)
            if self.products is not None:
                self.lefts[width] = left
        return left, self.by_end[width:, :, n - width + 2 : n - 1].flatten(0, 1)

    def pairs(self, width: int) -> Num[Tensor, "spans B NN"]:
        """Sums over inner splits of left times right."""
        left, right = self.children(width)
        if self.products is None:
            return torch.bmm(left.mT, right).view(-1, self.batch, self.nonterminals**2)
        product = self.products[self.inner_spans(width)]
        torch.bmm(left.mT, right, out=product.view(-1, self.nonterminals, self.nonterminals))
        return product

    def inner_spans(self, width: int) -> slice:
        """Where spans of this width are among those with splits between nonterminals, of width 4 and more."""
        before = (width - 4) * (2 * self.n - width - 1) // 2
        return slice(before, before + self.n - width + 1)

    @cached_property
    def roots(self) -> Num[Tensor, "B S"]:
        """Scaled inside scores of each whole sentence, of a preterminal when it is one word."""
        row = torch.arange(self.batch, device=self.tags.device)
        whole = self.by_start[0, row, self.potentials.lengths]
        single = (self.potentials.lengths == 1)[:, None]
        return torch.cat([whole.masked_fill(single, 0.0), self.tags[0].masked_fill(~single, 0.0)], 1)

    @cached_property
    def total(self) -> Num[Tensor, " B"]:
        """Scaled weight of all trees of each sentence."""
        return (self.roots * self.start).sum(1)

    @property
    def root_scales(self) -> Float[Tensor, " B"]:
        """What the logarithm of `total` lacks to log Z."""
        row = torch.arange(self.batch, device=self.tags.device)
        return self.scales[0, row, self.potentials.lengths] + self.potentials.offsets

    @property
    def log_z(self) -> Float[Tensor, " B"]:
        """Log of the weight of all trees, -inf for none."""
        return self.total.real.double().log() + self.root_scales

    def faint(self, scores: Scores, threshold: float) -> Bool[Tensor, " B"]:
        """Whether a span holds a zero, or anything is so small that what underflowed beside it may count.

        Zeros of the start and of words are no loss where their scores are -inf.
        """
        n, device = self.n, self.tags.device
        ends = torch.arange(n, device=device)[:, None] + torch.arange(n + 1, device=device)
        held = (ends[:, None] <= scores.lengths[:, None]) & (torch.arange(n + 1, device=device) > 1)
        raw = (self.by_start * self.peaks[..., None]).masked_fill(~held[..., None], torch.inf)
        tags = self.tags.masked_fill(scores.emissions.transpose(0, 1) == -torch.inf, torch.inf)
        start = self.start.masked_fill(scores.start == -torch.inf, torch.inf)
        # Over words first: there the least of many is found at once.
        least = raw.amin(0).flatten(1).amin(1).minimum(tags.amin(0).amin(1)).minimum(start.amin(1))
        return (least < threshold) | (self.total < threshold)


class Outside:
    """Outside scores of the spans of an `Inside`, each times its span's scale over Z: times inside, they are posteriors."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        n, batch = inside.n, inside.batch
        total = inside.total
        self.roots = inside.start / torch.where(total.real > 0, total, 1.0)[:, None] * (inside.roots.real > 0)
        self.by_start, self.by_end = both_ways(inside.by_start.new_zeros(2 * n + 1, *inside.by_start.shape[1:]))
        self.of_words = torch.zeros_like(inside.tags)
        # Outside scores of the parents of a word and its sibling, by first word and by end.
        self.at_left = torch.zeros_like(inside.by_start)
        self.at_right = inside.by_start.new_zeros(inside.by_end.shape)
        # Outside scores of the rules of spans with splits between nonterminals.
        self.raw = inside.tags.new_empty(max(n - 3, 0) * max(n - 2, 0) // 2, batch, inside.nonterminals)
        row = torch.arange(batch, device=inside.tags.device)
        single = (inside.potentials.lengths == 1)[:, None]
        self.by_start[0, row, inside.potentials.lengths] = self.roots[:, : inside.nonterminals].masked_fill(single, 0.0)
        with full_precision(inside.tags):
            for width in range(n, 1, -1):
                self._spread(width)
            inside.lefts.clear()  # nothing after this pass needs them
            self._reach_words()
        self.of_words[0] += self.roots[:, inside.nonterminals :].masked_fill(~single, 0.0)
        self.of_words.masked_fill_(inside.tags.real == 0, 0.0)

    def _spread(self, width: int) -> None:
        """Give what a width's spans received to their children."""
        inside, nonterminals = self.inside, self.inside.nonterminals
        shape = (inside.n - width + 1, inside.batch)
        here = self.raw[inside.inner_spans(width)] if width > 3 else self.raw.new_empty(*shape, nonterminals)
        inside.steps.receive(self, width, here)
        if width > 3:
            inside.steps.pass_on(self, width, here)

    def _reach_words(self) -> None:
        """Words as left and as right child: sums over all spans of parent times sibling, then the rules."""
        inside, nonterminals = self.inside, self.inside.nonterminals
        n = inside.n
        self.left_words, self.right_words = torch.zeros_like(inside.left_words), torch.zeros_like(inside.right_words)
        if n == 1:
            return
        pair = self.at_left[:-1, :, 2, :, None]
        self.left_words[:-1, ..., nonterminals:] = pair * inside.tags[1:, :, None]
        self.of_words[1:] = (pair * inside.left_words[:-1, ..., nonterminals:]).sum(2)
        self.left_words[:-1, ..., :nonterminals] = self.at_left[:-1, :, 3:].mT @ inside.by_start[1:, :, 2:n]
        self.right_words[1:] = self.at_right[2:, :, : n - 2].mT @ inside.by_end[1:-1, :, 1 : n - 1]
        self.of_words += times(self.left_words.flatten(2), inside.left_rules.mT)
        self.of_words += times(self.right_words.flatten(2), inside.right_rules.mT)

    @property
    def tag_posteriors(self) -> Num[Tensor, "n B T"]:
        """Posterior of each preterminal over each word."""
        return self.of_words * self.inside.tags

    @property
    def labels(self) -> Num[Tensor, "n B widths N"]:
        """Posterior of each nonterminal over each span, by first word and width."""
        return self.by_start * self.inside.by_start

    def start_counts(self) -> Num[Tensor, "B S"]:
        """Posterior of each symbol at the root."""
        return self.roots * self.inside.roots

    def binary_counts(self, weights: Num[Tensor, " B"] | None = None) -> Num[Tensor, "*B N S S"]:
        """Expected uses of each rule, summed over sentences times `weights` where they share the rules."""
        with full_precision(self.inside.tags):
            return self._binary_counts(weights)

    def _binary_counts(self, weights: Num[Tensor, " B"] | None) -> Num[Tensor, "*B N S S"]:
        inside, nonterminals, preterminals = self.inside, self.inside.nonterminals, self.inside.preterminals
        binary = inside.potentials.binary
        shared = binary.dim() == 3
        scale = None if weights is None else weights[None, :, None]
        counts = torch.zeros_like(binary)
        words = inside.tags if scale is None else inside.tags * scale
        left = _outer(words, self.left_words.flatten(2), shared)
        counts[..., nonterminals:, :] = left.unflatten(-1, (nonterminals, nonterminals + preterminals)).transpose(
            -3, -2
        )
        right = _outer(words, self.right_words.flatten(2), shared)
        counts[..., :nonterminals, nonterminals:] = right.unflatten(-1, (nonterminals, nonterminals)).movedim(-3, -1)
        raw = self.raw if scale is None else self.raw * scale
        if inside.products is not None:
            inner = _outer(raw, inside.products, shared)
        else:
            inner = counts.new_zeros(*counts.shape[:-2], nonterminals * nonterminals)
            for width in range(4, inside.n + 1):
                inner += _outer(raw[inside.inner_spans(width)], inside.pairs(width), shared)
        counts[..., :nonterminals, :nonterminals] = inner.unflatten(-1, (nonterminals, nonterminals))
        return torch.where(binary.real > 0, counts * binary, 0.0)


def both_ways(
    memory: Num[Tensor, "m B widths *N"],
) -> tuple[Num[Tensor, "n B widths *N"], Num[Tensor, "n1 B widths *N"]]:
    """A chart of n words by first word and the same memory by end: 2 n + 1 rows of it, of which the first n stay as they are.

    Width u over the words that end before e is at [e, :, n - u] of the second, which is [e - u, :, u] of the first.
    """
    n = len(memory) // 2
    row, sentence, width, *inner = memory.stride()
    by_end = memory.as_strided(
        (n + 1, *memory.shape[1:]), (row, sentence, row - width, *inner), memory.storage_offset() + n * width
    )
    return memory[n : 2 * n], by_end


def by_end(by_width: Float[Tensor, "B n widths *N"]) -> Float[Tensor, "B n n1 *N"]:
    """From (first word, width) to (first word, end); 0 for spans of one word or none."""
    n = by_width.shape[1]
    first = torch.arange(n, device=by_width.device)[:, None]
    width = torch.arange(n + 1, device=by_width.device) - first
    by_last = by_width[:, first, width.clamp(min=0)]
    return by_last.masked_fill((width < 2).reshape(n, n + 1, *[1] * (by_width.dim() - 3)), 0.0)


def full_precision(like: Tensor) -> torch.autocast:
    """No half precision in here, whatever the training loop around it does."""
    return torch.autocast(like.device.type, enabled=False)


def times(rows: Num[Tensor, "m B x"], matrix: Num[Tensor, "*B x y"]) -> Num[Tensor, "m B y"]:
    """Rows of each sentence times its matrix, or the one they share."""
    if matrix.dim() == 2:
        return rows @ matrix
    return torch.bmm(rows.transpose(0, 1), matrix).transpose(0, 1).contiguous()


def _outer(one: Num[Tensor, "m B x"], two: Num[Tensor, "m B y"], shared: bool) -> Num[Tensor, "*B x y"]:
    """Sum of outer products over m, and over sentences where they share the rules."""
    if shared:
        return one.flatten(0, 1).mT @ two.flatten(0, 1)
    return torch.bmm(one.permute(1, 2, 0), two.transpose(0, 1))
