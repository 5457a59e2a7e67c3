"""The k best trees of a sentence by the dense engine: edges are made only for the vertices that the search comes to."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from pcfg.dense.chart import Scores
from pcfg.dense.tree_walk import Nodes, choices_of, root_scores, unfold
from pcfg.sparse.forest import Best, Edges


def best_trees(
    scores: Scores, chart: Float[Tensor, "one n widths N"], count: int
) -> list[tuple[float, Int64[np.ndarray, "nodes 3"]]]:
    """The `count` best trees of one sentence, or all if there are fewer: log scores, and rows `(symbol, first word, end)`.

    `chart`: of `viterbi.best_chart`. Vertices are numbered by first word, width and symbol; the last is the root.
    """
    length, inner, symbols = int(scores.lengths[0]), scores.symbols[0], sum(scores.symbols)
    binary = scores.binary if scores.binary.dim() == 3 else scores.binary[0]
    start = scores.start.reshape(-1, symbols)[0]
    roots = root_scores(scores, chart)[0]
    widths, root = length + 1, length * (length + 1) * symbols

    def number(first: Int64[Tensor, " E"], width: Int64[Tensor, " E"], symbol: Int64[Tensor, " E"]) -> np.ndarray:
        return ((first * widths + width) * symbols + symbol).cpu().numpy()

    def edges(v: int) -> Edges | float:
        if v == root:
            highest, symbol = _most(roots, count)
            whole = torch.zeros_like(symbol)
            left = number(whole, whole + length, symbol)
            return Edges(_numbers(start[symbol]), left, np.full(len(left), -1), _numbers(highest))
        place, head = divmod(v, symbols)
        first, width = divmod(place, widths)
        if width == 1:
            return float(scores.emissions[0, first, head - inner])
        node = Nodes(*(torch.tensor([x], device=chart.device) for x in (0, 0, 0, first, head)))
        highest, which = _most(choices_of(scores, chart, node, width)[0], count)
        split, one, two = unfold(scores, width, which)
        begin = torch.full_like(split, first)
        left, right = number(begin, split, one), number(begin + split, width - split, two)
        return Edges(_numbers(binary[head, one, two]), left, right, _numbers(highest))

    def row(v: int) -> tuple[int, int, int]:
        place, symbol = divmod(v, symbols)
        return symbol, place // widths, place // widths + place % widths

    return [(score, np.array([row(v) for v in nodes.tolist()])) for score, nodes in Best(root, edges, count).trees()]


def _most(values: Float[Tensor, " E"], count: int) -> tuple[Float[Tensor, " kept"], Int64[Tensor, " kept"]]:
    """The highest values that are possible at all, and where they are."""
    highest, where = values.topk(min(count, len(values)))
    some = highest > -torch.inf
    return highest[some], where[some]


def _numbers(values: Float[Tensor, " E"]) -> Float64[np.ndarray, " E"]:
    return values.double().cpu().numpy()
