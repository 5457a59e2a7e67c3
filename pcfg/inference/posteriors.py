"""Inside-Outside of a batch of sentences by either engine: log Z, posteriors, expected counts and entropies."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from pcfg.dense.engine import DenseResult, dense_inside_outside
from pcfg.devices import Device, returned, working_device
from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.engines import chart_numbers
from pcfg.sparse import engine as sparse
from pcfg.sparse.engine import SparseChart
from surgery.memory import free_memory

_MOST_OF_MEMORY = 0.9  # of what is free: estimates are rough, and others want some
_LEAST_BYTES = 256 << 20  # what must stay free while charts are kept
# What the sparse engine holds of each symbol over a span, if it derives the words, while it works on a sentence.
_ITEM_BYTES = 64


@dataclass(frozen=True, eq=False)
class Posteriors:
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
        posteriors = torch.zeros(
            len(self.sentences), self._longest, len(self.grammar.preterminals), dtype=torch.float64
        )
        for row, chart in enumerate(self._charts):
            posteriors[row, : chart.n] = torch.from_numpy(chart.tag_posteriors())
        return returned(posteriors, self.device)

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
        sums = np.full(len(self.sentences), np.nan)
        if self.engine == "dense":
            given = self._tensors(start, rules, words, 0.0)
            some = self._dense.log_z > -math.inf
            return torch.where(some, self._dense.expected(*given), math.nan).cpu().numpy()
        for row, (chart, weights) in enumerate(zip(self._charts, words, strict=True)):
            if chart.log_z > -math.inf:
                roots, used = chart.start_counts() @ start, chart.rule_counts() @ rules
                sums[row] = roots + used + (chart.tag_posteriors() * weights).sum()
        return sums

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

    def _map(self, function: Any, *, kept: bool) -> list[Any]:
        longest, workers = self._longest, min(self.workers, len(self.sentences))
        most = longest * (longest + 1) // 2 * len(self.grammar.nonterminals) + longest * len(self.grammar.preterminals)
        self._refuse(_ITEM_BYTES * most * max(1, workers))
        rules, start = self.grammar.compiled, self.grammar.start

        def run(scores: NDArray) -> Any:
            result = function(rules, start, scores)
            if kept and free_memory(torch.device("cpu")) < _LEAST_BYTES:
                raise OptionError(
                    f"the charts of these {len(self.emissions)} sentences fill the memory: give fewer at once"
                )
            return result

        return sparse.parallel(run, self.emissions, self.workers)

    @property
    def _longest(self) -> int:
        return max(1, *map(len, self.sentences))

    def _stack(self, parts: list[NDArray]) -> Tensor:
        stacked = torch.zeros(len(parts), self._longest, self._longest + 1, *parts[0].shape[2:], dtype=torch.float64)
        for row, part in enumerate(parts):
            stacked[row, : len(part), : len(part) + 1] = torch.from_numpy(part)
        return returned(stacked, self.device)

    def _refuse(self, wanted: int) -> None:
        """Before anything is allocated: a process that the system kills says nothing."""
        there = free_memory(working_device(self.device if self.engine == "dense" else "cpu"))
        if wanted > _MOST_OF_MEMORY * there:
            raise OptionError(
                f"{len(self.sentences)} sentences of up to {self._longest} words would take {wanted / 1e9:.1f} GB, and "
                f"{there / 1e9:.1f} GB are free, some of it for others: give fewer at once, or shorter ones"
            )


def _logs(values: NDArray, nothing: float = 0.0) -> NDArray:
    """Logarithms, and `nothing` for those of 0."""
    return np.log(values, where=values > 0, out=np.full(values.shape, nothing))


def _inner(spans: NDArray) -> NDArray:
    """Spans of two words or more."""
    inner = spans.copy()
    numbers = np.arange(len(inner))
    inner[numbers, numbers + 1] = 0
    return inner
