"""How likely labels are in trees with their unary chains, which binary charts hold only as sums."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64

from pcfg.grammars.arrays import GrammarArrays
from pcfg.grammars.binarization import Places
from pcfg.grammars.unary_chains import Chains
from pcfg.sparse.engine import SparseChart


@dataclass(frozen=True, eq=False)
class PlainMarginals:
    """How likely the labels of a tree of the rules' own shape are.

    Attributes:
        labels, tags: over phrases (and in chains over words), and right over words.
        phrases: the probability that a span bears a label; `depths`: that times its expected place in the span's chain.
        tag_posteriors: of each word's tag.
    """

    labels: tuple[str, ...]
    tags: tuple[str, ...]
    phrases: Float64[np.ndarray, "n places K"]
    depths: Float64[np.ndarray, "n places K"]
    tag_posteriors: Float64[np.ndarray, "n tags"]


class ChainMarginals:
    """Marginals of labels under a grammar whose rules stand for chains.

    Args:
        whole: the grammar as `Grammar.whole` gives it, of which the charts are.
    """

    def __init__(self, chains: Chains, whole: GrammarArrays) -> None:
        self._chains, self._origin, self._shape = chains, chains.origin, chains.shape
        self._places = Places(chains.shape, whole)

    def of(self, chart: SparseChart, words: Sequence[str]) -> PlainMarginals:
        """Labels' marginals of a sentence, from its chart by the whole grammar."""
        places, shape, n = self._places, self._shape, chart.n
        names = [labels[0] if labels else "" for labels in shape.labels]
        labels = tuple(sorted({*names, *self._chains.top} - {""}))
        of_label = np.array([labels.index(name) if name else -1 for name in names], np.int64)
        items = chart.items
        symbols, halves = places.symbols[items.symbols], places.halves[items.symbols]
        divisor = np.where(shape.split[symbols], self._origin.totals[symbols, halves], 1.0)
        inside = np.full((n, n + 1, len(names)), -np.inf)
        inside[items.starts, items.ends, symbols] = chart.log_inside + np.log(divisor)
        direct = self._direct(words)
        hits, depths = self._hits
        tops = np.flatnonzero(chart.marginals > 0)
        counts = np.diff(hits.indptr)[symbols[tops]]
        item = np.repeat(tops, counts)
        entry = np.repeat(hits.indptr[symbols[tops]] - np.append(0, np.cumsum(counts)[:-1]), counts) + np.arange(
            len(item)
        )
        i, j, below = items.starts[item], items.ends[item], hits.indices[entry]
        with np.errstate(invalid="ignore"):
            ratio = np.exp(inside[i, j, below] - inside[i, j, symbols[item]]) * chart.marginals[item]
            own = np.where(
                j - i == 1, direct[i, below] / np.exp(inside[i, j, symbols[item]]) * chart.marginals[item], 0.0
            )
        above = np.maximum(np.nan_to_num(ratio - own), 0.0)  # of single words, a chain's last symbol is the tag
        above[above < 1e-14] = 0.0  # rounding
        phrases, deep = np.zeros((n, n + 1, len(labels))), np.zeros((n, n + 1, len(labels)))
        some = of_label[below] >= 0
        where = i[some], j[some], of_label[below[some]]
        np.add.at(phrases, where, (hits.data[entry] * above)[some])
        np.add.at(deep, where, (depths[entry] * above)[some])
        for label in self._chains.top:
            phrases[0, n, labels.index(label)], deep[0, n, labels.index(label)] = 1.0, -1.0
        tags = tuple(sorted(set(shape.tags)))
        posteriors, single = np.zeros((n, len(tags))), j - i == 1
        often = hits.data[entry] * self._returns[below]
        of_tag = np.array([tags.index(name) for name in shape.tags], np.int64)
        np.add.at(posteriors, (i[single], of_tag[below[single]]), (often * np.nan_to_num(own))[single])
        return PlainMarginals(labels, tags, phrases, deep, posteriors)

    @cached_property
    def _hits(self) -> tuple[scipy.sparse.csr_array, Float64[np.ndarray, " entries"]]:
        """The probability that chains from a symbol come to another at all, and that times the steps until they do."""
        shape, visits, size = self._shape, self._origin.visits, len(self._shape.symbols)
        own = np.diag(visits)
        step = np.zeros(visits.shape)
        parents, children = np.searchsorted(shape.chained, shape.unary[:2])
        step[parents, children] = self._origin.weights[shape.unary[2]]
        # With every step weighing z, chains come to X first with F(z) = N(z) / N_XX(z), and N'(1) = N M N.
        slope = visits @ step @ visits
        hits, depths = visits / own, (slope * own - visits * np.diag(slope)) / own**2
        rows, columns = np.nonzero(hits)
        others = np.setdiff1d(np.arange(size), shape.chained)
        place = np.append(shape.chained[rows], others), np.append(shape.chained[columns], others)
        order = np.lexsort(place[::-1])
        values = np.append(hits[rows, columns], np.ones(len(others)))[order]
        matrix = scipy.sparse.csr_array((values, (place[0][order], place[1][order])), (size, size))
        return matrix, np.append(depths[rows, columns], np.zeros(len(others)))[order]

    @cached_property
    def _returns(self) -> Float64[np.ndarray, " K"]:
        """How often a chain that visits a symbol does so in all, on average."""
        visits = np.ones(len(self._shape.symbols))
        visits[self._shape.chained] = np.diag(self._origin.visits)
        return visits

    def _direct(self, words: Sequence[str]) -> Float64[np.ndarray, "n K"]:
        """The probability of each word right under each symbol."""
        scores, shape = np.zeros((len(words), len(self._shape.symbols))), self._shape
        symbols, bodies, rules = shape.direct
        for position, word in enumerate(words):
            number = shape.body_number(self._chains.grammar.words[self._chains.grammar.number_of(word, position)])
            here: Int64[np.ndarray, " k"] = np.flatnonzero(bodies == number)
            scores[position, symbols[here]] = self._origin.weights[rules[here]]
        return scores
