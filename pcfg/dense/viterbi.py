"""Charts of best subtrees, and best trees found in steps that depend on sizes alone, so that they can be recorded.

`walk` goes down a chart without waiting for the card. Spans of one width in a tree don't overlap, so one of width w from word
i has the slot i // w among those of its width to itself: a tree's nodes of each width fit n // w slots, and which of them
are used is only a number on the card.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pcfg.dense.chart import Scores
from pcfg.dense.tree_walk import MOST_ENTRIES, Nodes, best, choices_of, root_scores, unfold


def best_chart(scores: Scores) -> tuple[Float[Tensor, " B"], Float[Tensor, "B n widths N"]]:
    """Scores of the best tree and of the best subtree of each span, by first word and width."""
    nonterminals, _ = scores.symbols
    batch, n = scores.emissions.shape[:2]
    binary = scores.binary if scores.binary.dim() == 4 else scores.binary[None]
    tags = scores.emissions
    left = torch.stack(
        [(binary[:, :, nonterminals:] + tags[:, i, None, :, None]).amax(2) for i in range(n)], 1
    )  # [B, n, N, S]
    right = torch.stack(
        [(binary[:, :, :nonterminals, nonterminals:] + tags[:, i, None, None]).amax(3) for i in range(n)], 1
    )
    chart = tags.new_full((batch, n, n + 1, nonterminals), -torch.inf)
    first, word, width_on, _ = chart.stride()
    at_once = 1 if chart.device.type == "cpu" else MOST_ENTRIES
    for width in range(2, n + 1):
        spans = n - width + 1
        if width == 2:
            values = (left[:, :-1, :, nonterminals:] + tags[:, 1:, None]).amax(3)
        else:
            values = (left[:, :spans, :, :nonterminals] + chart[:, 1 : spans + 1, width - 1, None]).amax(3)
            values = values.maximum((right[:, width - 1 :] + chart[:, :spans, width - 1, None]).amax(3))
        if width > 3:
            # A cache holds what is added for one split or symbol; a card would rather start few large steps.
            step = max(1, at_once // (batch * spans * nonterminals**2))
            pairs = chart.new_full((batch, spans, nonterminals, nonterminals), -torch.inf)
            for k in range(2, width - 1, step):
                some = (batch, spans, min(step, width - 1 - k), nonterminals)
                lefts = chart[:, :spans, k : k + some[2]]
                # The right child of split k begins k words later and is k words narrower.
                rights = chart.as_strided(some, (first, word, word - width_on, 1), k * word + (width - k) * width_on)
                both = lefts[..., None] + rights[..., None, :]
                torch.maximum(pairs, both[:, :, 0] if step == 1 else both.amax(2), out=pairs)
            inner = binary[:, None, :, :nonterminals, :nonterminals]
            for symbol in range(0, nonterminals, step):  # all symbols at once may hold N times the memory
                these = slice(symbol, symbol + step)
                scored = (inner[:, :, these] + pairs[:, :, None]).amax((3, 4))
                values[:, :, these] = values[:, :, these].maximum(scored)
        chart[:, :spans, width] = values
    roots = root_scores(scores, chart)
    return roots.amax(1), chart


def best_of(scores: Scores) -> tuple[Float[Tensor, " B"], Float[Tensor, "B n widths N"], Int64[Tensor, "B nodes 4"]]:
    """What `best_chart` and then `pick_trees` with `best` find."""
    values, chart = best_chart(scores)
    return values, chart, walk(scores, chart)


def walk(scores: Scores, chart: Float[Tensor, "B n widths N"]) -> Int64[Tensor, "B nodes 4"]:
    """The best tree of each sentence, as `pick_trees` gives it."""
    batch, n = scores.emissions.shape[:2]
    slots = Slots(batch, n, chart.device)
    roots = root_scores(scores, chart)
    zero = torch.zeros_like(scores.lengths)
    slots.put(slots.row, scores.lengths, zero, best(roots), zero, roots.amax(1) > -torch.inf)
    for width in range(n, 1, -1):
        nodes = slots.take(width)
        symbols = scores.symbols
        size = max(1, MOST_ENTRIES // (sum(symbols) ** 2 + symbols[0] ** 2 * width))
        step = [nodes[at : at + size] for at in range(0, len(nodes.row), size)]
        choice = torch.cat([best(choices_of(scores, chart, some, width)) for some in step])
        split, left, right = unfold(scores, width, choice)
        used = slots.write(nodes, width, split)
        slots.put(nodes.row, split, nodes.first, left, nodes.place + 1, used)
        slots.put(nodes.row, width - split, nodes.first + split, right, nodes.place + 2 * split, used)
    words = slots.take(1)
    slots.write(words, 1, torch.full_like(words.row, -1))
    return slots.trees[:, : 2 * n - 1]


class Slots:
    """Nodes of one tree a sentence, by width, and the trees that they are written to."""

    def __init__(self, batch: int, n: int, device: torch.device) -> None:
        self.n, self.row = n, torch.arange(batch, device=device)
        counts = n // torch.arange(1, n + 1, device=device)
        self.begin = counts.cumsum(0) - counts  # of each width from 1
        self.total = sum(n // width for width in range(1, n + 1))
        # First word (-1 for none), symbol and place in preorder; one slot more takes what is not there, as the last row does.
        self.table = torch.full((3, batch, self.total + 1), -1, device=device)
        self.trees = torch.zeros(batch, 2 * n, 4, dtype=torch.int64, device=device)

    def put(self, row: Tensor, width: Tensor, first: Tensor, symbol: Tensor, place: Tensor, used: Tensor) -> None:
        """Nodes to be expanded when their width comes, those that are `used`."""
        slot = torch.where(used, self.begin[width - 1] + first // width, self.total)
        self.table[:, row, slot] = torch.stack([first, symbol, place])

    def take(self, width: int) -> Nodes:
        """All slots of a width, used or not."""
        count = self.n // width
        begin = sum(self.n // narrower for narrower in range(1, width))
        first, symbol, place = self.table[:, :, begin : begin + count].flatten(1)
        row = self.row[:, None].expand(-1, count).flatten()
        used = first >= 0
        # What is not used points at word 0 and symbol 0, and is written to the row that is cut off.
        place = torch.where(used, place, 2 * self.n - 1)
        return Nodes(row, place, row, first.clamp(min=0), symbol.clamp(min=0))

    def write(self, nodes: Nodes, width: int, split: Tensor) -> Tensor:
        """Nodes into their trees; which of them are used."""
        end = nodes.first + split if width > 1 else split
        row = torch.stack([nodes.symbol, nodes.first, nodes.first + width, end], 1)
        self.trees[nodes.row, nodes.place] = row
        return nodes.place < 2 * self.n - 1
