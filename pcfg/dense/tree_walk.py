"""Trees picked from a chart in log-space, from the root down: the best one, or draws from the posterior."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pcfg.dense.chart import Scores

MOST_ENTRIES = 1 << 23  # that a step may hold at once (64 MB in float64)


def root_scores(scores: Scores, chart: Float[Tensor, "B n widths N"]) -> Float[Tensor, "B S"]:
    """Log scores of each symbol over the whole sentence, the start's included."""
    row = torch.arange(len(chart), device=chart.device)
    single = (scores.lengths == 1)[:, None]
    whole = chart[row, 0, scores.lengths].masked_fill(single, -torch.inf)
    word = scores.emissions[:, 0].masked_fill(~single, -torch.inf)
    return torch.cat([whole, word], 1) + scores.start


Pick = Callable[[Float[Tensor, "nodes choices"]], Int64[Tensor, " nodes"]]


def best(choices: Float[Tensor, "nodes choices"]) -> Int64[Tensor, " nodes"]:
    """The choice with the highest score; the first of equals."""
    return choices.argmax(1)


def drawn(generator: torch.Generator | None) -> Pick:
    """Draws a choice with probability proportional to exp(score)."""

    def pick(choices: Float[Tensor, "nodes choices"]) -> Int64[Tensor, " nodes"]:
        sums = (choices - choices.amax(1, keepdim=True)).exp().double().cumsum(1)
        points = torch.rand(len(sums), 1, dtype=sums.dtype, device=sums.device, generator=generator)
        # right=True: the first sum above the point, so that a choice of weight 0 is never drawn.
        return torch.searchsorted(sums, points * sums[:, -1:], right=True)[:, 0].clamp(max=sums.shape[1] - 1)

    return pick


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes of trees still to be expanded: the tree, the place in its preorder, the sentence, first word and symbol."""

    tree: Int64[Tensor, " nodes"]
    place: Int64[Tensor, " nodes"]
    row: Int64[Tensor, " nodes"]
    first: Int64[Tensor, " nodes"]
    symbol: Int64[Tensor, " nodes"]

    def __getitem__(self, which: slice | Tensor) -> "Nodes":
        return Nodes(*(getattr(self, name)[which] for name in self.__annotations__))

    @classmethod
    def joined(cls, parts: list["Nodes"]) -> "Nodes":
        """All of them together."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__annotations__))


def pick_trees(
    scores: Scores, chart: Float[Tensor, "B n widths N"], count: int, pick: Pick
) -> Int64[Tensor, "B count nodes 4"]:
    """Trees picked from the root down, all nodes of a width together: rows of `(symbol, first word, end, split)` in preorder.

    A tree of a sentence of n words has 2 n - 1 rows, the rest is 0; a preterminal's split is -1. Sentences without a
    parse hold 0 throughout.
    """
    batch, n = scores.emissions.shape[:2]
    device = chart.device
    trees = torch.zeros(batch * count, 2 * n - 1, 4, dtype=torch.int64, device=device)
    roots = root_scores(scores, chart)
    rows = torch.arange(batch, device=device)[(roots > -torch.inf).any(1)].repeat_interleave(count)
    tree = rows * count + torch.arange(len(rows), device=device) % count
    zero = torch.zeros_like(rows)
    nodes = Nodes(tree, zero, rows, zero, pick(roots[rows]) if len(rows) else zero)
    pending: list[list[Nodes]] = [[] for _ in range(n + 1)]
    for width in range(1, n + 1):
        pending[width].append(nodes[scores.lengths[rows] == width])
    nonterminals, preterminals = scores.symbols
    for width in range(n, 1, -1):
        nodes = Nodes.joined(pending[width])
        step = max(
            1,
            MOST_ENTRIES
            // (
                nonterminals * nonterminals * (width - 3) + 2 * nonterminals * preterminals
                if width > 2
                else preterminals * preterminals
            ),
        )
        for at in range(0, len(nodes.tree), step):
            some = nodes[at : at + step]
            split, left, right = unfold(scores, width, pick(choices_of(scores, chart, some, width)))
            _write(trees, some, width, some.first + split)
            by_split = split.argsort(stable=True)
            some, split, left, right = some[by_split], split[by_split], left[by_split], right[by_split]
            lefts = Nodes(some.tree, some.place + 1, some.row, some.first, left)
            rights = Nodes(some.tree, some.place + 2 * split, some.row, some.first + split, right)
            begin = 0
            for k, number in enumerate(split.bincount(minlength=width).tolist()):
                if number:
                    pending[k].append(lefts[begin : begin + number])
                    pending[width - k].append(rights[begin : begin + number])
                begin += number
    words = Nodes.joined(pending[1])
    _write(trees, words, 1, torch.full_like(words.tree, -1))
    return trees.view(batch, count, 2 * n - 1, 4)


def _write(trees: Tensor, nodes: Nodes, width: int, split: Tensor) -> None:
    trees[nodes.tree, nodes.place] = torch.stack([nodes.symbol, nodes.first, nodes.first + width, split], 1)


def choices_of(scores: Scores, chart: Tensor, nodes: Nodes, width: int) -> Float[Tensor, "nodes choices"]:
    """Scores of every split and pair of children of nodes of one width: word left, word right, then the inner splits."""
    nonterminals, _ = scores.symbols
    rules = scores.binary[nodes.row, nodes.symbol] if scores.binary.dim() == 4 else scores.binary[nodes.symbol]
    first = scores.emissions[nodes.row, nodes.first, :, None]
    last = scores.emissions[nodes.row, nodes.first + width - 1, None]
    if width == 2:
        return (rules[:, nonterminals:, nonterminals:] + first + last).flatten(1)
    right = chart[nodes.row, nodes.first + 1, width - 1, None]
    left = chart[nodes.row, nodes.first, width - 1, :, None]
    parts = [
        (rules[:, nonterminals:, :nonterminals] + first + right).flatten(1),
        (rules[:, :nonterminals, nonterminals:] + left + last).flatten(1),
    ]
    if width > 3:
        k = torch.arange(2, width - 1, device=chart.device)
        lefts = chart[nodes.row[:, None], nodes.first[:, None], k]
        rights = chart[nodes.row[:, None], nodes.first[:, None] + k, width - k]
        parts.append((rules[:, None, :nonterminals, :nonterminals] + lefts[..., None] + rights[:, :, None]).flatten(1))
    return torch.cat(parts, 1)


def unfold(scores: Scores, width: int, choice: Int64[Tensor, " nodes"]) -> tuple[Tensor, Tensor, Tensor]:
    """Width of the left child, left and right symbol of choices numbered as `choices_of` does."""
    nonterminals, preterminals = scores.symbols
    if width == 2:
        return torch.ones_like(choice), nonterminals + choice // preterminals, nonterminals + choice % preterminals
    second, third = choice - preterminals * nonterminals, choice - 2 * preterminals * nonterminals
    bounds = [choice < preterminals * nonterminals, choice < 2 * preterminals * nonterminals]
    split = torch.where(bounds[0], 1, torch.where(bounds[1], width - 1, 2 + third // (nonterminals * nonterminals)))
    left = torch.where(
        bounds[0],
        nonterminals + choice // nonterminals,
        torch.where(bounds[1], second // preterminals, third // nonterminals % nonterminals),
    )
    right = torch.where(
        bounds[0],
        choice % nonterminals,
        torch.where(bounds[1], nonterminals + second % preterminals, third % nonterminals),
    )
    return split, left, right
