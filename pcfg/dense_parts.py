"""Which arithmetic holds a sentence: scaled charts where nothing that counts underflows, in float32 or float64, else logs."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Float64, Int64, Num
from torch import Tensor

from pcfg.dense_chart import Inside, Outside, Potentials, Scores, Settle, floor_of
from pcfg.dense_logs import LogInside

# Words' posteriors must sum to 1 within this many roundings, lest the outside pass has lost something.
ROUNDINGS = 64


@dataclass(frozen=True, eq=False)
class Scaled:
    """Scaled charts of some sentences of a batch."""

    rows: Int64[Tensor, " r"]
    inside: Inside
    outside: Outside | None

    @property
    def log_z(self) -> Float64[Tensor, " r"]:
        """Log of the weight of all trees."""
        return self.inside.log_z

    @property
    def labels(self) -> Num[Tensor, "r n widths N"]:
        """Posterior of each nonterminal over each span, by first word and width."""
        return self._outside.labels.transpose(0, 1)

    @property
    def tags(self) -> Num[Tensor, "r n T"]:
        """Posterior of each preterminal over each word."""
        return self._outside.tag_posteriors.transpose(0, 1)

    @property
    def log_inside(self) -> Float64[Tensor, "r n widths N"]:
        """Log inside scores by first word and width, but for a constant of each width."""
        return (self.inside.by_start.double().log() + self.inside.scales[..., None]).transpose(0, 1)

    @property
    def _outside(self) -> Outside:
        return Outside(self.inside) if self.outside is None else self.outside

    def start_counts(self) -> Num[Tensor, "r S"]:
        """Posterior of each symbol at the root."""
        return self._outside.start_counts()

    def binary_counts(self, weights: Float[Tensor, " r"] | None) -> Num[Tensor, "*r N S S"]:
        """Expected uses of each rule, summed over sentences times `weights` where they share the rules."""
        return self._outside.binary_counts(weights)

    def tangent(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Inside]:
        """Slope of log Z along `ways`, the size of the step, and the inside pass whose imaginary parts over it are slopes.

        The step is so far below rounding that its square is nothing to the real part: there is no difference of close
        numbers, as in a difference quotient, and no error but rounding.
        """
        largest = torch.stack([way.abs().amax() for way in ways]).amax().double()
        step = 1e-20 / torch.where(largest > 0, largest, 1.0)
        tangent = (ways[0].double() * step, ways[1].double() * step, ways[2].double() * step)
        potentials = Potentials.of(scores, torch.complex128, tangent)
        inside = Inside(potentials, self.inside.nonterminals, _drop(floor_of(scores, torch.float64)))
        some = inside.total.real > 0
        slope = torch.where(some, inside.total.imag / torch.where(some, inside.total.real, 1.0), 0.0) / step
        return slope, step, inside

    def turned(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, "Scaled"]:
        """`tangent` with the outside pass."""
        slope, step, inside = self.tangent(scores, ways)
        return slope, step, Scaled(self.rows, inside, Outside(inside))

    def slopes(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> Float64[Tensor, " r"]:
        """Slope of each sentence's log Z along `ways`."""
        return self.tangent(scores, ways)[0]


class Logs:
    """Sentences of a batch in log-space, one after the other; posteriors are derivatives."""

    def __init__(self, rows: Int64[Tensor, " r"], scores: Scores) -> None:
        self.rows, self.scores = rows, scores
        found = [self._differentiate(row) for row in range(len(rows))]
        self.log_z = torch.stack([log_z for log_z, _, _ in found])
        self._counts = [counts for _, counts, _ in found]
        self.log_inside = torch.stack([chart for _, _, chart in found])
        self.tags = torch.stack([counts[2] for counts in self._counts])
        self.labels = torch.stack([counts[3] for counts in self._counts])

    def leaves(self, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores of one sentence in float64, and zeros to add to its spans, all to be differentiated by."""
        scores, n, nonterminals = self.scores, self.scores.emissions.shape[1], self.scores.symbols[0]
        start = scores.start[row] if scores.start.dim() == 2 else scores.start
        binary = scores.binary[row] if scores.binary.dim() == 4 else scores.binary
        found = (start, binary, scores.emissions[row], binary.new_zeros(n, n + 1, nonterminals))
        return tuple(x.detach().double().requires_grad_() for x in found)  # type: ignore[return-value]

    def run(self, row: int, leaves: tuple[Tensor, Tensor, Tensor, Tensor]) -> LogInside:
        """The differentiable inside pass of one sentence."""
        length = int(self.scores.lengths[row])
        return LogInside.of(leaves[0], leaves[1], leaves[2][:length], leaves[3][:length])

    def _differentiate(self, row: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        leaves = self.leaves(row)
        with torch.enable_grad():
            inside = self.run(row, leaves)
            counts = _gradients(inside.log_z, leaves)
        chart = torch.full_like(leaves[3], -torch.inf, requires_grad=False)
        for width, scores in enumerate(inside.chart):
            chart[: len(scores), width] = scores.detach()
        return inside.log_z.detach(), counts, chart

    def start_counts(self) -> Float64[Tensor, "r S"]:
        """Posterior of each symbol at the root."""
        return torch.stack([counts[0] for counts in self._counts])

    def binary_counts(self, weights: Float[Tensor, " r"] | None) -> Float64[Tensor, "*r N S S"]:
        """Expected uses of each rule, summed over sentences times `weights` where they share the rules."""
        if self.scores.binary.dim() == 4:
            return torch.stack([counts[1] for counts in self._counts])
        shares = [1.0] * len(self.rows) if weights is None else weights.double()
        return sum(share * counts[1] for share, counts in zip(shares, self._counts, strict=True))

    def slopes(self, scores: Scores, ways: tuple[Tensor, Tensor, Tensor]) -> Float64[Tensor, " r"]:
        """Slope of each sentence's log Z along `ways`: its expected counts times them."""
        found = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        for row, counts in enumerate(self._counts):
            for count, way in zip(counts[:3], ways, strict=True):
                found[row] += (count * (way[row] if way.dim() > count.dim() else way).double()).sum()
        return found

    def turned(self, row: int, ways: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Slope of one sentence's log Z along `ways`, and of its counts."""
        leaves = self.leaves(row)[:4]
        with torch.enable_grad():
            counts = _gradients(self.run(row, leaves).log_z, leaves[:3], create_graph=True)
            slope = sum((count * way.double()).sum() for count, way in zip(counts, ways, strict=True))
            return slope.detach(), _gradients(slope, leaves[:3])  # type: ignore[union-attr, arg-type]


def _gradients(value: Tensor, leaves: tuple[Tensor, ...], create_graph: bool = False) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    )


def solve(scores: Scores, dtype: torch.dtype, outside: bool) -> list[Scaled | Logs]:
    """Charts in which no sentence has lost anything, the first of dtype, float64 and log-space that holds it."""
    rows = torch.arange(len(scores.lengths), device=scores.lengths.device)
    parts: list[Scaled | Logs] = []
    failed = {}
    for level in dict.fromkeys((dtype, torch.float64)):
        some = scores if len(rows) == len(scores.lengths) else scores.rows(rows)
        inside, found, sound = _attempt(some, level, outside)
        if bool(sound.all()):
            parts.append(Scaled(rows, inside, found))
            rows = rows[:0]
            break
        failed[level] = int((~sound).sum())
        if bool(sound.any()):
            inside, found, _ = _attempt(scores.rows(rows[sound]), level, outside)
            parts.append(Scaled(rows[sound], inside, found))
        rows = rows[~sound]
    if len(rows):
        parts.append(Logs(rows, scores.rows(rows)))
    if failed:
        levels = " and ".join(f"{count} in {str(level).removeprefix('torch.')}" for level, count in failed.items())
        last = "log-space" if len(rows) else "float64"
        warnings.warn(
            f"Scores of {levels} of {len(scores.lengths)} sentences underflow: promoted, up to {last}, which is slower and exact.",
            RuntimeWarning,
            stacklevel=4,
        )
    return parts


@torch.inference_mode()  # some hundred small operations: what autograd would note of each takes as long as they do
def _attempt(scores: Scores, dtype: torch.dtype, outside: bool) -> tuple[Inside, Outside | None, Bool[Tensor, " B"]]:
    """Scaled charts, and which sentences they are proven to hold."""
    floor, eps = floor_of(scores, dtype), torch.finfo(dtype).eps
    nonterminals = scores.symbols[0]
    inside = Inside(Potentials.of(scores, dtype), nonterminals, _drop(floor))
    doubted = inside.faint(scores, floor / eps)
    sound = ~doubted
    if bool(doubted.any()):
        rows = doubted.nonzero()[:, 0]
        some = scores.rows(rows)
        # An upper bound of the true Z: what each entry could have lost is given to all of them.
        upper = Inside(Potentials.of(some, dtype), nonterminals, lambda entries: entries + 2 * floor)
        gap, size = upper.log_z - inside.log_z[rows], upper.log_z.abs()
        sound[rows] = gap <= ROUNDINGS * eps / 2 + 8 * torch.finfo(size.dtype).eps * size
        empty = inside.total[rows] == 0
        if bool(empty.any()):
            trees = Inside(Potentials.of(some.support(), dtype), nonterminals, lambda entries: (entries > 0).to(dtype))
            sound[rows] |= empty & (trees.total == 0)
    if not outside:
        return inside, None, sound
    found = Outside(inside)
    words = torch.arange(len(inside.tags), device=sound.device)[:, None] < scores.lengths
    expected = (words & (inside.total > 0)).to(dtype)
    wrong = ~((found.tag_posteriors.sum(2) - expected).abs() <= ROUNDINGS * eps)  # NaN is wrong too
    return inside, found, sound & ~wrong.any(0)


def _drop(floor: float) -> Settle:
    """Makes entries 0 that are too small to divide by."""
    return partial(_dropped, floor=floor)


def _dropped(entries: Tensor, floor: float) -> Tensor:
    if entries.is_complex():
        return entries.masked_fill(entries.real <= floor, 0.0)
    return torch.nn.functional.threshold(entries, floor, 0.0)


def merge(
    parts: Sequence[Scaled | Logs], tensors: Sequence[Tensor], shape: Sequence[int], padding: float = 0.0
) -> Tensor:
    """What the parts found, in the order of the batch, in float64; parts cut to shorter sentences are padded."""
    merged = tensors[0].new_full(tuple(shape), padding, dtype=torch.float64)
    for part, tensor in zip(parts, tensors, strict=True):
        place: tuple[Tensor | slice, ...] = (part.rows, *(slice(0, size) for size in tensor.shape[1:]))
        merged[place] = tensor.double()
    return merged
