"""inside_outside(): charts of a batch of sentences, and the trees and words that can be asked of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from pcfg.dense.engine import dense_k_best, dense_sample, dense_viterbi
from pcfg.devices import Device, Dtype, dtype_name, working_device
from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chain_marginals import ChainMarginals
from pcfg.inference.engines import ENGINES, pick_engine
from pcfg.inference.masked_words import word_posteriors
from pcfg.inference.minimum_risk import PlainLabels, check_cost, mbr_tree, minimum_risk_tree
from pcfg.inference.posteriors import Posteriors
from pcfg.inference.prefixes import prefix_log_z
from pcfg.sparse import engine as sparse
from pcfg.sparse.engine import TreeNodes
from pcfg.treebanks.trees import Tree
from surgery.reporting.page import Table, Text, render
from surgery.reporting.plural import number_of
from surgery.reporting.results import Shown

_SHOWN = 20  # sentences in a notebook


def inside_outside(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    *,
    device: Device | None = None,
    dtype: Dtype = "float64",
    engine: str = "auto",
    workers: int = 1,
) -> "Chart":
    """Exact inference for sentences of any lengths (Baker 1979; Lari & Young 1990).

    Args:
        device: of the dense engine, by name or as torch has them; default CUDA if there is one. The sparse engine runs on the CPU.
            Tensors of results are on the device that is named here, on the CPU without one, with either engine.
        dtype: float32 or float64, of the dense engine; what underflows in it is done again in float64 or in logs.
        engine: `dense` (batched matrix products, for grammars up to some hundred symbols), `sparse` (compiled, over the
            rules that there are, for treebank grammars) or `auto`, by cost.
        workers: threads over sentences, of the sparse engine.

    Raises:
        GrammarError: a word that the grammar doesn't know, with its position.
        OptionError: no sentences, an engine, dtype or device that is none, or a batch whose chart would not fit into memory.
    """
    if not len(sentences):
        raise OptionError("there are no sentences to parse: give at least one")
    if engine not in ENGINES:
        raise OptionError(f"engine {engine!r} isn't one of {', '.join(ENGINES)}")
    dtype = dtype_name(dtype)
    if workers < 1:
        raise OptionError(f"workers is {workers}: give 1 or more")
    working_device(device)  # one that isn't here is refused, whether this grammar's engine would use it or not
    emissions = [grammar.emissions(sentence) for sentence in sentences]
    chosen = pick_engine(grammar, engine)
    return Chart(grammar, tuple(map(tuple, sentences)), tuple(emissions), chosen, device, dtype, workers)


@dataclass(frozen=True, eq=False)
class Chart(Posteriors, Shown):
    """Posteriors of a batch, and its best, least-risk, k best and sampled trees. A sentence without a parse has no trees."""

    @property
    def summary(self) -> list[str]:
        """How many sentences, how long and by which engine; how many have no parse where log Z is computed already."""
        lengths = [len(sentence) for sentence in self.sentences]
        longest = f"{max(lengths):,}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"
        none = f", {int((self.log_z == -math.inf).sum()):,} without a parse" if "log_z" in self.__dict__ else ""
        return [
            f"{number_of(len(lengths), 'sentence')} of {longest} words{none}, by the {self.engine} engine under {self.grammar!r}."
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row a sentence: its words, log Z, and the log probability and brackets of its best tree (None without a parse)."""
        scores, trees = self.best_scores.tolist(), [tree and str(tree) for tree in self.best_trees()]
        texts = map(" ".join, self.sentences)
        rows = [list(row) for row in zip(texts, self.log_z.tolist(), scores, trees, strict=True)]
        return ["sentence", "log Z", "of the best tree", "best tree"], rows

    def _repr_html_(self) -> str:
        if len(self.sentences) <= _SHOWN:
            return super()._repr_html_()
        first = replace(self, sentences=self.sentences[:_SHOWN], emissions=self.emissions[:_SHOWN])
        return render([*map(Text, self.summary), Table(f"The first {_SHOWN} sentences.", *first.table(), folded=False)])

    def word_posteriors(self) -> list[Float64[np.ndarray, "_ V"]]:
        """P(word i = w | all other words) of each sentence: `pcfg.inference.masked_words.word_posteriors`, where masks are told of."""
        return word_posteriors(
            self.grammar, self.sentences, engine=self.engine, device=self.device, workers=self.workers
        )

    def prefix_log_z(self) -> Float64[np.ndarray, " batch"]:
        """Log probability that a sentence begins with these words: `pcfg.inference.prefixes.prefix_log_z`."""
        return prefix_log_z(self.grammar, self.sentences)

    def best_trees(self) -> list[Tree | None]:
        """The most probable tree of each sentence (Viterbi), in the grammar's symbols; None without a parse.

        `Grammar.undo` gives such a tree the form of the treebank or the rules that the grammar was made from. Where those
        have unary chains, it is the most probable tree with its chains, whose tops these symbols are.
        """
        return [self._tree(row, nodes) for row, (_, nodes) in enumerate(self._likeliest._viterbi)]

    @property
    def best_scores(self) -> Float64[np.ndarray, " batch"]:
        """Log probability of the most probable tree, with its unary chains; -inf without a parse."""
        return np.array([score for score, _ in self._likeliest._viterbi])

    def mbr_trees(self, cost: float = 0.4) -> list[Tree | None]:
        """The tree of most expected labelled recall less `cost` a label (Goodman 1996); None without a parse.

        In the labels of the treebank or the rules that the grammar was made from.
        """
        check_cost(cost)
        grammar, chains = self.grammar, self.grammar.chains
        if chains is not None and (chains.top or len(chains.shape.chained)):
            return self._mbr_with_chains(cost)
        names = grammar.plain_labels.__getitem__
        plain = PlainLabels.of_symbols(grammar.nonterminals, grammar.preterminals, names)
        trees: list[Tree | None] = []
        for words, log_z, (labels, tags) in zip(self.sentences, self.log_z.tolist(), self._posteriors(), strict=True):
            trees.append(None if log_z == -math.inf else minimum_risk_tree(words, labels, tags, plain, cost))
        return trees

    def _mbr_with_chains(self, cost: float) -> list[Tree | None]:
        """By the sparse engine: it has the inside scores of the symbols in chains."""
        chains, whole = self.grammar.chains, self.grammar.whole
        charts = inside_outside(whole, self.sentences, engine="sparse", workers=self.workers)  # type: ignore[arg-type]
        marginals = ChainMarginals(chains, whole)  # type: ignore[arg-type]
        trees: list[Tree | None] = []
        for words, chart in zip(self.sentences, charts._charts, strict=True):
            if chart.log_z == -math.inf:
                trees.append(None)
                continue
            plain = marginals.of(chart, words)
            tags = [plain.tags[best] for best in plain.tag_posteriors.argmax(axis=1)]
            trees.append(mbr_tree(words, tags, plain.phrases, plain.labels, cost, plain.depths))
        return trees

    def k_best(self, k: int, *, plain: bool = False) -> list[list[tuple[float, Tree]]]:
        """The k most probable trees of each sentence, or all if there are fewer, best first, with log probabilities.

        Args:
            plain: in the form of what the grammar was made from, unary chains told apart. Without it, trees are in the
                grammar's symbols, and each has the log probability of the best chains that it stands for.
        """
        trees = self._likeliest._k_best(k)
        if not plain:
            return trees
        if self.grammar.chains is None:
            return [[(score, self.grammar.undo(tree)) for score, tree in row] for row in trees]
        return [self.grammar.chains.best_plain(row, k) for row in trees]

    def _k_best(self, k: int) -> list[list[tuple[float, Tree]]]:
        if self.engine == "dense":
            rows = dense_k_best(*self._scores, k)
            nodes_of = [[(score, TreeNodes(*nodes.T)) for score, nodes in trees] for trees in rows]
        else:
            nodes_of = self._map(partial(sparse.k_best, k=k), kept=False)
        return [[(score, self._tree(row, nodes)) for score, nodes in trees] for row, trees in enumerate(nodes_of)]  # type: ignore[misc]

    def sample_trees(self, count: int, *, seed: int = 0, plain: bool = False) -> list[list[Tree]]:
        """Independent draws from each sentence's posterior over trees, none without a parse.

        A sentence's draws depend on the seed, its place in the batch, the engine and the kind of device, not on the other
        sentences.

        Args:
            plain: in the form of what the grammar was made from, unary chains drawn too, instead of in its symbols.
        """
        if count < 0 or seed < 0:
            raise OptionError(f"{count} samples were asked for, with seed {seed}: neither can be negative")
        drawn: list[list[Tree]] = [
            [self._tree(row, nodes) for nodes in self._draw(row, count, _seed(seed, row))]  # type: ignore[misc]
            for row in range(len(self.sentences))
        ]
        return [self._plain(row, trees, seed) for row, trees in enumerate(drawn)] if plain else drawn

    def _plain(self, row: int, trees: list[Tree], seed: int) -> list[Tree]:
        chains, random = self.grammar.chains, np.random.default_rng([seed, row])
        if chains is None:
            return [self.grammar.undo(tree) for tree in trees]
        return [chains.plain_tree(tree, lambda pair: chains.draw(pair, random)) for tree in trees]

    def _draw(self, row: int, count: int, seed: int) -> list[TreeNodes]:
        if self.engine == "sparse":
            return sparse.sample_trees(self._charts[row], count, seed)
        result = self._dense
        generator = torch.Generator(result.log_z.device).manual_seed(seed)
        return [_tree_nodes(tree) for tree in dense_sample(result, count, generator, row=row)[0]]

    @cached_property
    def _likeliest(self) -> "Chart":
        """The chart whose rules score what the best of their chains does: a sum can beat a chain that is likelier."""
        grammar = self.grammar.likeliest
        if grammar is self.grammar:
            return self
        return replace(self, grammar=grammar, emissions=tuple(map(grammar.emissions, self.sentences)))

    @cached_property
    def _viterbi(self) -> list[tuple[float, TreeNodes | None]]:
        if self.engine == "sparse":
            return self._map(sparse.viterbi, kept=False)
        scores, trees = dense_viterbi(*self._scores)
        return [(s, _tree_nodes(tree) if len(tree) else None) for s, tree in zip(scores.tolist(), trees, strict=True)]

    def _tree(self, row: int, nodes: TreeNodes | None) -> Tree | None:
        return None if nodes is None else tree_of(self.grammar, self.sentences[row], nodes)


def tree_of(grammar: Grammar, sentence: Sequence[str], nodes: TreeNodes) -> Tree:
    """A tree in preorder of symbol numbers and spans, with names and words."""
    built: list[Tree] = []
    for symbol, start, end in zip(*(array[::-1].tolist() for array in nodes), strict=True):
        name = grammar.symbols[symbol]
        if end - start == 1 and symbol >= len(grammar.nonterminals):
            built.append(Tree(name, (sentence[start],)))
        else:
            left, right = built.pop(), built.pop()
            built.append(Tree(name, (left, right)))
    return built.pop()


def _tree_nodes(nodes: Int64[Tensor, "nodes 4"]) -> TreeNodes:
    return TreeNodes(*nodes[:, :3].cpu().numpy().astype(np.int32).T)


def _seed(seed: int, row: int) -> int:
    """One for each sentence, so that no sentence's draws under one seed are another's under the next."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0])
