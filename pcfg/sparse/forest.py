"""The packed forest of one sentence: every way of building every item that a whole tree can reach; k best and samples.

Vertices are a chart's items and, last, the root; edges of a vertex lie together. A root edge has one child and no rule.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float64, Int64

from pcfg.sparse.kernels import bit_shift, kernel, splits
from pcfg.sparse.wide import add


class Items(NamedTuple):
    """A chart's items, by rising start, end and symbol: value = inside * 2**exponents."""

    first: Any  # [n, n + 1]
    size: Any
    symbols: Any  # [V]
    starts: Any
    ends: Any
    inside: Any
    exponents: Any


class Forest(NamedTuple):
    """Edges of each vertex: children, rule (its place in `Tables` by parents), and its share of the vertex's value."""

    first: Any  # [V + 1]
    size: Any
    left: Any  # [E]
    right: Any
    rule: Any
    share: Any


@kernel
@no_type_check
def find(items, i, j, symbol):
    """The item of a symbol over (i, j), or -1."""
    low = items.first[i, j]
    end = low + items.size[i, j]
    high = end
    while low < high:
        middle = (low + high) >> 1
        if items.symbols[middle] < symbol:
            low = middle + 1
        else:
            high = middle
    return low if low < end and items.symbols[low] == symbol else -1


@kernel
@no_type_check
def grown(array, used):
    """A longer copy."""
    longer = np.empty(2 * array.size, array.dtype)
    longer[:used] = array[:used]
    return longer


@kernel
@no_type_check
def root_edges(items, start):
    """Items that can be the root, their shares of Z, and Z's mantissa and exponent."""
    n = items.first.shape[0]
    first, size = (items.first[0, n], items.size[0, n]) if n else (0, 0)
    edges, shares = np.empty(size, np.int64), np.empty(size)
    mantissas, exponents, count = np.zeros(1), np.zeros(1, np.int64), 0
    for v in range(first, first + size):
        if start[items.symbols[v]] > 0:
            mantissa, exponent = math.frexp(start[items.symbols[v]])
            add(mantissas, exponents, 0, mantissa * items.inside[v], exponent + items.exponents[v])
            edges[count] = v
            count += 1
    for k in range(count):
        mantissa, exponent = math.frexp(start[items.symbols[edges[k]]])
        shift = exponent + items.exponents[edges[k]] - exponents[0]
        shares[k] = math.ldexp(mantissa * items.inside[edges[k]] / mantissas[0], max(shift, -4000))
    return edges[:count], shares[:count], mantissas[0], exponents[0]


@kernel
@no_type_check
def masks(items, symbols):
    """Bits of the ends of the items of each start and symbol, and of the starts of those of each end and symbol."""
    n = items.first.shape[0]
    shift, one = bit_shift(n), np.uint64(1)
    left, right = np.zeros((n, symbols), np.uint64), np.zeros((n + 1, symbols), np.uint64)
    for v in range(items.symbols.size):
        left[items.starts[v], items.symbols[v]] |= one << np.uint64(items.ends[v] >> shift)
        right[items.ends[v], items.symbols[v]] |= one << np.uint64(items.starts[v] >> shift)
    return left, right


@kernel
@no_type_check
def grow_forest(tables, items, start, most):
    """All edges that a tree can use, from the root down, with marginals on the way (Z must be positive).

    A share is at most 1, so what underflows here are probabilities below 1e-300 and nothing else.

    Returns:
        The forest's arrays, each item's marginal, and the expected count of each rule.

    Raises MemoryError when they are more than `most`.
    """
    n, vertices = items.first.shape[0], items.symbols.size
    first, size = np.zeros(vertices + 1, np.int64), np.zeros(vertices + 1, np.int64)
    reached, marginals, counts = np.zeros(vertices, np.bool_), np.zeros(vertices), np.zeros(tables.rules)
    roots, shares, _, _ = root_edges(items, start)
    used, capacity = roots.size, 4096 + roots.size
    left, right, rules = np.empty(capacity, np.int64), np.full(capacity, -1), np.full(capacity, -1)
    share = np.empty(capacity)
    left[:used], share[:used], size[vertices] = roots, shares, used
    reached[roots] = True
    marginals[roots] = shares
    shift, (left_mask, right_mask) = bit_shift(n), masks(items, tables.left_start.size - 1)
    for width in range(n, 1, -1):
        for i in range(n - width + 1):
            j = i + width
            for v in range(items.first[i, j], items.first[i, j] + items.size[i, j]):
                if not reached[v]:
                    continue
                first[v] = used
                low, high = tables.parent_start[items.symbols[v]], tables.parent_start[items.symbols[v] + 1]
                for rule in range(low, high):
                    both = left_mask[i, tables.left[rule]] & right_mask[j, tables.right[rule]]
                    if both == 0:
                        continue
                    split, end = splits(both, shift, i, j)
                    while used + end - split > left.size:
                        if 2 * left.size > most:
                            raise MemoryError
                        left, right = grown(left, used), grown(right, used)
                        rules, share = grown(rules, used), grown(share, used)
                    for m in range(split, end):
                        if both >> np.uint64(m >> shift) & np.uint64(1) == 0:
                            continue
                        child = find(items, i, m, tables.left[rule])
                        other = find(items, m, j, tables.right[rule]) if child >= 0 else -1
                        if other < 0:
                            continue
                        part = share_of(tables, items, v, rule, child, other)
                        left[used], right[used], rules[used], share[used] = child, other, rule, part
                        used += 1
                        reached[child] = reached[other] = True
                        marginals[child] += marginals[v] * part
                        marginals[other] += marginals[v] * part
                        counts[tables.number[rule]] += marginals[v] * part
                size[v] = used - first[v]
    # Not a `Forest`: see `_cells` in `pcfg.sparse.engine`.
    return (first, size, left[:used], right[:used], rules[:used], share[:used]), marginals, counts


@kernel
@no_type_check
def share_of(tables, items, v, rule, left, right):
    """An edge's share of its vertex's inside value."""
    mantissa, exponent = math.frexp(tables.unscaled[rule])
    mantissa *= items.inside[left] * items.inside[right]
    exponent += items.exponents[left] + items.exponents[right] - items.exponents[v]
    return math.ldexp(mantissa / items.inside[v], max(exponent, -4000))


@kernel
@no_type_check
def draw(forest, uniforms):
    """Trees drawn with the given uniform numbers [count, n]: items in preorder [count, 2n - 1]."""
    count, n = uniforms.shape
    drawn, stack = np.empty((count, 2 * n - 1), np.int64), np.empty(n + 1, np.int64)
    for tree in range(count):
        depth, used, node = 1, 0, 0
        stack[0] = forest.first.size - 1
        while depth:
            depth -= 1
            v = stack[depth]
            if v < forest.first.size - 1:
                drawn[tree, node] = v
                node += 1
            if forest.size[v] == 0:
                continue
            rest, chosen = uniforms[tree, used], forest.first[v]
            used += 1
            for edge in range(forest.first[v], forest.first[v] + forest.size[v]):
                if forest.share[edge] > 0:
                    chosen = edge  # the last one possible stands if rounding leaves a rest
                    rest -= forest.share[edge]
                    if rest < 0:
                        break
            if forest.right[chosen] >= 0:
                stack[depth] = forest.right[chosen]
                depth += 1
            stack[depth] = forest.left[chosen]
            depth += 1
    return drawn


@kernel
@no_type_check
def best_logs(forest, items, log_weights):
    """Log score of each vertex's best tree, -inf where the root doesn't reach."""
    n, vertices = items.first.shape[0], items.symbols.size
    best = np.full(vertices + 1, -np.inf)
    for width in range(1, n + 1):
        for i in range(n - width + 1):
            for v in range(items.first[i, i + width], items.first[i, i + width] + items.size[i, i + width]):
                if width == 1:
                    best[v] = math.log(items.inside[v]) + items.exponents[v] * math.log(2.0)
                for edge in range(forest.first[v], forest.first[v] + forest.size[v]):
                    score = log_weights[edge] + best[forest.left[edge]] + best[forest.right[edge]]
                    best[v] = max(best[v], score)
    for edge in range(forest.first[vertices], forest.first[vertices] + forest.size[vertices]):
        best[vertices] = max(best[vertices], log_weights[edge] + best[forest.left[edge]])
    return best


class Edges(NamedTuple):
    """The ways of building a vertex: log weight of each, its children (-1 for none) and the score of its best tree."""

    weights: Float64[np.ndarray, " E"]
    left: Int64[np.ndarray, " E"]
    right: Int64[np.ndarray, " E"]
    scores: Float64[np.ndarray, " E"]


class _Vertex:
    """One vertex's best trees so far, best first, with a heap of candidates and the successors that aren't scored yet."""

    __slots__ = ("candidates", "edges", "found", "pending", "seen")

    def __init__(self, edges: Edges, leaf: float | None) -> None:
        self.edges = edges
        self.candidates = [(-float(score), k, 0, 0) for k, score in enumerate(edges.scores)]
        heapq.heapify(self.candidates)
        self.seen = {candidate[1:] for candidate in self.candidates}
        self.found: list[tuple[float, int, int, int]] = [] if leaf is None else [(-leaf, -1, 0, 0)]
        self.pending: list[tuple[int, int, int]] = []

    def children(self, edge: int) -> tuple[int, int]:
        """Of one of its edges."""
        return int(self.edges.left[edge]), int(self.edges.right[edge])


class Best:
    """Trees by falling score, found lazily (Huang & Chiang 2005, algorithm 3), without recursion.

    Args:
        root: a vertex that stands for all trees.
        edges: a vertex's edges, at least the `count` with the best scores; a leaf has none, and its own score instead.
        count: how many trees will be asked for at most: no tree among them uses an edge that so many others beat.
    """

    def __init__(self, root: int, edges: Callable[[int], Edges | float], count: int) -> None:
        self.root, self.edges, self.count = root, edges, count
        self.vertices: dict[int, _Vertex] = {}

    def _vertex(self, v: int) -> _Vertex:
        if v not in self.vertices:
            edges = self.edges(v)
            if not isinstance(edges, Edges):
                none = np.zeros(0, np.int64)
                self.vertices[v] = _Vertex(Edges(np.zeros(0), none, none, np.zeros(0)), edges)
            else:
                if len(edges.scores) > self.count:
                    kept = np.argpartition(-edges.scores, self.count - 1)[: self.count]
                    edges = Edges(*(column[kept] for column in edges))
                self.vertices[v] = _Vertex(edges, None)
        return self.vertices[v]

    def _score(self, vertex: _Vertex, edge: int, *ranks: int) -> float | None:
        """Negative score of an edge with children of such ranks among their trees; None if there are no such trees."""
        score = -float(vertex.edges.weights[edge])
        for child, rank in zip(vertex.children(edge), ranks, strict=True):
            if child >= 0:
                found = self._vertex(child).found
                if len(found) <= rank:
                    return None
                score += found[rank][0]
        return score

    def _missing(self, vertex: _Vertex, edge: int, *ranks: int) -> tuple[int, int] | None:
        """A child whose trees aren't found as far as needed, though it may have them."""
        for child, rank in zip(vertex.children(edge), ranks, strict=True):
            if child >= 0:
                below = self._vertex(child)
                if len(below.found) <= rank and (below.candidates or below.pending):
                    return child, rank
        return None

    def find(self, v: int, rank: int) -> bool:
        """Find a vertex's trees up to the rank-th (from 0); False if it has fewer."""
        stack = [(v, rank)]
        while stack:
            v_now, rank_now = stack[-1]
            vertex = self._vertex(v_now)
            if len(vertex.found) > rank_now or not (vertex.candidates or vertex.pending):
                stack.pop()
            elif vertex.pending:
                missing = self._missing(vertex, *vertex.pending[-1])
                if missing:
                    stack.append(missing)
                    continue
                successor = vertex.pending.pop()
                score = self._score(vertex, *successor)
                if score is not None:
                    heapq.heappush(vertex.candidates, (score, *successor))
            else:
                self._take(vertex)
        return len(self._vertex(v).found) > rank

    def _take(self, vertex: _Vertex) -> None:
        taken = heapq.heappop(vertex.candidates)
        _, edge, a, b = taken
        vertex.found.append(taken)
        successors = [(edge, a + 1, b)] + ([(edge, a, b + 1)] if vertex.children(edge)[1] >= 0 else [])
        vertex.pending += [s for s in successors if s not in vertex.seen]
        vertex.seen.update(successors)

    def trees(self) -> Iterator[tuple[float, Int64[np.ndarray, " nodes"]]]:
        """Log score and vertices in preorder, the root left out, of the best trees: `count` of them, or all if fewer."""
        for rank in range(self.count):
            if not self.find(self.root, rank):
                return
            yield -self._vertex(self.root).found[rank][0], self._nodes(rank)

    def _nodes(self, rank: int) -> Int64[np.ndarray, " nodes"]:
        nodes, stack = [], [(self.root, rank)]
        while stack:
            v, k = stack.pop()
            self.find(v, k)  # a best child is known by its score only, until it's wanted
            vertex = self._vertex(v)
            _, edge, a, b = vertex.found[k]
            if v != self.root:
                nodes.append(v)
            if edge >= 0:
                left, right = vertex.children(edge)
                if right >= 0:
                    stack.append((right, b))
                stack.append((left, a))
        return np.array(nodes, np.int64)


def best_of_forest(
    forest: Forest, items: Items, log_weights: Float64[np.ndarray, " E"], count: int
) -> Iterator[tuple[float, Int64[np.ndarray, " nodes"]]]:
    """The best trees of a forest: log scores, and items in preorder."""
    best = best_logs(forest, items, log_weights)

    def edges(v: int) -> Edges | float:
        here = slice(int(forest.first[v]), int(forest.first[v] + forest.size[v]))
        left, right, weights = forest.left[here], forest.right[here], log_weights[here]
        if not len(left):
            return float(best[v])
        return Edges(weights, left, right, weights + best[left] + np.where(right >= 0, best[right], 0.0))

    return Best(len(items.symbols), edges, count).trees()
