"""What the dense passes do with the spans of one width, but for the products with the rules: tensors or compiled loops.

`TensorSteps` runs anywhere and on complex numbers. In a small batch on a CPU its operations are so small that starting them
takes longer than the arithmetic; `LoopSteps` does the same, to rounding, in two calls a pass and width. An `Inside` holds its
steps, so steps don't hold the `Inside`: a cycle of references would keep large charts until Python's collector runs.
"""

import torch
from jaxtyping import Float, Num
from torch import Tensor

from pcfg.dense import kernels
from pcfg.dense.chart import Inside, Outside, times

# Sentences times words times nonterminals, and nonterminals, up to which loops on one core are faster than tensors on two
# (1.1 to 1.7 times): the more symbols, the more of the time goes to products with the rules.
MOST = 1 << 14
MOST_SYMBOLS = 128


class TensorSteps:
    """Steps as operations of torch."""

    def __init__(self, inside: Inside) -> None:
        """Nothing of the pass is kept."""

    def weigh(
        self, inside: Inside, width: int
    ) -> tuple[Num[Tensor, "spans B splits"], Float[Tensor, "spans B"], Num[Tensor, "spans B N"]]:
        """Weight of each split relative to the best of its span; the logarithm of that; sums over splits with a word."""
        n, batch, spans = inside.n, inside.batch, inside.n - width + 1
        sums = inside.scales[:spans, :, 1:width] + inside.scales_by_end[width:, :, spans:n]
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

    def scale(self, inside: Inside, width: int, raw: Num[Tensor, "spans B N"], best: Float[Tensor, "spans B"]) -> None:
        """Divide each span's sums by the largest of them, into the chart."""
        spans, peak = len(raw), raw.real.amax(2)
        divisor = torch.clamp(peak, min=inside.tiny, out=inside.peaks[:spans, :, width])
        torch.div(raw, divisor[:, :, None], out=inside.by_start[:spans, :, width])
        torch.add(peak.double().log_(), best, out=inside.scales[:spans, :, width])

    def receive(self, outside: Outside, width: int, here: Num[Tensor, "spans B N"]) -> None:
        """Fill in the outside scores of a width's rules, and give the siblings of words theirs.

        An entry without inside score has no part in Z, so none in what the outside pass counts.
        """
        inside = outside.inside
        n, batch, spans = inside.n, inside.batch, len(here)
        weights = inside.weights[width - 2]
        received = outside.by_start[:spans, :, width]
        received.masked_fill_(inside.by_start[:spans, :, width].real == 0, 0.0)
        torch.div(received, inside.peaks[:spans, :, width, None], out=here)
        left = torch.mul(here, weights[:, :, :1], out=outside.at_left[:spans, :, width])
        right = torch.mul(here, weights[:, :, -1:], out=outside.at_right[width:, :, n - width])
        if width > 2:
            to_right = torch.bmm(left.flatten(0, 1)[:, None], inside.left_flat[: spans * batch])
            to_left = torch.bmm(right.flatten(0, 1)[:, None], inside.right_flat[(width - 1) * batch :])
            # Not +=, which writes a slice back over itself.
            outside.by_start[1 : spans + 1, :, width - 1].add_(to_right.view(spans, batch, -1))
            outside.by_start[:spans, :, width - 1].add_(to_left.view(spans, batch, -1))

    def add_pairs(self, inside: Inside, width: int, raw: Num[Tensor, "spans B N"]) -> None:
        """Add what splits between nonterminals give to a width's spans, from 4."""
        raw += times(inside.pairs(width), inside.inner.mT)

    def pass_on(self, outside: Outside, width: int, here: Num[Tensor, "spans B N"]) -> None:
        """Give the children of splits between nonterminals theirs."""
        inside, symbols = outside.inside, outside.inside.nonterminals
        lefts, rights = inside.children(width)
        rules = times(here, inside.inner).view(-1, symbols, symbols)
        to_left, to_right = torch.bmm(rights, rules.mT), torch.bmm(lefts, rules)
        self.spread(outside, width, to_left.unflatten(0, here.shape[:2]), to_right.unflatten(0, here.shape[:2]))

    def spread(
        self,
        outside: Outside,
        width: int,
        to_left: Num[Tensor, "spans B splits N"],
        to_right: Num[Tensor, "spans B splits N"],
    ) -> None:
        """Give the children of splits without a word what came for them; the left yet to be weighted."""
        n, spans, weights = outside.inside.n, len(to_left), outside.inside.weights[width - 2]
        outside.by_start[:spans, :, 2 : width - 1].add_(to_left * weights[:, :, 1:-1, None])
        outside.by_end[width:, :, n - width + 2 : n - 1].add_(to_right)


class LoopSteps(TensorSteps):
    """The same steps in compiled loops over the same memory, for real numbers on a CPU."""

    def __init__(self, inside: Inside) -> None:
        self.chart, self.scales, self.peaks = inside.by_start.numpy(), inside.scales.numpy(), inside.peaks.numpy()
        self.words = (inside.left_words.numpy(), inside.right_words.numpy())
        self.tags = inside.tags.contiguous().numpy()  # each layout is another kernel to compile

    @staticmethod
    def suits(tags: Num[Tensor, "n B T"], nonterminals: int) -> bool:
        """Whether they can run, and are faster than tensors."""
        small = tags.shape[:2].numel() * nonterminals <= MOST and nonterminals <= MOST_SYMBOLS
        return small and tags.device.type == "cpu" and not tags.is_complex()

    def weigh(
        self, inside: Inside, width: int
    ) -> tuple[Num[Tensor, "spans B splits"], Float[Tensor, "spans B"], Num[Tensor, "spans B N"]]:
        """As `TensorSteps.weigh`."""
        batch, spans = inside.batch, inside.n - width + 1
        weights, best = inside.tags.new_empty(spans, batch, width - 1), inside.scales.new_empty(spans, batch)
        raw = inside.tags.new_empty(spans, batch, inside.nonterminals)
        filled = (weights.numpy(), best.numpy(), raw.numpy())
        kernels.weigh(width, self.chart, self.scales, *self.words, self.tags, *filled)
        return weights, best, raw

    def scale(self, inside: Inside, width: int, raw: Num[Tensor, "spans B N"], best: Float[Tensor, "spans B"]) -> None:
        """As `TensorSteps.scale`."""
        kernels.scale(width, raw.numpy(), best.numpy(), inside.tiny, self.chart, self.scales, self.peaks)

    def receive(self, outside: Outside, width: int, here: Num[Tensor, "spans B N"]) -> None:
        """As `TensorSteps.receive`."""
        filled = (x.numpy() for x in (outside.by_start, outside.at_left, outside.at_right, here))
        weights, tiny = outside.inside.weights[width - 2].numpy(), outside.inside.tiny
        kernels.receive(width, self.chart, self.peaks, tiny, *self.words, weights, *filled)

    def spread(
        self,
        outside: Outside,
        width: int,
        to_left: Num[Tensor, "spans B splits N"],
        to_right: Num[Tensor, "spans B splits N"],
    ) -> None:
        """As `TensorSteps.spread`."""
        weights = outside.inside.weights[width - 2].numpy()
        kernels.spread(width, weights, to_left.numpy(), to_right.numpy(), outside.by_start.numpy())
