"""Inside-Outside in log-space, one sentence at a time: exact whatever the scores, and slower than scaled charts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pcfg.dense.chart import Scores, by_end


def log_sum(scores: Tensor, dim: int) -> Tensor:
    """logsumexp whose first and second derivatives hold where everything is -inf: they are 0 there."""
    peak = scores.detach().amax(dim, keepdim=True)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    total = (scores - peak).exp().sum(dim)
    some = total > 0
    return torch.where(some, torch.where(some, total, 1.0).log() + peak.squeeze(dim), -torch.inf)


@dataclass(frozen=True, eq=False)
class LogInside:
    """Inside pass of one sentence in log-space, made of differentiable steps; `extra` is added to each span's scores."""

    chart: list[Tensor]  # by width [spans, N]; the first two are empty
    log_z: Float64[Tensor, ""]

    @classmethod
    def of(cls, start: Tensor, binary: Tensor, emissions: Tensor, extra: Float64[Tensor, "n widths N"]) -> "LogInside":
        """Scores of one sentence alone: start [S], binary [N, S, S], emissions [n, T], all float64."""
        n, nonterminals = len(emissions), len(binary)
        chart = [emissions.new_empty(0, nonterminals)] * 2
        for width in range(2, n + 1):
            # What a width holds on its way (every split of every pair of symbols) is computed again when differentiated.
            scores = checkpoint(_log_fill, binary, emissions, *chart[2:], use_reentrant=False, preserve_rng_state=False)
            chart.append(scores + extra[: n - width + 1, width])
        whole = emissions[0] + start[nonterminals:] if n == 1 else chart[n][0] + start[:nonterminals]
        return cls(chart, log_sum(whole, 0))


def _log_fill(binary: Tensor, emissions: Tensor, *chart: Tensor) -> Tensor:
    """The next width's log inside scores; `chart` starts at width 2."""
    width, nonterminals = len(chart) + 2, len(binary)
    spans = len(emissions) - width + 1
    first, last = emissions[:spans], emissions[width - 1 :]
    if width == 2:
        pairs = first[:, :, None] + last[:, None]
        return log_sum((binary[:, nonterminals:, nonterminals:] + pairs[:, None]).flatten(2), 2)
    right, left = chart[width - 3][1:], chart[width - 3][:spans]
    parts = [
        log_sum(
            (binary[:, nonterminals:, :nonterminals] + (first[:, :, None] + right[:, None])[:, None]).flatten(2), 2
        ),
        log_sum((binary[:, :nonterminals, nonterminals:] + (left[:, :, None] + last[:, None])[:, None]).flatten(2), 2),
    ]
    if width > 3:
        lefts = torch.stack([chart[k - 2][:spans] for k in range(2, width - 1)])
        rights = torch.stack([chart[width - k - 2][k : k + spans] for k in range(2, width - 1)])
        pairs = log_sum(lefts[:, :, :, None] + rights[:, :, None], 0)
        parts.append(log_sum((binary[:, :nonterminals, :nonterminals] + pairs[:, None]).flatten(2), 2))
    return log_sum(torch.stack(parts), 0)


class Logs:
    """Sentences of a batch in log-space, one after the other; posteriors are derivatives."""

    def __init__(self, rows: Int64[Tensor, " r"], scores: Scores) -> None:
        self.rows, self.scores = rows, scores
        passes = [self._differentiate(row) for row in range(len(rows))]
        self.log_z = torch.stack([log_z for log_z, _, _ in passes])
        self._counts = [counts for _, counts, _ in passes]
        self.log_inside = torch.stack([chart for _, _, chart in passes])
        self.tags = torch.stack([counts[2] for counts in self._counts])
        self.labels = by_end(torch.stack([counts[3] for counts in self._counts]))
        self.spans = self.labels.sum(3)

    def leaves(self, row: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores of one sentence in float64, and zeros to add to its spans, all to be differentiated by."""
        scores, n, nonterminals = self.scores, self.scores.emissions.shape[1], self.scores.symbols[0]
        start = scores.start[row] if scores.start.dim() == 2 else scores.start
        binary = scores.binary[row] if scores.binary.dim() == 4 else scores.binary
        parts = (start, binary, scores.emissions[row], binary.new_zeros(n, n + 1, nonterminals))
        return tuple(x.detach().double().requires_grad_() for x in parts)  # type: ignore[return-value]

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
        slopes = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        for row, counts in enumerate(self._counts):
            for count, way in zip(counts[:3], ways, strict=True):
                slopes[row] += (count * (way[row] if way.dim() > count.dim() else way).double()).sum()
        return slopes

    def turned(self, row: int, ways: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Slope of one sentence's log Z along `ways`, and of its counts."""
        leaves = self.leaves(row)[:4]
        with torch.enable_grad():
            counts = _gradients(self.run(row, leaves).log_z, leaves[:3], create_graph=True)
            slope = sum((count * way.double()).sum() for count, way in zip(counts, ways, strict=True))
            return slope.detach(), _gradients(slope, leaves[:3])  # type: ignore[union-attr, arg-type]


def _gradients(value: Tensor, leaves: tuple[Tensor, ...], create_graph: bool = False) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    )
