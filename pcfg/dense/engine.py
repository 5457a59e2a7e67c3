"""Exact Inside-Outside for a batch of sentences under a grammar of up to some hundred symbols, in torch.

Scores are log-potentials throughout: any finite number, or -inf for what can't be. Symbols are numbered jointly,
nonterminals first (0..N-1), then preterminals (N..N+T-1), S = N + T together; nonterminals derive two words or more,
preterminals one. The weight of a tree is the exponential of the sum of its root's, rules' and words' scores; a
sentence of one word has a preterminal for its root. Scores of the start and of rules are shared by the batch, or have
a first axis for the sentences. Everything runs where its scores are, and results are there; lengths may be elsewhere.

The same scores give the same bits from call to call; a card and a CPU agree to rounding, and in best trees and their scores
to the bit. On a card, what comes again in the same sizes is recorded and replayed (`cuda_graphs`).

Charts are scaled (`chart`), and each sentence is proven to have lost nothing to underflow before its numbers are
given out: either no entry comes near the smallest number; or the same pass with what could have been lost added to
every entry finds the same Z. The outside pass is held to giving every word exactly one preterminal. Sentences that
fail are done again in float64, then in log-space, and one warning says so.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcfg.dense.chart import Scores
from pcfg.dense.checks import alarms, complain, fitted, masked
from pcfg.dense.k_best import best_trees
from pcfg.dense.log_space import Logs
from pcfg.dense.passes import is_recorded, run_best
from pcfg.dense.precision import merge, solve
from pcfg.dense.scaled import Scaled
from pcfg.dense.tree_walk import best, drawn, pick_trees, root_scores
from pcfg.dense.viterbi import best_chart
from pcfg.devices import Dtype
from pcfg.errors import OptionError
from surgery.reporting.results import Shown

DTYPES = (torch.float32, torch.float64)


def dense_inside_outside(
    log_start: Float[Tensor, "*B S"],
    log_binary: Float[Tensor, "*B N S S"],
    log_emissions: Float[Tensor, "B n T"],
    lengths: Int[Tensor, " B"],
    *,
    dtype: Dtype | None = None,
) -> "DenseResult":
    """Log Z and posteriors of each sentence; `dtype` is float32 or float64, by default that of `log_binary`.

    `log_emissions` beyond a sentence's length is ignored. A sentence without a parse has log Z -inf and posteriors 0.
    Raises GrammarError for scores or lengths that don't fit together, OptionError for another dtype.
    """
    # Copies: what is computed later must be of these scores, though an optimiser changes them in place meanwhile.
    start, binary, emissions = (scores.detach().clone() for scores in (log_start, log_binary, log_emissions))
    scores = _fit(start, binary, emissions, lengths)
    dtype = _check_dtype(dtype or log_binary.dtype)
    return DenseResult(scores, tuple(solve(scores, dtype, True)), dtype)


def log_partition(
    log_start: Float[Tensor, "*B S"],
    log_binary: Float[Tensor, "*B N S S"],
    log_emissions: Float[Tensor, "B n T"],
    lengths: Int[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Log Z of each sentence, differentiable twice: expected counts come from the outside pass, not from a tape.

    The second derivative runs both passes once more, on numbers with an infinitesimal imaginary part (Squire & Trapp
    1998), which is exact to rounding. Gradients of a sentence without a parse are 0.
    """
    scores = _fit(log_start, log_binary, log_emissions, lengths)
    _check_dtype(log_binary.dtype)
    return _LogPartition.apply(scores.start, scores.binary, scores.emissions, scores.lengths)


def dense_viterbi(
    log_start: Float[Tensor, "*B S"],
    log_binary: Float[Tensor, "*B N S S"],
    log_emissions: Float[Tensor, "B n T"],
    lengths: Int[Tensor, " B"],
) -> tuple[Float[Tensor, " B"], list[Int64[Tensor, "nodes 4"]]]:
    """Score and nodes of the best tree of each sentence.

    Nodes are rows `(symbol, first word, end, split)` in preorder, 2 n - 1 of them; a preterminal's split is -1. A
    sentence without a parse scores -inf and has none.
    """
    scores = _check(log_start.detach(), log_binary.detach(), log_emissions.detach(), lengths)
    if is_recorded(scores):
        batch, nodes = len(lengths), 2 * scores.emissions.shape[1] - 1
        values, trees = run_best(scores).read(
            lambda state: (state[0][:batch].clone(), state[2][:batch, :nodes].clone())
        )
    else:
        values, chart = best_chart(scores)
        trees = pick_trees(scores, chart, 1, best)[:, 0]
    rows = ((2 * scores.lengths - 1) * (values > -torch.inf)).tolist()
    return values, [tree[:row] for tree, row in zip(trees, rows, strict=True)]


def dense_k_best(
    log_start: Float[Tensor, "*B S"],
    log_binary: Float[Tensor, "*B N S S"],
    log_emissions: Float[Tensor, "B n T"],
    lengths: Int[Tensor, " B"],
    count: int,
) -> list[list[tuple[float, Int64[np.ndarray, "nodes 3"]]]]:
    """The `count` best trees of each sentence, or all if there are fewer, best first (Huang & Chiang 2005, algorithm 3).

    Each with its score and its nodes in preorder, rows `(symbol, first word, end)`.
    """
    if count < 1:
        raise OptionError(f"{count} best trees were asked for: ask for 1 or more")
    scores = _check(log_start.detach(), log_binary.detach(), log_emissions.detach(), lengths)
    there = None
    if is_recorded(scores):  # the search goes from one edge to the next: on a CPU
        there = run_best(scores).read(lambda best: best[1].cpu())
        scores = Scores(*(x.cpu() for x in (scores.start, scores.binary, scores.emissions, scores.lengths)))
    trees = []
    for row, n in enumerate(scores.lengths.tolist()):
        one = scores.rows(torch.tensor([row], device=scores.lengths.device))
        chart = best_chart(one)[1] if there is None else there[row : row + 1, :n, : n + 1]
        parsed = bool((root_scores(one, chart) > -math.inf).any())
        trees.append(best_trees(one, chart, count) if parsed else [])
    return trees


def dense_sample(
    result: "DenseResult", count: int, generator: torch.Generator | None = None, *, row: int | None = None
) -> list[Int64[Tensor, "count nodes 4"]]:
    """`count` trees of each sentence drawn from its posterior, as rows like those of `dense_viterbi`; none without a parse.

    Args:
        row: of this sentence only.
    """
    scores, log_inside, log_z = result.scores, result.log_inside, result.log_z
    if row is not None:
        scores = scores.rows(torch.tensor([row], device=scores.lengths.device))
        n = scores.emissions.shape[1]
        log_inside, log_z = log_inside[row : row + 1, :n, : n + 1], log_z[row : row + 1]
    doubled = Scores(scores.start.double(), scores.binary.double(), scores.emissions.double(), scores.lengths)
    trees = pick_trees(doubled, log_inside, count, drawn(generator))
    parsed = (log_z > -torch.inf).tolist()
    sizes = zip(trees, parsed, (2 * scores.lengths - 1).tolist(), strict=True)
    return [tree[: count if some else 0, :size] for tree, some, size in sizes]


@dataclass(frozen=True, eq=False)
class DenseResult(Shown):
    """Posteriors of a batch; what is costly is computed when first asked for. Spans (i, j) are words i..j-1.

    `log_z` and `log_inside` are always float64, the rest has the dtype asked for.
    """

    scores: Scores
    parts: tuple["Scaled | Logs", ...]
    dtype: torch.dtype

    @property
    def summary(self) -> list[str]:
        """How many sentences, their lengths and the device that they are on."""
        batch, n, _ = self.scores.emissions.shape
        inner, tags = self.scores.symbols
        kind = str(self.dtype).removeprefix("torch.")
        return [
            f"{batch:,} sentences of up to {n:,} words under {inner} nonterminals and {tags} preterminals, "
            f"in {kind} on {self.scores.emissions.device}."
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row a sentence: its number from 1, words and log Z."""
        lengths, log_z = self.scores.lengths.tolist(), self.log_z.tolist()
        rows = [list(row) for row in zip(range(1, len(lengths) + 1), lengths, log_z, strict=True)]
        return ["sentence", "words", "log Z"], rows

    @cached_property
    def log_z(self) -> Float64[Tensor, " B"]:
        """Log of the summed weight of all trees; -inf where there is none."""
        return merge(self.parts, [part.log_z for part in self.parts], self.scores.lengths.shape)

    @cached_property
    def span_marginals(self) -> Float[Tensor, "B n n1"]:
        """Probability that a span of two words or more is a constituent; a sentence's sum to its length - 1."""
        return merge(self.parts, [part.spans for part in self.parts], self._spans, self.dtype)

    @cached_property
    def label_marginals(self) -> Float[Tensor, "B n n1 N"]:
        """Probability that a span of two words or more is a constituent of each nonterminal."""
        shape = (*self._spans, self.scores.symbols[0])
        return merge(self.parts, [part.labels for part in self.parts], shape, self.dtype)

    @cached_property
    def tag_posteriors(self) -> Float[Tensor, "B n T"]:
        """Probability of each preterminal over each word."""
        return merge(self.parts, [part.tags for part in self.parts], self.scores.emissions.shape, self.dtype)

    @cached_property
    def rule_expectations(self) -> Float[Tensor, "*B N S S"]:
        """Expected uses of each binary rule: of the whole batch if it shares the rules, else of each sentence."""
        counts = [part.binary_counts(None) for part in self.parts]
        if counts[0].dim() == 3:
            return sum((count.double() for count in counts[1:]), counts[0]).to(self.dtype)
        return merge(self.parts, counts, self.scores.binary.shape, self.dtype)

    @cached_property
    def start_expectations(self) -> Float[Tensor, "B S"]:
        """Probability of each symbol at the root of each sentence."""
        shape = (len(self.scores.lengths), sum(self.scores.symbols))
        return merge(self.parts, [part.start_counts() for part in self.parts], shape, self.dtype)

    @cached_property
    def log_inside(self) -> Float64[Tensor, "B n widths N"]:
        """Log inside scores by first word and width, those of a width up to a number of its own."""
        shape = (*self._spans, self.scores.symbols[0])
        return merge(self.parts, [part.log_inside for part in self.parts], shape, padding=-torch.inf)

    def expected(
        self, start: Float[Tensor, " S"], binary: Float[Tensor, "N S S"], emissions: Float[Tensor, "B n T"]
    ) -> Float64[Tensor, " B"]:
        """Expected sum of such weights of root, rules and words over the trees of each sentence; 0 without a parse.

        It is the slope of log Z along the weights, so that no sentence's expected rule counts are made.
        """
        sums = []
        for part in self.parts:
            scores = self.scores.rows(part.rows)
            sums.append(part.slopes(scores, _rows_of((start, binary, emissions), part.rows, scores)))
        return merge(self.parts, sums, self.scores.lengths.shape)

    @property
    def _spans(self) -> tuple[int, int, int]:
        batch, n, _ = self.scores.emissions.shape
        return batch, n, n + 1


class _LogPartition(torch.autograd.Function):
    """Log Z; its gradient is the expected counts."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, binary: Tensor, emissions: Tensor, lengths: Tensor) -> Tensor:
        scores = Scores(start.detach(), binary.detach(), emissions.detach(), lengths)
        parts = solve(scores, binary.dtype, any(ctx.needs_input_grad))
        ctx.save_for_backward(start, binary, emissions, lengths)
        ctx.parts = parts
        return merge(parts, [part.log_z for part in parts], lengths.shape, binary.dtype)

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        return *_Counts.apply(*weights, *ctx.saved_tensors, ctx.parts), None


class _Counts(torch.autograd.Function):
    """Expected counts of the start, rules and words, times a weight for each sentence."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, start: Tensor, binary: Tensor, emissions: Tensor, lengths: Tensor, parts: list
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(weights, start, binary, emissions, lengths)
        ctx.parts = parts
        leaves = start, binary, emissions
        if len(parts) == 1 and isinstance(parts[0], Scaled):  # of all sentences, in the order of the batch
            counts = parts[0].gradients(weights, start.dim() == 2)
            return tuple(x.to(like.dtype) for x, like in zip(counts, leaves, strict=True))  # type: ignore[return-value]
        summed = [torch.zeros_like(x, dtype=torch.float64) for x in leaves]
        for part in parts:
            share = weights[part.rows]
            rules = part.binary_counts(share) if binary.dim() == 3 else part.binary_counts(None)
            _gather(summed, part.rows, share, part.start_counts(), rules, part.tags)
        return summed[0].to(start.dtype), summed[1].to(binary.dtype), summed[2].to(emissions.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *ways: Tensor) -> tuple[Tensor | None, ...]:
        weights, start, binary, emissions, lengths = ctx.saved_tensors
        scores = Scores(start, binary, emissions, lengths)
        slopes = torch.zeros_like(weights, dtype=torch.float64)
        summed = [torch.zeros_like(x, dtype=torch.float64) for x in (start, binary, emissions)]
        for part in ctx.parts:
            some, share = scores.rows(part.rows), weights[part.rows].double()
            along = _rows_of(ways, part.rows, some)
            if isinstance(part, Scaled):
                slopes[part.rows], pieces = part.turned(some, along, share)
                _gather(summed, part.rows, share, *pieces)
            else:
                for at, row in enumerate(part.rows):
                    one = tuple(
                        way[at] if way.dim() > x.dim() else way
                        for way, x in zip(along, part.leaves(at)[:3], strict=True)
                    )
                    slopes[row], turns = part.turned(at, one)
                    rules = turns[1] * share[at] if binary.dim() == 3 else turns[1][None]
                    _gather(summed, row[None], share[at : at + 1], turns[0][None], rules, turns[2][None])
        gradients = (x.to(like.dtype) for x, like in zip(summed, (start, binary, emissions), strict=True))
        return slopes.to(weights.dtype), *gradients, None, None


def _rows_of(ways: tuple[Tensor, ...], rows: Tensor, some: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """Directions for some sentences, cut as their scores are."""
    start = ways[0][rows] if ways[0].dim() == 2 else ways[0]
    binary = ways[1][rows] if ways[1].dim() == 4 else ways[1]
    return start, binary, ways[2][rows, : some.emissions.shape[1]]


def _gather(counts: list[Tensor], rows: Tensor, share: Tensor, start: Tensor, binary: Tensor, tags: Tensor) -> None:
    """Add weighted counts of some sentences to those of the batch; shared rules come weighted and summed."""
    start = start * share[:, None]
    if counts[0].dim() == 1:
        counts[0] += start.sum(0)
    else:
        counts[0][rows] += start
    if counts[1].dim() == 3:
        counts[1] += binary
    else:
        counts[1][rows] += binary * share[:, None, None, None]
    counts[2][rows, : tags.shape[1]] += tags * share[:, None, None]


def _check_dtype(dtype: Dtype) -> torch.dtype:
    dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in DTYPES:
        raise OptionError(f"The dense chart is computed in float32 or float64, not in {dtype}: choose one of the two.")
    return dtype


def _check(start: Tensor, binary: Tensor, emissions: Tensor, lengths: Tensor) -> Scores:
    """The scores, if they fit together; words beyond a sentence's length can't be."""
    scores = fitted(start, binary, emissions, lengths)
    scores = masked(scores)
    complain(scores, alarms(scores).tolist())  # waits for a card once
    return scores


def _fit(start: Tensor, binary: Tensor, emissions: Tensor, lengths: Tensor) -> Scores:
    """The same for `solve`, whose passes check numbers themselves where they are recorded."""
    scores = fitted(start, binary, emissions, lengths)
    return scores if is_recorded(scores) else _check(start, binary, emissions, scores.lengths)
