"""Exact inference with treebank grammars: thousands of symbols, tens of thousands of rules, one sentence at a time.

Best tree, Inside-Outside and all marginals, k best trees, posterior samples. Everything is float64, exact up to rounding;
values are scaled by powers of two, and a sentence whose values span more than float64 does is done again with an exponent
for each value. Kernels release the interpreter, so `parallel` runs sentences on threads.
"""

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64, Integer

from pcfg.errors import GrammarError, OptionError
from pcfg.sparse.forest import Forest, Items, best_of_forest, draw, grow_forest, root_edges
from pcfg.sparse.kernels import (
    DONE,
    FULL,
    Cells,
    Space,
    Tables,
    best_tree,
    inside_pass,
    outside_pass,
    root_sum,
)
from pcfg.sparse.wide import inside_wide
from surgery.compiling import uninterrupted
from surgery.reporting.plural import number_of
from surgery.reporting.results import Shown

Sentence = TypeVar("Sentence")
Result = TypeVar("Result")


MOST_EDGES = 1 << 27  # of a forest, at 32 bytes


class TreeNodes(NamedTuple):
    """A binary tree over n words in preorder: the symbol and the words (start..end-1) of each of its 2n - 1 nodes."""

    symbols: Int32[np.ndarray, " nodes"]
    starts: Int32[np.ndarray, " nodes"]
    ends: Int32[np.ndarray, " nodes"]

    def __repr__(self) -> str:
        return f"<TreeNodes: {number_of(len(self.symbols), 'node')} over {number_of((len(self.symbols) + 1) // 2, 'word')}>"


@dataclass(frozen=True, eq=False)
class SparseRules:
    """Binary rules arranged for the sparse chart, built once a grammar.

    Attributes:
        nonterminals, preterminals: how many symbols of each kind there are, numbered jointly in this order.
        tables: the rules of positive probability, sorted for the kernels.
        spaces: a thread's memory for its sentences, kept between them.
    """

    nonterminals: int
    preterminals: int
    tables: Tables = field(repr=False)
    spaces: threading.local = field(default_factory=threading.local, repr=False)

    @classmethod
    def build(
        cls,
        nonterminals: int,
        preterminals: int,
        parents: Integer[np.ndarray, " R"],
        left: Integer[np.ndarray, " R"],
        right: Integer[np.ndarray, " R"],
        probs: Float[np.ndarray, " R"],
    ) -> "SparseRules":
        """Sort the rules; raises `GrammarError` if one names a symbol that isn't there, or its probability is no score."""
        symbols = nonterminals + preterminals
        for name, numbers, bound in (
            ("parent", parents, nonterminals),
            ("left child", left, symbols),
            ("right child", right, symbols),
        ):
            wrong = np.flatnonzero((numbers < 0) | (numbers >= bound))
            if wrong.size:
                raise GrammarError(
                    f"rule {wrong[0]} has {name} {numbers[wrong[0]]}: give a number from 0 to {bound - 1}"
                )
        wrong = np.flatnonzero(~(np.isfinite(probs) & (probs >= 0)))
        if wrong.size:
            raise GrammarError(f"rule {wrong[0]} has probability {probs[wrong[0]]}: give a finite one of 0 or more")
        positive = np.flatnonzero(probs)
        pairs = positive[np.lexsort((parents[positive], right[positive], left[positive]))]
        heads = positive[np.lexsort((right[positive], left[positive], parents[positive]))]
        return cls(
            nonterminals, preterminals, _tables(symbols, parents, left, right, probs.astype(float), pairs, heads)
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"spaces": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"spaces": threading.local()})

    def space(self, n: int, more: bool = False) -> Space:
        """This thread's memory for a sentence of n words; with `more`, twice the rows and items."""
        kept, symbols = self.spaces, self.nonterminals + self.preterminals
        least = 2 * symbols + 1024  # what one more span may need, with some to spare
        rows, items = getattr(kept, "rows", 1 << 14), getattr(kept, "items", 1 << 18)
        rows, items = (2 * rows, 2 * items) if more else (max(rows, least), max(items, least))
        if more or n > getattr(kept, "length", 0):
            kept.rows, kept.items, kept.length = rows, items, max(n, getattr(kept, "length", 0))
            width, starts = kept.length + 1, kept.length * symbols
            kept.words = [np.empty(starts + symbols, kind) for kind in (np.uint64, np.uint64, np.int32, np.int32)]
            kept.values = [np.empty(rows * width) for _ in range(4)]
            kept.item_arrays = np.empty(items, np.int32), np.empty(items)
        size = (n + 1) * symbols
        words = [array[:size].reshape(n + 1, symbols) for array in kept.words]
        values = [array[: kept.rows * (n + 1)].reshape(kept.rows, n + 1) for array in kept.values]
        return Space(*words, *values, *kept.item_arrays)


def _tables(
    symbols: int,
    parents: Integer[np.ndarray, " R"],
    left: Integer[np.ndarray, " R"],
    right: Integer[np.ndarray, " R"],
    probs: Float64[np.ndarray, " R"],
    pairs: Int64[np.ndarray, " positive"],
    heads: Int64[np.ndarray, " positive"],
) -> Tables:
    """The two arrangements of the positive rules, given their order by children and by parents."""
    exponents = np.frexp(probs[pairs])[1]
    exponent = int(exponents.max(initial=-10_000)) if pairs.size else 0
    new = np.ones(pairs.size, bool)
    new[1:] = (np.diff(left[pairs]) != 0) | (np.diff(right[pairs]) != 0)
    index = np.int32
    return Tables(
        left_start=np.searchsorted(left[pairs][new], np.arange(symbols + 1)).astype(index),
        pair_right=right[pairs][new].astype(index),
        pair_start=np.append(np.flatnonzero(new), pairs.size).astype(index),
        rule_parent=parents[pairs].astype(index),
        rule_prob=np.ldexp(probs[pairs], -exponent),
        rule_unscaled=probs[pairs],
        rule_number=pairs.astype(index),
        parent_start=np.searchsorted(parents[heads], np.arange(symbols + 1)).astype(index),
        left=left[heads].astype(index),
        right=right[heads].astype(index),
        prob=np.ldexp(probs[heads], -exponent),
        unscaled=probs[heads],
        number=heads.astype(index),
        exponent=exponent,
        least=int(exponents.min(initial=exponent)) - exponent,
        rules=parents.size,
    )


@dataclass(frozen=True, eq=False)
class SparseChart(Shown):
    """Inside values and marginals of one sentence, for the items (symbol, i, j) whose inside value is positive.

    Attributes:
        rules: the grammar.
        start: probability of each symbol to be the root.
        log_z: log probability of the sentence; -inf if there is no parse, and then all marginals are 0.
        items: symbol, start, end, and inside value = items.inside * 2.0**items.exponents of each item.
        marginals: posterior probability of each item; what is below 1e-300 may be 0.
        counts: expected number of times that each rule is used, in the order given to `SparseRules.build`.
    """

    rules: SparseRules
    start: Float64[np.ndarray, " S"]
    log_z: float
    items: Items
    marginals: Float64[np.ndarray, " items"]
    counts: Float64[np.ndarray, " R"]

    @property
    def n(self) -> int:
        """Number of words."""
        return len(self.items.first)

    @property
    def summary(self) -> list[str]:
        """Log Z, and how many items the chart holds."""
        return [f"{number_of(self.n, 'word')}, log Z {self.log_z:.6g}, {number_of(len(self.items.symbols), 'item')}."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row an item, the likeliest first: the symbol's number, the words start..end-1, log inside value and marginal."""
        order = np.argsort(-self.marginals, kind="stable")
        columns = (self.items.symbols, self.items.starts, self.items.ends, self.log_inside, self.marginals)
        rows = [list(row) for row in zip(*(column[order].tolist() for column in columns), strict=True)]
        return ["symbol", "start", "end", "log inside", "marginal"], rows

    @property
    def log_inside(self) -> Float64[np.ndarray, " items"]:
        """Log inside value of each item."""
        return np.log(self.items.inside) + self.items.exponents * math.log(2)

    @property
    def log_outside(self) -> Float64[np.ndarray, " items"]:
        """Log outside value of each item; -inf where no whole tree has it."""
        with np.errstate(divide="ignore"):
            return np.log(self.marginals) - self.log_inside + (self.log_z if np.isfinite(self.log_z) else 0.0)

    def span_marginals(self) -> Float64[np.ndarray, "n n+1"]:
        """Probability that words i..j-1 are a constituent; a single word is one in every tree."""
        spans = np.zeros((self.n, self.n + 1))
        np.add.at(spans, (self.items.starts, self.items.ends), self.marginals)
        return spans

    def label_marginals(self) -> Float64[np.ndarray, "n n+1 N"]:
        """Probability that words i..j-1 are a constituent of each nonterminal; `items` and `marginals` are its sparse form."""
        labels = np.zeros((self.n, self.n + 1, self.rules.nonterminals))
        inner = np.flatnonzero((self.items.symbols < self.rules.nonterminals) & (self.marginals > 0))
        place = self.items.starts[inner], self.items.ends[inner], self.items.symbols[inner]
        labels[place] = self.marginals[inner]
        return labels

    def rule_counts(self) -> Float64[np.ndarray, " R"]:
        """Expected number of times that each rule is used."""
        return self.counts

    def tag_posteriors(self) -> Float64[np.ndarray, "n T"]:
        """Probability of each preterminal over each word."""
        tags = np.zeros((self.n, self.rules.preterminals))
        leaves = np.flatnonzero(self.items.symbols >= self.rules.nonterminals)
        tags[self.items.starts[leaves], self.items.symbols[leaves] - self.rules.nonterminals] = self.marginals[leaves]
        return tags

    def start_counts(self) -> Float64[np.ndarray, " S"]:
        """Probability of each symbol to be the root."""
        counts = np.zeros(self.rules.nonterminals + self.rules.preterminals)
        if self.n:
            roots = slice(self.items.first[0, -1], self.items.first[0, -1] + self.items.size[0, -1])
            counts[self.items.symbols[roots]] = self.marginals[roots]
        return counts

    def forest(self) -> Forest:
        """Every way of building every item that a whole tree has; only where there is a parse. Not kept: it is large."""
        return _grow(self.rules, self.items, self.start)[0]


def viterbi(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"]
) -> tuple[float, TreeNodes | None]:
    """The best tree and its log probability; -inf and None if there is no parse.

    Args:
        start: probability (or score) of each symbol to be the root.
        emissions: probability (or score) of each word given each preterminal.
    """
    start, emissions = _checked(rules, start, emissions)
    passed = _bottom_up(rules, start, emissions, maximum=True)
    if passed is None:
        chart = _wide_chart(rules, start, emissions, marginals=False)
        best = _k_best(chart, 1)
        return best[0] if best else (-math.inf, None)
    space, cells, total, _, _ = passed
    if total == 0:
        return -math.inf, None
    nodes = best_tree(rules.tables, space, cells, start)
    return math.log(total) + int(cells.exponents[0, -1]) * math.log(2), TreeNodes(*np.ascontiguousarray(nodes.T))


def inside_outside(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"]
) -> SparseChart:
    """The chart of a sentence, with all marginals; `start` and `emissions` as for `viterbi`."""
    return _chart(rules, start, emissions, marginals=True)


def k_best(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"], k: int
) -> list[tuple[float, TreeNodes]]:
    """The k best trees, or all if there are fewer, with their log probabilities, best first; exact."""
    if k < 1:
        raise OptionError(f"{k} best trees were asked for: ask for 1 or more")
    return _k_best(_chart(rules, start, emissions, marginals=False), k)


def sample_trees(chart: SparseChart, count: int, seed: int) -> list[TreeNodes]:
    """Independent draws from the posterior over trees; none if there is no parse."""
    if chart.log_z == -math.inf:
        return []
    drawn = draw(chart.forest(), np.random.default_rng(seed).random((count, chart.n)))
    items = chart.items
    return [TreeNodes(*tree) for tree in zip(items.symbols[drawn], items.starts[drawn], items.ends[drawn], strict=True)]


def parallel(function: Callable[[Sentence], Result], sentences: Iterable[Sentence], workers: int) -> list[Result]:
    """`function` of each sentence, in order, on that many threads: the kernels let go of the interpreter."""
    if workers < 2:
        results = []
        for sentence in sentences:
            with uninterrupted():
                results.append(function(sentence))
        return results
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, sentences))


def _checked(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"]
) -> tuple[Float64[np.ndarray, " S"], Float64[np.ndarray, "n T"]]:
    """Copies, contiguous and writable: a kernel would be compiled anew for arrays that aren't."""
    symbols = rules.nonterminals + rules.preterminals
    if start.shape != (symbols,) or emissions.shape[1:] != (rules.preterminals,):
        raise GrammarError(
            f"start has shape {start.shape} and emissions {emissions.shape}: give [{symbols}] and [n, {rules.preterminals}]"
        )
    for name, scores in (("start", start), ("emissions", emissions)):
        if not (scores.min(initial=0) >= 0 and scores.max(initial=0) < math.inf):  # a NaN fails both
            raise GrammarError(f"{name} has a score that is negative or not finite: give probabilities or scores >= 0")
    return start.copy(order="C"), emissions.copy(order="C")


def _bottom_up(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"], *, maximum: bool
) -> tuple[Space, Cells, float, Int32[np.ndarray, "n left"], Int64[np.ndarray, "3"]] | None:
    """Space, cells, the root's value and the rows used; None if something might underflow."""
    n = len(emissions)
    if n == 0:
        return rules.space(1), _cells(0), 0.0, np.zeros((0, 1), np.int32), np.zeros(3, np.int64)
    space, cells = rules.space(n), _cells(n)
    status, active, used = inside_pass(rules.tables, space, cells, emissions, maximum)
    while status == FULL:
        space, cells = rules.space(n, more=True), _cells(n)
        status, active, used = inside_pass(rules.tables, space, cells, emissions, maximum)
    if status != DONE:
        return None
    total, low = root_sum(space, cells, start, maximum)
    return None if low else (space, cells, total, active, used)


def _cells(n: int) -> Cells:
    # Not made in the kernel: what it returns as a named tuple is put together by Python code, where an interrupt ends in
    # a null pointer that numba doesn't look for.
    return Cells(*(np.zeros((n, n + 1), np.int64) for _ in Cells._fields))


def _chart(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"], *, marginals: bool
) -> SparseChart:
    start, emissions = _checked(rules, start, emissions)
    passed = _bottom_up(rules, start, emissions, maximum=False)
    if passed is None:
        return _wide_chart(rules, start, emissions, marginals=marginals)
    space, cells, total, active, used = passed
    outside, counts = np.zeros(used[2]), np.zeros(rules.tables.rules)
    if marginals and total > 0:
        outside, counts = outside_pass(rules.tables, space, cells, active, start, total, used)
    exponents = np.repeat(cells.exponents.ravel(), cells.size.ravel())
    items, order = _ordered(cells.first, cells.size, space.item_symbol, space.item_inside)
    items = items._replace(exponents=exponents)
    log_z = math.log(total) + int(cells.exponents[0, -1]) * math.log(2) if total > 0 else -math.inf
    return SparseChart(rules, start, log_z, items, outside[order], counts)


def _wide_chart(
    rules: SparseRules, start: Float64[np.ndarray, " S"], emissions: Float64[np.ndarray, "n T"], *, marginals: bool
) -> SparseChart:
    """As `_chart`, with an exponent for each value."""
    first, size, symbols, inside, exponents = inside_wide(rules.tables, emissions)
    items, order = _ordered(first, size, symbols, inside)
    items = items._replace(exponents=exponents[order].astype(np.int64))
    outside, counts = np.zeros(len(symbols)), np.zeros(rules.tables.rules)
    _, _, total, exponent = root_edges(items, start)
    log_z = math.log(total) + int(exponent) * math.log(2) if total > 0 else -math.inf
    if marginals and total > 0:
        _, outside, counts = _grow(rules, items, start)
    return SparseChart(rules, start, log_z, items, outside, counts)


def _grow(
    rules: SparseRules, items: Items, start: Float64[np.ndarray, " S"]
) -> tuple[Forest, Float64[np.ndarray, " items"], Float64[np.ndarray, " R"]]:
    try:
        with uninterrupted():
            forest, marginals, counts = grow_forest(rules.tables, items, start, MOST_EDGES)
    except MemoryError:
        raise OptionError(
            f"a sentence of {len(items.first)} words has more than {MOST_EDGES // 2:,} ways of building what trees hold: "
            "give shorter sentences, or take the dense engine"
        ) from None
    return Forest(*forest), marginals, counts


def _ordered(
    first: Int64[np.ndarray, "n n+1"],
    size: Int64[np.ndarray, "n n+1"],
    symbols: Int32[np.ndarray, " capacity"],
    inside: Float64[np.ndarray, " capacity"],
) -> tuple[Items, Int64[np.ndarray, " items"]]:
    """Items (with no exponents yet) by rising start, end and symbol, and where each of them was."""
    sizes = size.ravel()
    firsts = np.cumsum(sizes) - sizes
    spans = np.repeat(np.arange(sizes.size), sizes)
    order = np.arange(spans.size) + (first.ravel() - firsts)[spans]
    starts, ends = np.divmod(spans.astype(np.int32), np.int32(size.shape[1]))
    return Items(firsts.reshape(size.shape), size, symbols[order], starts, ends, inside[order], order), order


def _k_best(chart: SparseChart, k: int) -> list[tuple[float, TreeNodes]]:
    if chart.log_z == -math.inf:
        return []
    forest, items = chart.forest(), chart.items
    with np.errstate(divide="ignore"):
        log_rules, log_start = np.log(chart.rules.tables.unscaled), np.log(chart.start)
    roots = forest.rule < 0
    weights = np.empty(len(forest.rule))
    weights[~roots] = log_rules[forest.rule[~roots]]
    weights[roots] = log_start[items.symbols[forest.left[roots]]]
    return [
        (score, TreeNodes(items.symbols[nodes], items.starts[nodes], items.ends[nodes]))
        for score, nodes in best_of_forest(forest, items, weights, k)
    ]
