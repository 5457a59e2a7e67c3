"""What the dense passes do with the spans of one width, but for the products with the rules: tensors or compiled loops.

`Tensors` runs anywhere and on complex numbers. In a small batch on a CPU its operations are so small that starting them
takes longer than the arithmetic; `Loops` does the same, to rounding, in two calls a pass and width.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pcfg import dense_kernels

if TYPE_CHECKING:
    from pcfg.dense_chart import Inside, Outside

# Sentences times words times nonterminals up to which loops on one core are faster (1.0 to 1.7 times) than tensors on two.
MOST = 1 << 14


class Tensors:
    """Steps as operations of torch."""

    def __init__(self, inside: "Inside") -> None:
        self.inside = inside

    def weigh(
        self, width: int
    ) -> tuple[Num[Tensor, "spans B splits"], Float[Tensor, "spans B"], Num[Tensor, "spans B N"]]:
        """Weight of each split relative to the best of its span; the logarithm of that; sums over splits with a word."""
        inside = self.inside
        n, spans, batch = inside.size(width)
        sums = inside.scales[:spans, :, 1:width] + inside.scales_by_end[width:, :, n - width + 1 : n]
        best = sums.amax(2)
        known = best.clamp(min=torch.finfo(best.dtype).min)  # -inf less it is -inf
        weights = sums.sub_(known[:, :, None]).exp_().to(inside.tags.dtype)
        if width == 2:
            pairs = inside.left_words[:-1, ..., inside.nonterminals :] @ inside.tags[1:, :, :, None]
            return weights, best, pairs[..., 0] * weights
        right = inside.by_start[1 : spans + 1, :, width - 1] * weights[:, :, :1]
        left = inside.by_start[:spans, :, width - 1] * weights[:, :, -1:]
        raw = torch.bmm(inside.left_flat[: spans * batch], right.view(spans * batch, -1, 1))
        raw = raw.baddbmm_(inside.right_flat[(width - 1) * batch :], left.view(spans * batch, -1, 1))
        return weights, best, raw.view(spans, batch, -1)

    def scale(self, width: int, raw: Num[Tensor, "spans B N"], best: Float[Tensor, "spans B"]) -> None:
        """Divide each span's sums by the largest of them, into the chart."""
        inside, spans = self.inside, len(raw)
        peak = raw.real.amax(2)
        inside.peaks[:spans, :, width] = peak
        torch.div(raw, peak.clamp(min=inside.tiny)[:, :, None], out=inside.by_start[:spans, :, width])
        inside.scales[:spans, :, width] = peak.double().log_().add_(best)

    def receive(self, outside: "Outside", width: int, here: Num[Tensor, "spans B N"]) -> None:
        """Fill in the outside scores of a width's rules, and give the siblings of words theirs.

        An entry without inside score has no part in a tree; its outside score may be beyond the largest number.
        """
        inside = self.inside
        n, spans, batch = inside.size(width)
        weights = inside.weights[width - 2]
        received = outside.by_start[:spans, :, width]
        received.masked_fill_(inside.by_start[:spans, :, width].real == 0, 0.0)
        torch.div(received, inside.peaks[:spans, :, width, None].clamp(min=inside.tiny), out=here)
        left = torch.mul(here, weights[:, :, :1], out=outside.at_left[:spans, :, width])
        right = torch.mul(here, weights[:, :, -1:], out=outside.at_right[width:, :, n - width])
        if width > 2:
            to_right = torch.bmm(left.flatten(0, 1)[:, None], inside.left_flat[: spans * batch])
            to_left = torch.bmm(right.flatten(0, 1)[:, None], inside.right_flat[(width - 1) * batch :])
            outside.by_start[1 : spans + 1, :, width - 1] += to_right.view(spans, batch, -1)
            outside.by_start[:spans, :, width - 1] += to_left.view(spans, batch, -1)

    def spread(
        self, outside: "Outside", width: int, to_left: Num[Tensor, "sB splits N"], to_right: Num[Tensor, "sB splits N"]
    ) -> None:
        """Give the children of splits without a word what came for them; the left yet to be weighted."""
        n, spans, batch = self.inside.size(width)
        shape, weights = (spans, batch, *to_left.shape[1:]), self.inside.weights[width - 2]
        outside.by_start[:spans, :, 2 : width - 1] += to_left.view(shape) * weights[:, :, 1:-1, None]
        outside.by_end[width:, :, n - width + 2 : n - 1] += to_right.view(shape)


class Loops(Tensors):
    """The same steps in compiled loops over the same memory, for real numbers on a CPU."""

    def __init__(self, inside: "Inside") -> None:
        super().__init__(inside)
        self.chart, self.scales, self.peaks = inside.by_start.numpy(), inside.scales.numpy(), inside.peaks.numpy()
        self.words = (inside.left_words.numpy(), inside.right_words.numpy())
        self.tags = inside.tags.numpy()

    @staticmethod
    def pay(tags: Num[Tensor, "n B T"], nonterminals: int) -> bool:
        """Whether they are faster than tensors."""
        return tags.device.type == "cpu" and not tags.is_complex() and tags.shape[:2].numel() * nonterminals <= MOST

    def weigh(
        self, width: int
    ) -> tuple[Num[Tensor, "spans B splits"], Float[Tensor, "spans B"], Num[Tensor, "spans B N"]]:
        """As `Tensors.weigh`."""
        inside = self.inside
        _, spans, batch = inside.size(width)
        weights, best = inside.tags.new_empty(spans, batch, width - 1), inside.scales.new_empty(spans, batch)
        raw = inside.tags.new_empty(spans, batch, inside.nonterminals)
        inner = 0 if inside.products is None else max(width - 3, 0)
        lefts = inside.tags.new_empty(spans, batch, inner, inside.nonterminals)
        filled = (weights.numpy(), best.numpy(), raw.numpy(), lefts.numpy())
        dense_kernels.weigh(width, self.chart, self.scales, *self.words, self.tags, *filled)
        if inner:
            inside.lefts[width] = lefts.flatten(0, 1)
        return weights, best, raw

    def scale(self, width: int, raw: Num[Tensor, "spans B N"], best: Float[Tensor, "spans B"]) -> None:
        """As `Tensors.scale`."""
        dense_kernels.scale(width, raw.numpy(), best.numpy(), self.inside.tiny, self.chart, self.scales, self.peaks)

    def receive(self, outside: "Outside", width: int, here: Num[Tensor, "spans B N"]) -> None:
        """As `Tensors.receive`."""
        inside = self.inside
        filled = (x.numpy() for x in (outside.by_start, outside.at_left, outside.at_right, here))
        weights = inside.weights[width - 2].numpy()
        dense_kernels.receive(width, self.chart, self.peaks, inside.tiny, *self.words, weights, *filled)

    def spread(
        self, outside: "Outside", width: int, to_left: Num[Tensor, "sB splits N"], to_right: Num[Tensor, "sB splits N"]
    ) -> None:
        """As `Tensors.spread`."""
        _, spans, batch = self.inside.size(width)
        given = (x.view(spans, batch, *x.shape[1:]).numpy() for x in (to_left, to_right))
        dense_kernels.spread(width, self.inside.weights[width - 2].numpy(), *given, outside.by_start.numpy())
