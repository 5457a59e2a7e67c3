"""The unary chains that a binary grammar's rules stand for: the best, the best few, drawn ones; trees with them.

A node of a binary tree stands for its symbol, at the top, and every chain of unary rules from there to the rule over the
node's children or word. The probability of the node's rule is the sum over these chains (`pcfg.grammars.binarization`).
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from random import Random
from typing import Any

import numpy as np

from pcfg.errors import TreebankError
from pcfg.grammars.arrays import GrammarArrays
from pcfg.grammars.binarization import Origin
from pcfg.treebanks.trees import Tree

Chain = tuple[int, ...]  # symbols of `Shape`, the top first


class Chains:
    """The chains of a grammar's rules. A pair, everywhere here, is a symbol and a body, as `Shape` numbers them."""

    def __init__(self, grammar: GrammarArrays, origin: Origin) -> None:
        self.grammar, self.origin, self.shape = grammar, origin, origin.shape
        self._best: dict[int, Chain] = {}
        self._best_few: dict[int, _Few] = {}
        self._known_steps: dict[int, list[tuple[float, int]]] = {}

    # -- chains --------------------------------------------------------------------------------------------------------

    def best(self, pair: int) -> Chain:
        """The likeliest chain of a pair."""
        if pair not in self._best:
            chain, now, values = [int(self.shape.symbol[pair])], pair, self.origin.bests
            while values[now] > self.origin.ends[now]:
                steps = [step for step in self._steps(now) if self.shape.symbol[step[1]] not in chain]
                now = max(steps, key=lambda step: step[0] * values[step[1]])[1]
                chain.append(int(self.shape.symbol[now]))
            self._best[pair] = tuple(chain)
        return self._best[pair]

    def only(self, pair: int) -> Chain | None:
        """The one chain of a pair; None where it has several."""
        chain = [int(self.shape.symbol[pair])]
        while True:
            steps = [step[1] for step in self._steps(pair) if step[0] * self.origin.sums[step[1]] > 0]
            if bool(self.origin.ends[pair] > 0) + len(steps) != 1:
                return None
            if not steps:
                return tuple(chain)
            pair = steps[0]
            chain.append(int(self.shape.symbol[pair]))

    def few(self, pair: int) -> "_Few":
        """A pair's chains with their probabilities, best first, each worked out when asked for: there may be infinitely many."""
        if pair not in self._best_few:
            self._best_few[pair] = _Few(self._all(pair))
        return self._best_few[pair]

    def _all(self, pair: int) -> Iterator[tuple[float, Chain]]:
        values, ends, number = self.origin.bests, self.origin.ends, count()
        # What a beginning can still come to is known exactly, so the first that is whole is the best that is left.
        heap: list[tuple[float, int, float, int, Chain, bool]] = [
            (-float(values[pair]), next(number), 1.0, pair, (int(self.shape.symbol[pair]),), False)
        ]
        while heap:
            score, _, before, now, chain, whole = heapq.heappop(heap)
            if whole:
                yield -score, chain
                continue
            if ends[now] > 0:
                heapq.heappush(heap, (-before * float(ends[now]), next(number), before, now, chain, True))
            for p, below in self._steps(now):
                if p * values[below] > 0:
                    longer = (*chain, int(self.shape.symbol[below]))
                    heapq.heappush(
                        heap, (-before * p * float(values[below]), next(number), before * p, below, longer, False)
                    )

    def draw(self, pair: int, random: np.random.Generator | Random) -> Chain:
        """A chain of a pair, drawn by its probability among them."""
        chain, sums = [int(self.shape.symbol[pair])], self.origin.sums
        while steps := self._steps(pair):
            rest = random.random() * (self.origin.ends[pair] + sum(p * sums[below] for p, below in steps))
            rest -= self.origin.ends[pair]
            if rest < 0:
                break
            for p, below in steps:
                if p * sums[below] > 0:
                    pair = below  # the last one possible stands if rounding leaves a rest
                    rest -= p * sums[below]
                    if rest < 0:
                        break
            chain.append(int(self.shape.symbol[pair]))
        return tuple(chain)

    def _steps(self, pair: int) -> list[tuple[float, int]]:
        """The first steps that chains of a pair can take: a unary rule's probability, and the pair below it."""
        if pair in self._known_steps:
            return self._known_steps[pair]
        symbol, body = int(self.shape.symbol[pair]), int(self.shape.body[pair])
        steps = [
            (float(self.origin.probs[rule]), self.shape.pair(child, body))
            for child, rule in self.shape.children.get(symbol, ())
        ]
        self._known_steps[pair] = [step for step in steps if step[1] >= 0]
        return self._known_steps[pair]

    # -- trees ---------------------------------------------------------------------------------------------------------

    def labels(self, pair: int, chain: Chain) -> tuple[str, ...]:
        """The labels of a chain in a tree, from the top down."""
        if not self.shape.spelled[self.shape.body[pair]]:
            return tuple(label for symbol in chain for label in self.shape.labels[symbol])
        above = tuple(label for symbol in chain[:-1] for label in self.shape.labels[symbol])
        return (*above, self.shape.tags[chain[-1]])

    @property
    def top(self) -> tuple[str, ...]:
        """The start symbol, where it stands over the grammar's roots."""
        return (self.shape.start,) if self.shape.folded else ()

    def plain_tree(self, tree: Tree, choose: Callable[[int], Chain] | None = None) -> Tree:
        """A binary tree in the shape of the rules; `choose` gives the chain of a pair, the best one without it.

        It is asked from the leaves up, left to right. Raises TreebankError for a tree that isn't one of the grammar.
        """
        choose, pairs = choose or self.best, iter(self.pairs(tree))

        def build(node: Tree, children: list[Any]) -> list[Tree]:
            pair = next(pairs)
            below: tuple[Tree | str, ...] = node.children
            if not node.is_preterminal:
                below = tuple(child for group in children for child in group)
            for label in reversed(self.labels(pair, choose(pair))):
                below = (Tree(label, below),)
            return [child for child in below if isinstance(child, Tree)]

        roots = tree.fold(build)
        if len(roots) != 1:
            raise TreebankError(
                f"the tree's root, {tree.label}, is a node that binarisation made: it isn't a whole parse"
            )
        (whole,) = roots
        for label in self.top:
            whole = Tree(label, (whole,))
        return whole

    def pairs(self, tree: Tree) -> list[int]:
        """The pair of each node of a binary tree, from the leaves up, left to right."""
        pairs, position, halves = list[int](), count(), self.shape.half_of

        def look(node: Tree, children: list[str]) -> str:
            names = [node.label] if node.is_preterminal else [node.label, *children]
            symbols = [halves[name][0] if name in halves else -1 for name in names]
            if node.is_preterminal:
                word = self.grammar.words[self.grammar.number_of(str(node.children[0]), next(position))]
                body = self.shape.body_number(word)
            else:
                body = self.shape.body_number((symbols[1], symbols[2])) if len(symbols) == 3 else -1
            pair = self.shape.pair(symbols[0], body) if min(symbols) >= 0 <= body else -1
            if pair < 0:
                raise TreebankError(
                    f"the tree has {node.label} over {' '.join(children)}, and the grammar doesn't: give a tree in its symbols"
                )
            pairs.append(pair)
            return node.label

        tree.fold(look)
        return pairs

    def best_plain(self, trees: Sequence[tuple[float, Tree]], k: int) -> list[tuple[float, Tree]]:
        """The k best trees of the rules' own shape.

        Args:
            trees: the k best binary trees, best first, with the log probabilities of the best trees that they stand for: no
                tree that stands for any other is among the k best.
        """
        pairs = [self.pairs(tree) for _, tree in trees]
        heap = [(-score, number, 0, (0,) * len(pairs[number])) for number, (score, _) in enumerate(trees)]
        heapq.heapify(heap)
        ranked: list[tuple[float, Tree]] = []
        while heap and len(ranked) < k:
            score, number, last, ranks = heapq.heappop(heap)
            chosen = iter([self.few(pair)[rank] for pair, rank in zip(pairs[number], ranks, strict=True)])
            plain = self.plain_tree(trees[number][1], lambda _, chosen=chosen: next(chosen)[1])  # type: ignore[misc]
            ranked.append((-score, plain))
            for node in range(last, len(ranks)):  # each combination is come to in one order only
                few, rank = self.few(pairs[number][node]), ranks[node] + 1
                if few.has(rank):
                    worse = math.log(few[rank - 1][0]) - math.log(few[rank][0])
                    heapq.heappush(heap, (score + worse, number, node, (*ranks[:node], rank, *ranks[node + 1 :])))
        return ranked


class _Few:
    """A list that may be endless, worked out as far as it was asked for."""

    def __init__(self, chains: Iterator[tuple[float, Chain]]) -> None:
        self._chains, self._found = chains, list[tuple[float, Chain]]()

    def has(self, rank: int) -> bool:
        """Whether the list has an entry `rank`, counted from 0."""
        while len(self._found) <= rank:
            more = next(self._chains, None)
            if more is None:
                return False
            self._found.append(more)
        return True

    def __getitem__(self, rank: int) -> tuple[float, Chain]:
        if not self.has(rank):
            raise IndexError(rank)
        return self._found[rank]
