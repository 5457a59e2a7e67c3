"""Grammar: symbols, binary and lexical rules, roots; checked, read and written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float64, Int32
from numpy.typing import ArrayLike

from pcfg.errors import GrammarError, PcfgError, TreebankError
from pcfg.files import replace_bytes
from pcfg.grammars.binarization import Origin, Places
from pcfg.grammars.branching import Branching
from pcfg.grammars.rules import Rule, Word, checked_rules, format_rules, plain_labels, read_rules
from pcfg.grammars.serialization import arrays_of_json, to_json
from pcfg.grammars.validation import check_grammar
from surgery.jsonfile import JsonError

if TYPE_CHECKING:
    import nltk

    from pcfg.grammars.unary_chains import Chains
    from pcfg.sparse.engine import SparseRules
    from pcfg.treebanks.trees import Tree


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Grammar:
    """A probabilistic context-free grammar in binary form: `Grammar(roots=..., binary=..., lexical=...)`.

    Symbols are numbered jointly: nonterminals 0..N-1, then preterminals N..N+T-1 (S = N + T). A nonterminal heads
    binary rules, a preterminal lexical ones; both may be children of binary rules, and roots. So a nonterminal derives
    two words or more, a preterminal one. Rules of any other shape: `from_text`, `from_nltk`.

    Attributes:
        nonterminals, preterminals, words: names in the order of their numbers.
        start: probability of each symbol to be the root.
        parents, left, right, rule_probs: the binary rules, sorted by parent, left, right.
        tags, tokens, word_probs: the lexical rules: preterminal number (0..T-1), word number, probability; sorted.
        lexicon: where given, scores words in place of `word_probs` when a sentence is parsed.
        transformed: whether symbols are labels of `treebank.transform`, so that `undo` takes trees back.
        origin: the rules of any shape that it was made from, where they are known: `fit` fits those, and trees of the rules'
            own shape have their unary chains.
    """

    nonterminals: tuple[str, ...]
    preterminals: tuple[str, ...]
    words: tuple[str, ...]
    start: Float64[np.ndarray, " S"]
    parents: Int32[np.ndarray, " R"]
    left: Int32[np.ndarray, " R"]
    right: Int32[np.ndarray, " R"]
    rule_probs: Float64[np.ndarray, " R"]
    tags: Int32[np.ndarray, " L"]
    tokens: Int32[np.ndarray, " L"]
    word_probs: Float64[np.ndarray, " L"]
    lexicon: Any = None
    transformed: bool = False
    origin: Origin | None = None

    def __init__(
        self,
        roots: Mapping[str, float],
        binary: Mapping[tuple[str, str, str], float],
        lexical: Mapping[tuple[str, str], float],
        lexicon: Any = None,
    ) -> None:
        """From {symbol: p}, {(parent, left, right): p} and {(preterminal, word): p}; symbols are told apart by use.

        Raises GrammarError for whatever isn't a grammar: see `of_arrays`.
        """
        tags = dict.fromkeys(tag for tag, _ in lexical)
        parents = dict.fromkeys((*(root for root in roots if root not in tags), *(rule[0] for rule in binary)))
        for symbol in parents:
            if symbol in tags:
                raise GrammarError(
                    f"{symbol} has binary and lexical rules: use two symbols, or Grammar.from_text, which makes them"
                )
        numbers = {name: i for i, name in enumerate((*parents, *tags))}
        for rule in binary:
            for child in rule:
                if child not in numbers:
                    raise GrammarError(f"the rule {rule[0]} -> {rule[1]} {rule[2]} uses {child}, which has no rules")
        words = {word: i for i, word in enumerate(dict.fromkeys(word for _, word in lexical))}
        start = np.zeros(len(numbers))
        for root, probability in roots.items():
            start[numbers[root]] = probability
        rules = np.array([[numbers[name] for name in rule] for rule in binary], np.int32).reshape(-1, 3).T
        made = Grammar.of_arrays(
            nonterminals=tuple(parents),
            preterminals=tuple(tags),
            words=tuple(words),
            start=start,
            parents=rules[0],
            left=rules[1],
            right=rules[2],
            rule_probs=list(binary.values()),
            tags=[numbers[tag] - len(parents) for tag, _ in lexical],
            tokens=[words[word] for _, word in lexical],
            word_probs=list(lexical.values()),
            lexicon=lexicon,
        )
        self.__dict__.update(made.__dict__)

    def __repr__(self) -> str:
        sizes = f"{len(self.nonterminals):,} nonterminals, {len(self.preterminals):,} preterminals, {len(self.words):,} words"
        return f"Grammar({sizes}, {len(self.parents):,} binary and {len(self.tags):,} lexical rules)"

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_arrays(
        cls,
        *,
        nonterminals: Iterable[str],
        preterminals: Iterable[str],
        words: Iterable[str],
        start: ArrayLike,
        parents: ArrayLike,
        left: ArrayLike,
        right: ArrayLike,
        rule_probs: ArrayLike,
        tags: ArrayLike,
        tokens: ArrayLike,
        word_probs: ArrayLike,
        lexicon: Any = None,
        transformed: bool = False,
        origin: Origin | None = None,
    ) -> "Grammar":
        """From the attributes themselves; the rules may come in any order.

        Raises GrammarError for an empty grammar, names that can't be used or come twice, rules that come twice,
        probabilities that are negative, not finite or don't sum to 1, and a grammar that derives no sentence.
        """
        made = object.__new__(cls)
        binary = [np.asarray(column, np.int32) for column in (parents, left, right)]
        lexical = [np.asarray(column, np.int32) for column in (tags, tokens)]
        for columns, probabilities, kind in ((binary, rule_probs, "binary"), (lexical, word_probs, "lexical")):
            if len({len(column) for column in (*columns, np.asarray(probabilities))}) > 1:
                raise GrammarError(f"the {kind} rules' columns have different lengths")
        by_rule, by_word = np.lexsort(binary[::-1]), np.lexsort(lexical[::-1])
        made.__dict__.update(
            nonterminals=tuple(nonterminals),
            preterminals=tuple(preterminals),
            words=tuple(words),
            start=np.array(start, np.float64),
            parents=binary[0][by_rule],
            left=binary[1][by_rule],
            right=binary[2][by_rule],
            rule_probs=np.asarray(rule_probs, np.float64)[by_rule],
            tags=lexical[0][by_word],
            tokens=lexical[1][by_word],
            word_probs=np.asarray(word_probs, np.float64)[by_word],
            lexicon=lexicon,
            transformed=transformed,
            origin=origin,
        )
        check_grammar(made)
        return made

    def replaced(self, **changes: Any) -> "Grammar":
        """The same grammar with some attributes changed, checked again: `grammar.replaced(rule_probs=...)`.

        The rules that it was made from are no longer its own then: `origin` goes, unless a new one is among the changes.
        """
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "origin"}
        return Grammar.of_arrays(**kept | changes)

    @classmethod
    def from_trees(
        cls,
        trees: "Iterable[Tree | nltk.Tree]",
        *,
        h: int | float = 1,
        v: int = 2,
        cut_labels: bool | None = None,
        **options: Any,
    ) -> "Grammar":
        """Read off a treebank's trees, ours or NLTK's, as they stand: cleaned and made binary on the way.

        `undo` gives trees in the treebank's own form again. What `cut_labels` does: `pcfg.treebanks.treebank.clean`; other options:
        `pcfg.treebanks.treebank.induce`. Raises TreebankError for no trees, and for orders it doesn't know.
        """
        from pcfg.treebanks.treebank import clean_trees, induce
        from pcfg.treebanks.trees import Tree

        own = (tree if isinstance(tree, Tree) else Tree.from_nltk(tree) for tree in trees)
        return cls.of_arrays(**induce(clean_trees(own, cut_labels=cut_labels), v=v, h=h, **options).arrays())

    @classmethod
    def from_text(cls, text: str, source: str = "the text") -> "Grammar":
        """From rules a line: `0.5 NP -> Det N`, or `NP -> Det N [0.5] | 'her' [0.5]`; words in quotes; # for comments.

        The first rule's parent is the start symbol. Rules of any shape are made binary, and every sentence keeps its
        exact probability; `undo` gives trees the rules' shape again: see `pcfg.grammars.binarization.to_binary`. Texts for NLTK are read
        as NLTK reads them, `\\` at the end of a line that goes on in the next and `% start S` among them; only an empty word
        is refused. Probabilities that were rounded, so that a symbol's sum to 1 within .01, are divided by their sum, with a
        warning.
        """
        return cls.from_rules(*read_rules(text, source))

    @classmethod
    def from_rules(cls, rules: Sequence[Rule], start: str) -> "Grammar":
        """From rules of any shape, as `from_text` reads them: `Rule("NP", ("Det", Word("dog")), 0.5)`."""
        origin = Origin.of_rules(checked_rules(rules, start), start)
        made = cls(*origin.form())
        made.__dict__["origin"] = origin
        return made

    def to_text(self) -> str:
        """What `from_text` reads back, to the last bit; words without a rule and the lexicon are left out."""
        return format_rules(self._rules())

    @classmethod
    def from_nltk(cls, grammar: "nltk.PCFG") -> "Grammar":
        """From any `nltk.PCFG`, made binary as in `from_text`."""
        rules = [
            Rule(
                str(rule.lhs()),
                tuple(Word(str(child)) if isinstance(child, str) else str(child) for child in rule.rhs()),
                float(rule.prob()),
            )
            for rule in grammar.productions()
        ]
        return cls.from_rules(rules, str(grammar.start()))

    def to_nltk(self) -> "nltk.PCFG":
        """The same grammar for NLTK, which must be installed."""
        from nltk import PCFG, Nonterminal, ProbabilisticProduction

        rules = [
            ProbabilisticProduction(
                Nonterminal(rule.parent),
                [child.text if isinstance(child, Word) else Nonterminal(child) for child in rule.children],
                prob=rule.probability,
            )
            for rule in self._rules()
        ]
        return PCFG(rules[0].lhs(), rules)

    @classmethod
    def random(
        cls,
        nonterminals: int,
        preterminals: int,
        words: int,
        seed: int,
        temperature: float = 1.0,
        rules: int | None = None,
    ) -> "Grammar":
        """A random grammar: softmax of normal scores over every symbol's rules; each preterminal has every word.

        Nonterminals share 0.9 of the start distribution, preterminals the rest.

        Args:
            temperature: standard deviation of the scores: 0 makes all rules alike, 10 gives most of the weight to few.
            rules: number of binary rules, drawn at random (each nonterminal has one over two preterminals); None: all.
        """
        from pcfg.grammars.random_grammar import random_arrays

        return cls.of_arrays(**random_arrays(nonterminals, preterminals, words, seed, temperature, rules))

    @classmethod
    def load(cls, path: str | Path) -> "Grammar":
        """Read what `save` wrote. Raises GrammarError, naming the file, for anything else."""
        try:
            made = cls.of_arrays(**arrays_of_json(Path(path).expanduser()))
            if made.origin is not None and made.places is not None:
                made.places.check(made.origin, made)
            return made
        except PcfgError as error:
            raise GrammarError(f"{path}: {error}") from None
        except OSError as error:
            raise GrammarError(f"{path} can't be read: {error.strerror}") from None
        except (KeyError, TypeError, ValueError) as error:
            what = "" if isinstance(error, JsonError) else f"{type(error).__name__} "
            raise GrammarError(f"{path} is damaged ({what}{error}): write it again") from None

    def save(self, path: str | Path) -> None:
        """Write JSON (usually `*.pcfg.json`), a rule a line; probabilities keep every bit."""
        replace_bytes(Path(path).expanduser(), to_json(self).encode())

    def emissions(self, sentence: Sequence[str]) -> Float64[np.ndarray, "n T"]:
        """Probability of each word given each preterminal, or the lexicon's scores where there is one.

        A word that the grammar doesn't know is taken for its bracket (-LRB- for a round one, or back) where the grammar knows
        that, else for its signature, where the grammar has signatures.
        Raises GrammarError, naming word and position, for a word that stays unknown.
        """
        if isinstance(sentence, str):
            raise GrammarError("a sentence is a list of words, not a text: split it into words first")
        if self.lexicon is not None:
            try:
                return self.lexicon.scores(sentence)
            except TreebankError as error:
                raise GrammarError(str(error)) from None
        order, bounds = self._by_word
        found = np.zeros((len(sentence), len(self.preterminals)))
        for position, word in enumerate(sentence):
            number = self.number_of(word, position)
            entries = order[bounds[number] : bounds[number + 1]]
            found[position, self.tags[entries]] = self.word_probs[entries]
        return found

    def number_of(self, word: str, position: int) -> int:
        """The number of a word, of its bracket (-LRB- for a round one, or back) or its signature, at a position (from 0) of its sentence."""
        number = self.word_numbers.get(word)
        if number is not None:
            return number
        from pcfg.treebanks.lexicon import signatures
        from pcfg.treebanks.trees import bracket_forms

        for form in bracket_forms(word):
            if form in self.word_numbers:
                return self.word_numbers[form]
        for signature in signatures(word, position):
            if signature in self.word_numbers:
                return self.word_numbers[signature]
        raise GrammarError(
            f"the word {word!r} (number {position + 1} of its sentence) is unknown: leave the sentence out, "
            "or use a grammar with signatures for unknown words"
        )

    @property
    def symbols(self) -> tuple[str, ...]:
        """Nonterminals, then preterminals."""
        return self.nonterminals + self.preterminals

    @property
    def roots(self) -> dict[str, float]:
        """The start distribution by name, without its zeros."""
        return {name: p for name, p in zip(self.symbols, self.start.tolist(), strict=True) if p}

    @property
    def binary(self) -> dict[tuple[str, str, str], float]:
        """The binary rules by name."""
        columns = (self.parents.tolist(), self.left.tolist(), self.right.tolist(), self.rule_probs.tolist())
        names = self.symbols
        return {(names[a], names[b], names[c]): p for a, b, c, p in zip(*columns, strict=True)}

    @property
    def lexical(self) -> dict[tuple[str, str], float]:
        """The lexical rules by name."""
        columns = (self.tags.tolist(), self.tokens.tolist(), self.word_probs.tolist())
        return {(self.preterminals[t], self.words[w]): p for t, w, p in zip(*columns, strict=True)}

    @cached_property
    def word_numbers(self) -> dict[str, int]:
        """Each word's number."""
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def plain_labels(self) -> dict[str, tuple[str, ...]]:
        """What each symbol is called where trees have the shape that the grammar was made from: labels, top first.

        A symbol that only making rules binary brought about has none.
        """
        from pcfg.treebanks.treebank import chain

        if self.transformed:
            return {name: chain(name) for name in self.symbols}
        over_words, roots = (
            set(self.preterminals),
            {name for name, p in zip(self.symbols, self.start, strict=True) if p},
        )
        return {
            name: plain_labels(name, over_word=name in over_words) or ((name,) if name in roots else ())
            for name in self.symbols
        }

    def undo(self, tree: "Tree") -> "Tree":
        """A tree in the grammar's symbols as in the treebank, or of the rules' own shape, that the grammar was made from.

        Chains of unary rules of `from_text` and `from_nltk` are the likeliest that a node may stand for; `plain=True` where
        trees are drawn or counted gives them as they were drawn, or each. A word beside others stands under a preterminal of
        its own. Raises GrammarError for a tree with rules that the grammar lacks. A grammar whose rules aren't known, as in
        files of earlier versions, gives the tops of chains only.
        """
        from pcfg.treebanks.treebank import relabelled

        if self.chains is not None:
            return self.chains.plain_tree(tree)
        return relabelled(tree, self.plain_labels.__getitem__)

    @cached_property
    def places(self) -> Places | None:
        """Where its numbers come from among those of the rules that it was made from."""
        return None if self.origin is None else Places(self.origin.shape, self)

    @cached_property
    def chains(self) -> "Chains | None":
        """The unary chains that its rules stand for, where the rules that it was made from are known."""
        from pcfg.grammars.unary_chains import Chains

        return None if self.origin is None else Chains(self, self.origin)

    @cached_property
    def likeliest(self) -> "Grammar":
        """With the probability of the best chain in place of the sum over chains: scores for finding the best tree."""
        if self.origin is None or self.places is None or not self.origin.ambiguous:
            return self
        made = object.__new__(Grammar)  # scores are no probabilities, so nothing is checked
        made.__dict__.update(self.__getstate__() | self.places.best_arrays(self.origin) | {"origin": None})
        return made

    @cached_property
    def branching(self) -> Branching:
        """The binary rules as a branching process."""
        rules = (self.parents, self.left, self.right, self.rule_probs)
        return Branching(len(self.nonterminals), len(self.symbols), *rules)

    @cached_property
    def compiled(self) -> "SparseRules":
        """The binary rules as the sparse engine wants them."""
        from pcfg.sparse.engine import SparseRules

        columns = (self.parents, self.left, self.right, self.rule_probs)
        return SparseRules.build(len(self.nonterminals), len(self.preterminals), *columns)

    @property
    def useless(self) -> tuple[str, ...]:
        """The symbols that no tree over words holds, so that they can go: see `pruned`."""
        return tuple(name for name, keep in zip(self.symbols, self.useful, strict=True) if not keep)

    @cached_property
    def expected_length(self) -> float:
        """The mean number of words of a sentence, exactly; infinity where it has none."""
        reachable = self.branching.reachable(self.start)
        lengths = self.branching.expected_lengths(reachable)
        return math.inf if np.isinf(lengths).any() else float(lengths @ self.start)

    @property
    def spectral_radius(self) -> float:
        """The largest eigenvalue of the mean numbers of nonterminal children, over what can be reached.

        Below 1, trees end and sentences have a mean length. Takes seconds from some thousand nonterminals on.
        """
        matrix = self.branching.matrix(self.branching.reachable(self.start))
        return float(np.abs(np.linalg.eigvals(matrix)).max()) if len(matrix) else 0.0

    def check_proper(self) -> None:
        """Refuse a grammar whose sentences have no finite mean length; parsing does with one, free sampling doesn't."""
        if math.isinf(self.expected_length):
            raise GrammarError(
                "the expected length of a sentence is infinite: give rules that end sooner more weight, limit the length, "
                "or take grammar.pruned(), which keeps the trees that end"
            )

    def pruned(self) -> "Grammar":
        """Without symbols, rules and words that no tree over words holds; posteriors of all sentences stay the same.

        Where trees may go on for ever, the probabilities become those given that they end: p q_B q_C / q_A for
        A -> B C, with q the probability of ending (Chi 1999, theorem 1). With a lexicon, whose scores have a column for
        each preterminal, all preterminals stay. The rules of any shape that it was made from are pruned likewise; a symbol
        that had phrases and words, and has one of them now, is one symbol again.
        """
        from pcfg.grammars.pruning import pruned

        return pruned(self)

    @property
    def useful(self) -> Bool[np.ndarray, " S"]:
        """Which symbols are in some tree over words."""
        generating = self.branching.generating()
        b, n = self.branching, len(self.nonterminals)
        ending = generating[b.left] & generating[b.right]
        rules = (b.parents[ending], b.left[ending], b.right[ending], b.probs[ending])
        return Branching(n, b.symbols, *rules).reachable(self.start * generating)

    @cached_property
    def _by_word(self) -> tuple[np.ndarray, np.ndarray]:
        """Lexical rules ordered by word, and where each word's begin."""
        order = np.argsort(self.tokens, kind="stable")
        return order, np.searchsorted(self.tokens[order], np.arange(len(self.words) + 1))

    def _rules(self) -> list[Rule]:
        """The rules that it was made from, or its own, with a new start symbol where a distribution over roots must be told.

        The start symbol's come first.
        """
        if self.origin is not None:
            return self.origin.rules
        roots = self.roots
        if list(roots.values()) == [1.0]:
            start, top = next(iter(roots)), list[Rule]()
        else:
            start = "ROOT"
            while start in self.symbols:
                start += "/"
            top = [Rule(start, (root,), p) for root, p in roots.items()]
        rules = [Rule(a, (b, c), p) for (a, b, c), p in self.binary.items()]
        rules += [Rule(tag, (Word(word),), p) for (tag, word), p in self.lexical.items()]
        return top + sorted(rules, key=lambda rule: rule.parent != start)
