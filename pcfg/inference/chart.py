"""inside_outside(): charts of a batch of sentences by the engine that suits the grammar, and what can be asked of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from pcfg.dense.engine import DenseResult, dense_inside_outside, dense_k_best, dense_sample, dense_viterbi
from pcfg.devices import Device, Dtype, dtype_name, returned, working_device
from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.minimum_risk import PlainLabels, check_cost, mbr_tree, minimum_risk_tree
from pcfg.sparse import engine as sparse
from pcfg.sparse.engine import Spans, SparseChart
from pcfg.treebanks.trees import Tree
from surgery.memory import room

ENGINES = ("auto", "dense", "sparse")
# The dense chart costs about n^3 N^2 / 3 + n^2 N S^2 a sentence, whatever the number of rules; the sparse one walks over
# rules, some hundred times as slowly an operation. Beyond these sizes the dense tables alone are too large.
_DENSE_SYMBOLS, _DENSE_SHARE = 400, 0.02
_MOST_OF_MEMORY = 0.9  # of what is free: estimates are rough, and others want some
_LEAST_BYTES = 256 << 20  # what must stay free while charts are kept
# What the sparse engine holds of each symbol over a span, if it derives the words, while it works on a sentence.
_ITEM_BYTES = 64


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


def pick_engine(grammar: Grammar, wanted: str = "auto") -> str:
    """`dense` for a small grammar, or one with a good part of all the rules that its symbols allow; else `sparse`."""
    symbols, nonterminals = len(grammar.start), len(grammar.nonterminals)
    if not nonterminals:
        return "sparse"  # sentences of one word: there is nothing for the dense engine to multiply
    if wanted != "auto":
        return wanted
    if symbols > _DENSE_SYMBOLS:
        return "sparse"
    return "dense" if len(grammar.parents) >= _DENSE_SHARE * nonterminals * symbols**2 or symbols <= 100 else "sparse"


def chart_numbers(grammar: Grammar, n: int) -> int:
    """About how many numbers the chart of a sentence of n words holds at once."""
    inner, symbols = len(grammar.nonterminals), len(grammar.start)
    if pick_engine(grammar) == "sparse":
        return n * n * symbols
    tags = symbols - inner
    # Charts inside and outside by first word and by end, words with their rules, pairs of children, the best of a word's.
    by_word = 7 * (n + 1) * inner + 2 * inner * (symbols + inner) + 2 * inner * inner + 2 * tags
    return n * by_word + inner * tags * symbols


@dataclass(frozen=True, eq=False)
class Chart:
    """Inside and outside scores of a batch, computed when first asked for.

    Spans (i, j) are words i..j-1; arrays over spans are [batch, n, n + 1] with n the longest sentence, 0 beyond a
    sentence's own. A sentence without a parse has log Z -inf, zero marginals and no trees. Tensors are on the CPU, or on
    `device` if one was named (`pcfg.devices`); counts, entropies and scores of trees are numpy arrays.
    """

    grammar: Grammar
    sentences: tuple[tuple[str, ...], ...]
    emissions: tuple[Float64[np.ndarray, "_ T"], ...]
    engine: str
    device: Device | None
    dtype: str
    workers: int

    @cached_property
    def log_z(self) -> Float[Tensor, " batch"]:
        """Log probability of each sentence; -inf without a parse. With a smoothed lexicon it is a score, no probability."""
        if self.engine == "dense":
            return returned(self._dense.log_z, self.device)
        log_z = torch.tensor([chart.log_z for chart in self._charts], dtype=torch.float64)
        return returned(log_z, self.device)

    @cached_property
    def span_marginals(self) -> Float[Tensor, "batch n n1"]:
        """Posterior probability that a span of two words or more is a constituent; sums to a sentence's length - 1."""
        if self.engine == "dense":
            return returned(self._dense.span_marginals, self.device)
        return self._stack([_inner(chart.span_marginals()) for chart in self._charts])

    @cached_property
    def label_marginals(self) -> Float[Tensor, "batch n n1 N"]:
        """The same for each nonterminal."""
        if self.engine == "dense":
            return returned(self._dense.label_marginals, self.device)
        self._refuse(8 * len(self.sentences) * self._longest * (self._longest + 1) * len(self.grammar.nonterminals))
        return self._stack([chart.label_marginals() for chart in self._charts])

    @cached_property
    def tag_posteriors(self) -> Float[Tensor, "batch n T"]:
        """Posterior probability of each preterminal over each word."""
        if self.engine == "dense":
            return returned(self._dense.tag_posteriors, self.device)
        found = torch.zeros(len(self.sentences), self._longest, len(self.grammar.preterminals), dtype=torch.float64)
        for row, chart in enumerate(self._charts):
            found[row, : chart.n] = torch.from_numpy(chart.tag_posteriors())
        return returned(found, self.device)

    def rule_counts(self) -> Float64[np.ndarray, " R"]:
        """Expected number of times that each binary rule is used in all sentences together, in the grammar's order."""
        if self.engine == "dense":
            grammar = self.grammar
            return self._dense.rule_expectations.cpu().double().numpy()[grammar.parents, grammar.left, grammar.right]
        return sum((chart.rule_counts() for chart in self._charts), np.zeros(len(self.grammar.parents)))

    def start_counts(self) -> Float64[np.ndarray, " S"]:
        """Expected number of times that each symbol is the root, in all sentences together."""
        if self.engine == "dense":
            return self._dense.start_expectations.cpu().double().numpy().sum(0)
        return sum((chart.start_counts() for chart in self._charts), np.zeros(len(self.grammar.start)))

    def word_counts(self) -> Float64[np.ndarray, " L"]:
        """Expected number of times that each lexical rule is used, in the grammar's order."""
        posteriors = self.tag_posteriors.cpu().double().numpy()
        table = np.zeros((len(self.grammar.preterminals), len(self.grammar.words)))
        for row, sentence in enumerate(self.sentences):
            numbers = [self.grammar.number_of(word, position) for position, word in enumerate(sentence)]
            np.add.at(table.T, numbers, posteriors[row, : len(sentence)])
        return table[self.grammar.tags, self.grammar.tokens]

    def word_posteriors(self) -> list[Float64[np.ndarray, "_ V"]]:
        """P(word i = w | all other words) of each sentence: `pcfg.inference.masked_words.word_posteriors`, where masks are told of."""
        from pcfg.inference.masked_words import word_posteriors

        return word_posteriors(
            self.grammar, self.sentences, engine=self.engine, device=self.device, workers=self.workers
        )

    def prefix_log_z(self) -> Float64[np.ndarray, " batch"]:
        """Log probability that a sentence begins with these words: `pcfg.inference.queries.prefix_log_z`."""
        from pcfg.inference.queries import prefix_log_z

        return prefix_log_z(self.grammar, self.sentences)

    def entropy(self) -> Float64[np.ndarray, " batch"]:
        """Entropy of the posterior over trees, in nats: log Z less the expected log weight of a tree; NaN without a parse.

        Over trees of the rules that the grammar was made from, with their unary chains, where those are known.
        """
        grammar = self.grammar
        if grammar.origin is not None and grammar.origin.ambiguous:
            expected = self.expected(*self.of_rules(_logs(grammar.origin.probs)))
        else:
            logs = [_logs(scores) for scores in self.emissions]
            expected = self.expected(_logs(grammar.start), _logs(grammar.rule_probs), logs)
        return np.maximum(self.log_z.cpu().double().numpy() - expected, 0)

    def expected(
        self,
        start: Float64[np.ndarray, " S"],
        rules: Float64[np.ndarray, " R"],
        words: Sequence[Float64[np.ndarray, "_ T"]],
    ) -> Float64[np.ndarray, " batch"]:
        """Expected sum of such (finite) weights of root, rules and words over a tree; NaN without a parse."""
        found = np.full(len(self.sentences), np.nan)
        if self.engine == "dense":
            given = self._tensors(start, rules, words, 0.0)
            some = self._dense.log_z > -math.inf
            return torch.where(some, self._dense.expected(*given), math.nan).cpu().numpy()
        for row, (chart, weights) in enumerate(zip(self._charts, words, strict=True)):
            if chart.log_z > -math.inf:
                roots, used = chart.start_counts() @ start, chart.rule_counts() @ rules
                found[row] = roots + used + (chart.tag_posteriors() * weights).sum()
        return found

    def of_rules(
        self, values: Float64[np.ndarray, " rules"]
    ) -> tuple[Float64[np.ndarray, " S"], Float64[np.ndarray, " R"], list[Float64[np.ndarray, "_ T"]]]:
        """What `expected` takes for the sum, over a tree, of such values of the rules that the grammar was made from."""
        grammar = self.grammar
        start, rules, words = grammar.places.expected(grammar.origin, values)  # type: ignore[union-attr,arg-type]
        table = np.zeros((len(grammar.words), len(grammar.preterminals)))
        table[grammar.tokens, grammar.tags] = words
        numbers = ([grammar.number_of(w, i) for i, w in enumerate(sentence)] for sentence in self.sentences)
        return start, rules, [table[np.array(row, np.int64)] for row in numbers]

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
        found: list[Tree | None] = []
        for words, log_z, (labels, tags) in zip(self.sentences, self.log_z.tolist(), self._posteriors(), strict=True):
            found.append(None if log_z == -math.inf else minimum_risk_tree(words, labels, tags, plain, cost))
        return found

    def _mbr_with_chains(self, cost: float) -> list[Tree | None]:
        """By the sparse engine: it has the inside scores of the symbols in chains."""
        chains, whole = self.grammar.chains, self.grammar.whole
        charts = inside_outside(whole, self.sentences, engine="sparse", workers=self.workers)  # type: ignore[arg-type]
        found: list[Tree | None] = []
        for words, chart in zip(self.sentences, charts._charts, strict=True):
            if chart.log_z == -math.inf:
                found.append(None)
                continue
            plain = chains.marginals(whole, chart, words)  # type: ignore[union-attr, arg-type]
            tags = [plain.tags[best] for best in plain.tag_posteriors.argmax(axis=1)]
            found.append(mbr_tree(words, tags, plain.phrases, plain.labels, cost, plain.depths))
        return found

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
            found = [[(score, Spans(*nodes.T)) for score, nodes in trees] for trees in rows]
        else:
            found = self._map(partial(sparse.k_best, k=k), kept=False)
        return [[(score, self._tree(row, nodes)) for score, nodes in trees] for row, trees in enumerate(found)]  # type: ignore[misc]

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

    def _draw(self, row: int, count: int, seed: int) -> list[Spans]:
        if self.engine == "sparse":
            return sparse.sample_trees(self._charts[row], count, seed)
        result = self._dense
        generator = torch.Generator(result.log_z.device).manual_seed(seed)
        return [_spans(tree) for tree in dense_sample(result, count, generator, row=row)[0]]

    def _posteriors(self) -> Iterator[tuple[NDArray, NDArray]]:
        """Marginals of labels [n, n + 1, N] and of tags [n, T], sentence by sentence."""
        if self.engine == "sparse":
            yield from ((chart.label_marginals(), chart.tag_posteriors()) for chart in self._charts)
            return
        labels, tags = (x.cpu().double().numpy() for x in (self.label_marginals, self.tag_posteriors))
        for row, sentence in enumerate(self.sentences):
            n = len(sentence)
            yield labels[row, :n, : n + 1], tags[row, :n]

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the dense engine is given, in float64: the logarithm of a small probability, rounded to float32, would be
        off by more than float32 is."""
        grammar, rules = self.grammar, len(self.grammar.nonterminals) * len(self.grammar.start) ** 2
        self._refuse(8 * (len(self.sentences) * chart_numbers(grammar, self._longest) + 3 * rules))
        logs = self._tensors(
            _logs(grammar.start, -np.inf),
            _logs(grammar.rule_probs, -np.inf),
            [_logs(x, -np.inf) for x in self.emissions],
            -np.inf,
        )
        # An empty sentence is one word that nothing spells.
        lengths = torch.tensor([max(1, len(sentence)) for sentence in self.sentences], device=logs[0].device)
        return *logs, lengths

    def _tensors(
        self, start: NDArray, rules: NDArray, words: Sequence[NDArray], padding: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of symbols, rules and words as the dense engine has them: [S], [N, S, S], [B, n, T]."""
        grammar, place = self.grammar, working_device(self.device)
        inner, symbols = len(grammar.nonterminals), len(grammar.start)
        binary = np.full((inner, symbols, symbols), padding)
        binary[grammar.parents, grammar.left, grammar.right] = rules
        padded = np.full((len(self.sentences), self._longest, symbols - inner), padding)
        for row, scores in enumerate(words):
            padded[row, : len(scores)] = scores
        return tuple(torch.from_numpy(array).to(place) for array in (start, binary, padded))  # type: ignore[return-value]

    @cached_property
    def _dense(self) -> DenseResult:
        return dense_inside_outside(*self._scores, dtype=torch.float32 if self.dtype == "float32" else torch.float64)

    @cached_property
    def _charts(self) -> list[SparseChart]:
        return self._map(sparse.inside_outside, kept=True)

    @cached_property
    def _likeliest(self) -> "Chart":
        """The chart whose rules score what the best of their chains does: a sum can beat a chain that is likelier."""
        grammar = self.grammar.likeliest
        if grammar is self.grammar:
            return self
        return replace(self, grammar=grammar, emissions=tuple(map(grammar.emissions, self.sentences)))

    @cached_property
    def _viterbi(self) -> list[tuple[float, Spans | None]]:
        if self.engine == "sparse":
            return self._map(sparse.viterbi, kept=False)
        scores, trees = dense_viterbi(*self._scores)
        return [(s, _spans(tree) if len(tree) else None) for s, tree in zip(scores.tolist(), trees, strict=True)]

    def _map(self, function: Any, *, kept: bool) -> list[Any]:
        longest, workers = self._longest, min(self.workers, len(self.sentences))
        most = longest * (longest + 1) // 2 * len(self.grammar.nonterminals) + longest * len(self.grammar.preterminals)
        self._refuse(_ITEM_BYTES * most * max(1, workers))
        rules, start = self.grammar.compiled, self.grammar.start

        def run(scores: NDArray) -> Any:
            found = function(rules, start, scores)
            if kept and room(torch.device("cpu")) < _LEAST_BYTES:
                raise OptionError(
                    f"the charts of these {len(self.emissions)} sentences fill the memory: give fewer at once"
                )
            return found

        return sparse.parallel(run, self.emissions, self.workers)

    @property
    def _longest(self) -> int:
        return max(1, *map(len, self.sentences))

    def _tree(self, row: int, nodes: Spans | None) -> Tree | None:
        return None if nodes is None else tree_of(self.grammar, self.sentences[row], nodes)

    def _stack(self, parts: list[NDArray]) -> Tensor:
        found = torch.zeros(len(parts), self._longest, self._longest + 1, *parts[0].shape[2:], dtype=torch.float64)
        for row, part in enumerate(parts):
            found[row, : len(part), : len(part) + 1] = torch.from_numpy(part)
        return returned(found, self.device)

    def _refuse(self, wanted: int) -> None:
        """Before anything is allocated: a process that the system kills says nothing."""
        there = room(working_device(self.device if self.engine == "dense" else "cpu"))
        if wanted > _MOST_OF_MEMORY * there:
            raise OptionError(
                f"{len(self.sentences)} sentences of up to {self._longest} words would take {wanted / 1e9:.1f} GB, and "
                f"{there / 1e9:.1f} GB are free, some of it for others: give fewer at once, or shorter ones"
            )


def tree_of(grammar: Grammar, sentence: Sequence[str], nodes: Spans) -> Tree:
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


def _logs(values: NDArray, nothing: float = 0.0) -> NDArray:
    """Logarithms, and `nothing` for those of 0."""
    return np.log(values, where=values > 0, out=np.full(values.shape, nothing))


def _spans(nodes: Int64[Tensor, "nodes 4"]) -> Spans:
    return Spans(*nodes[:, :3].cpu().numpy().astype(np.int32).T)


def _inner(spans: NDArray) -> NDArray:
    """Spans of two words or more."""
    found = spans.copy()
    numbers = np.arange(len(found))
    found[numbers, numbers + 1] = 0
    return found


def _seed(seed: int, row: int) -> int:
    """One for each sentence, so that no sentence's draws under one seed are another's under the next."""
    return int(np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0])
