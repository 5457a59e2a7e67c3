"""Rules of any shape made binary: the same sentences with the same probabilities, and the way back to the rules.

Unary chains are closed over: the binary rule A -> B C stands for every chain A -> ... -> Z -> B C, and its probability is
the sum over them (infinitely many when there is a cycle). `Origin` keeps the rules that people wrote beside it, so that
counts of binary rules become counts of theirs, and the best of the chains is known besides the sum.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import numpy as np
import scipy.sparse
from jaxtyping import Float64, Int64

from pcfg.errors import GrammarError
from pcfg.grammars.rule_shapes import Shape, linked
from pcfg.grammars.rules import TOLERANCE, Children, Rule, Word, check_rules

PHRASE, WORD = 0, 1  # the halves of a symbol


class BinaryForm(NamedTuple):
    """Roots, binary and lexical rules by name, as `Grammar(roots=..., binary=..., lexical=...)` takes them."""

    roots: dict[str, float]
    binary: dict[tuple[str, str, str], float]
    lexical: dict[tuple[str, str], float]


def to_binary(rules: Sequence[Rule], start: str) -> BinaryForm:
    """Rules of any shape in binary form; every sentence keeps its exact probability.

    - A start symbol that no rule uses and that has only unary rules to symbols is the distribution over roots.
    - A long rule branches to the right: A -> B C D becomes A -> B /C+D and /C+D -> C D.
    - A word beside others becomes a preterminal: A -> B and C goes through /and -> 'and'.
    - Unary chains A -> B -> ... are closed over: A takes the rules at the chain's end, with the sum over all chains
      (infinitely many when there is a cycle).
    - A symbol that has both single words and longer phrases becomes two: NP for the phrases, NP/1 for the words.

    Raises GrammarError for rules that aren't a proper grammar: see `check_rules`.
    """
    check_rules(rules, start)
    return Origin.of_rules(rules, start).form()


class OriginJson(TypedDict):
    """An `Origin` as JSON: parent, children (a word is a list of one) and probability of each rule."""

    start: str
    rules: list[tuple[str, list[str | tuple[str]], float]]


@dataclass(frozen=True, eq=False)
class Origin:
    """The rules that a binary grammar was made from, with their probabilities, one for each rule of the shape."""

    shape: Shape
    probs: Float64[np.ndarray, " rules"]

    @classmethod
    def of_rules(cls, rules: Sequence[Rule], start: str) -> "Origin":
        """From rules that are checked (`check_rules`); those that come twice are one.

        Raises GrammarError where a chain of unary rules never ends.
        """
        summed: dict[tuple[str, Children], float] = defaultdict(float)
        for rule in rules:
            if rule.probability or not (len(rule.children) == 1 and isinstance(rule.children[0], str)):
                summed[rule.parent, rule.children] += rule.probability
        made = cls(Shape(list(summed), start), np.array(list(summed.values())))
        made.visits  # noqa: B018  (refuses chains that never end)
        return made

    @property
    def rules(self) -> list[Rule]:
        """The rules, the start symbol's first, so that a text of them has the same start."""
        rules = [Rule(*rule, p) for rule, p in zip(self.shape.rules, self.probs.tolist(), strict=True)]
        return sorted(rules, key=lambda rule: rule.parent != self.shape.start)

    def to_json(self) -> dict[str, Any]:
        """Rules as `of_json` reads them; words are lists of one."""
        rules = [
            [parent, [[child.text] if isinstance(child, Word) else child for child in children], p]
            for (parent, children), p in zip(self.shape.rules, self.probs.tolist(), strict=True)
        ]
        return {"start": self.shape.start, "rules": rules}

    @classmethod
    def of_json(cls, content: OriginJson) -> "Origin":
        """The inverse of `to_json`; raises GrammarError for no grammar."""
        rules = []
        for parent, children, probability in content["rules"]:
            made = tuple(child if isinstance(child, str) else Word(*child) for child in children)
            rules.append(Rule(parent, made, probability))
        if len({rule[:2] for rule in rules}) < len(rules):
            raise GrammarError("the rules that the grammar was made from hold one twice: write it again")
        check_rules(rules, content["start"])
        return cls(Shape([rule[:2] for rule in rules], content["start"]), np.array([r.probability for r in rules]))

    @property
    def parents(self) -> Int64[np.ndarray, " rules"]:
        """A number for each rule's parent."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(parent, len(numbers)) for parent, _ in self.shape.rules], np.int64)

    # -- sums and maxima over chains -----------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> Float64[np.ndarray, " rules1"]:
        """The probability of each rule; behind them, where index -1 finds it, the 1 of rules that binarisation made."""
        return np.append(self.probs, 1.0)

    @cached_property
    def ends(self) -> Float64[np.ndarray, " pairs"]:
        """The probability that each symbol goes to each body in one step, without a chain."""
        symbols, bodies, rules = self.shape.direct
        values = np.zeros(len(self.shape.body))
        values[self.shape.pairs(symbols, bodies)] = self.weights[rules]
        return values

    @cached_property
    def visits(self) -> Float64[np.ndarray, "C C"]:
        """How often, on average, chains from each symbol of unary rules (`Shape.chained`) visit each: (I - M)^-1."""
        shape = self.shape
        matrix = np.eye(len(shape.chained))
        parents, children = np.searchsorted(shape.chained, shape.unary[:2])
        matrix[parents, children] -= self.weights[shape.unary[2]]
        try:
            chains = np.linalg.inv(matrix)
            ended = chains @ matrix.sum(1)  # the probability that a chain comes to an end
        except np.linalg.LinAlgError:
            chains, ended = matrix, np.zeros(len(matrix))
        if not np.allclose(ended, 1, rtol=0, atol=TOLERANCE):
            raise GrammarError(
                "some unary rules lead round in a circle with probability 1: give one of them another way out"
            )
        # Where there is no chain the inverse may hold rounding.
        return np.where(linked((matrix != 0) | np.eye(len(matrix), dtype=bool)), np.maximum(chains, 0.0), 0.0)

    @cached_property
    def sums(self) -> Float64[np.ndarray, " pairs"]:
        """The probability of each body at the end of any chain from each symbol."""
        return self._at_pairs(self._spread @ self._matrix(self.ends))

    @cached_property
    def bests(self) -> Float64[np.ndarray, " pairs"]:
        """The probability of the likeliest chain from each symbol to each body."""
        whole, rest, rules = self.shape.hops
        best, before = self.ends.copy(), np.zeros(0)
        while not np.array_equal(best, before):
            before = best.copy()
            np.maximum.at(best, whole, self.weights[rules] * before[rest])
        return best

    @property
    def ambiguous(self) -> bool:
        """Whether any rule stands for several chains, so that their sum is more than the likeliest of them."""
        return len(self.shape.chained) > 0 and bool((self.sums > self.bests * (1 + 1e-13)).any())

    @property
    def _spread(self) -> scipy.sparse.csr_array:
        """`visits` over all symbols: one in no unary rule visits itself once."""
        symbols, chained = len(self.shape.symbols), self.shape.chained
        rows, columns = np.nonzero(self.visits)
        others = np.setdiff1d(np.arange(symbols), chained)
        values = np.append(self.visits[rows, columns], np.ones(len(others)))
        place = np.append(chained[rows], others), np.append(chained[columns], others)
        return scipy.sparse.csr_array((values, place), (symbols, symbols))

    def _matrix(self, values: Float64[np.ndarray, " pairs"]) -> scipy.sparse.csr_array:
        shape = self.shape
        return scipy.sparse.csr_array((values, shape.body, shape.first), (len(shape.symbols), len(shape.bodies)))

    def _at_pairs(self, matrix: scipy.sparse.csr_array) -> Float64[np.ndarray, " pairs"]:
        """The entries of a matrix of symbols and bodies at the pairs that chains lead between; it is 0 elsewhere."""
        entries, values = matrix.tocoo(), np.zeros(len(self.shape.body))
        values[self.shape.pairs(entries.row.astype(np.int64), entries.col.astype(np.int64))] = entries.data
        return values

    @cached_property
    def totals(self) -> Float64[np.ndarray, "K 2"]:
        """The probability that each symbol is a phrase, and that it is a word."""
        kinds = self.shape.spelled[self.shape.body].astype(np.int64)
        return np.bincount(2 * self.shape.symbol + kinds, self.sums, 2 * len(self.shape.symbols)).reshape(-1, 2)

    @cached_property
    def shares(self) -> Float64[np.ndarray, "K 2"]:
        """The share of phrases and of words in each symbol that became two; 1 for other symbols."""
        both = self.totals.sum(1, keepdims=True)
        return np.where(self.shape.split[:, None], self.totals / np.where(both > 0, both, 1.0), 1.0)

    # -- the binary form -----------------------------------------------------------------------------------------------

    def form(self, *, whole: bool = False) -> BinaryForm:
        """The binary grammar by name; with `whole`, the symbols that stand in unary chains only are left in."""
        shape, form = self.shape, BinaryForm({}, {}, {})
        divisors = np.where(shape.split[:, None], self.totals, 1.0).tolist()
        shares, halves, labels = self.shares.tolist(), shape.halves, shape.half_of
        kinds = [sorted({labels[name][1] for name in names}) for names in halves]
        parts = [[(halves[k][h], shares[k][h]) for h in kinds[k] if shares[k][h]] for k in range(len(halves))]
        for _, symbol, rule in shape.roots.T.tolist():
            for name, part in parts[symbol]:
                form.roots[name] = float(self.weights[rule]) * part
        kept = (self.sums > 0) | np.isin(np.arange(len(self.sums)), shape.pairs(*shape.direct[:2]))
        columns = (shape.symbol[kept].tolist(), shape.body[kept].tolist(), self.sums[kept].tolist())
        for symbol, number, p in zip(*columns, strict=True):
            body = shape.bodies[number]
            divisor = divisors[symbol][isinstance(body, str)]
            if not divisor:
                continue
            if isinstance(body, str):
                form.lexical[halves[symbol][WORD], body] = p / divisor
                continue
            for left, left_part in parts[body[0]]:
                for right, right_part in parts[body[1]]:
                    form.binary[halves[symbol][PHRASE], left, right] = p / divisor * left_part * right_part
        return form if whole or not len(shape.chained) else _reachable(form)


class Places:
    """Which entries of an `Origin` each probability of the binary grammar made from it is worked out from."""

    def __init__(self, shape: Shape, grammar: Any) -> None:
        self.shape = shape
        halves = np.array([shape.half_of.get(name, (-1, -1)) for name in grammar.symbols], np.int64)
        if (halves < 0).any():
            raise GrammarError("the rules that the grammar was made from have other symbols than it has")
        inner = len(grammar.nonterminals)
        self.symbols, self.halves = halves.T
        bodies = [
            shape.body_number(pair)
            for pair in zip(self.symbols[grammar.left].tolist(), self.symbols[grammar.right].tolist(), strict=True)
        ]
        words = np.array([shape.body_number(word) for word in grammar.words], np.int64)
        self.rules = shape.pairs(self.symbols[grammar.parents], np.array(bodies, np.int64))
        self.words = shape.pairs(self.symbols[inner + grammar.tags], words[grammar.tokens])
        if (self.rules < 0).any() or (self.words < 0).any():
            raise GrammarError("the rules that the grammar was made from lead to other rules than it has")
        self.roots = np.full(len(shape.symbols), -1)  # the rule that makes each a root, -1 for none or for rule -1
        self.rooted = np.zeros(len(shape.symbols), bool)
        self.roots[shape.roots[1]] = shape.roots[2]
        self.rooted[shape.roots[1]] = True

    def arrays(self, origin: Origin, grammar: Any) -> dict[str, Float64[np.ndarray, " _"]]:
        """The grammar's probabilities by attribute; half a symbol that has become impossible keeps those that it has."""
        inner = len(grammar.nonterminals)
        share = origin.shares[self.symbols, self.halves]
        total = np.where(self.shape.split[self.symbols], origin.totals[self.symbols, self.halves], 1.0)
        parents, tags = grammar.parents, inner + grammar.tags
        rules = origin.sums[self.rules] * share[grammar.left] * share[grammar.right]
        words = origin.sums[self.words]
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "start": self.starts(origin) * share,
                "rule_probs": np.where(total[parents] > 0, rules / total[parents], grammar.rule_probs),
                "word_probs": np.where(total[tags] > 0, words / total[tags], grammar.word_probs),
            }

    def check(self, origin: Origin, grammar: Any) -> None:
        """Raise GrammarError where the grammar's probabilities aren't those that the rules add up to."""
        for name, numbers in self.arrays(origin, grammar).items():
            if not np.allclose(numbers, getattr(grammar, name), rtol=1e-9, atol=1e-12):
                raise GrammarError(
                    f"{name} isn't what the rules that the grammar was made from add up to: write it again, or remove origin"
                )

    def best_arrays(self, origin: Origin) -> dict[str, Float64[np.ndarray, " _"]]:
        """Scores whose product over a tree is the probability of the best tree of the rules that it stands for."""
        return {
            "start": self.starts(origin),
            "rule_probs": origin.bests[self.rules],
            "word_probs": origin.bests[self.words],
        }

    def starts(self, origin: Origin) -> Float64[np.ndarray, " S"]:
        """The probability of the rule that makes each symbol a root."""
        return np.where(self.rooted, origin.weights[self.roots], 0.0)[self.symbols]

    def rule_counts(self, origin: Origin, counts: Any) -> Float64[np.ndarray, " rules"]:
        """Expected uses of the rules, from those of the binary grammar's roots, rules and words (`expectation_maximization.Counts`)."""
        shape = self.shape
        expected = np.zeros(len(origin.weights))  # the last are those of made rules
        roots = np.bincount(self.symbols, counts.start, len(shape.symbols))
        np.add.at(expected, shape.roots[2], roots[shape.roots[1]])
        pairs, used = np.append(self.rules, self.words), np.append(counts.rules, counts.words)
        uses = np.bincount(pairs, used, len(shape.body))
        shares = np.divide(uses, origin.sums, out=np.zeros(len(uses)), where=uses > 0)
        # Given its top and its end, a chain comes by X on average as often as all chains do, times what X leads to.
        visits = origin._spread.T.tocsr() @ origin._matrix(shares)
        symbols, bodies, rules = shape.direct
        ended = np.asarray(visits[symbols, bodies], np.float64).ravel()
        np.add.at(expected, rules, ended * origin.weights[rules])
        if len(shape.chained):
            parents, children, rules = shape.unary
            gone = (visits[parents] * origin._matrix(origin.sums)[children]).sum(1)
            np.add.at(expected, rules, np.asarray(gone).ravel() * origin.weights[rules])
        return expected[:-1]

    def expected(
        self, origin: Origin, values: Float64[np.ndarray, " rules"]
    ) -> tuple[Float64[np.ndarray, " S"], Float64[np.ndarray, " R"], Float64[np.ndarray, " L"]]:
        """The expected sum, over the chain that each root, binary rule and lexical rule stands for, of a value per rule of any shape."""
        shape, values = self.shape, np.append(values, 0.0)
        symbols, bodies, rules = shape.direct
        own = np.zeros(len(shape.body))
        own[shape.pairs(symbols, bodies)] = origin.weights[rules] * values[rules]
        parents, children, rules = shape.unary
        size = len(shape.symbols)
        steps = scipy.sparse.csr_array((origin.weights[rules] * values[rules], (parents, children)), (size, size))
        summed = origin._at_pairs(origin._spread @ (steps @ origin._matrix(origin.sums) + origin._matrix(own)))
        mean = np.divide(summed, origin.sums, out=np.zeros(len(summed)), where=origin.sums > 0)
        roots = np.where(self.rooted, values[self.roots], 0.0)[self.symbols]
        return roots, mean[self.rules], mean[self.words]


def _reachable(form: BinaryForm) -> BinaryForm:
    """Without the symbols that stood in unary chains only."""
    below: dict[str, set[str]] = defaultdict(set)
    for parent, left, right in form.binary:
        below[parent] |= {left, right}
    seen, todo = set(form.roots), list(form.roots)
    while todo:
        new = below[todo.pop()] - seen
        seen |= new
        todo += new
    return BinaryForm(form.roots, _of_parents(form.binary, seen), _of_parents(form.lexical, seen))


def _of_parents(table: Mapping[Any, float], parents: set[str]) -> dict[Any, float]:
    return {rule: p for rule, p in table.items() if rule[0] in parents}
