"""Grammar: symbols, binary and lexical rules, roots; checked, read and written."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pcfg.errors import GrammarError, PcfgError
from pcfg.grammars.arrays import GrammarArrays
from pcfg.grammars.binarization import Origin
from pcfg.grammars.json_format import arrays_of_json, json_of_arrays
from pcfg.grammars.nltk_format import nltk_of_rules, rules_of_nltk
from pcfg.grammars.pruning import pruned_arrays, pruned_rules
from pcfg.grammars.random_grammar import random_arrays
from pcfg.grammars.rules import Rule, Word, checked_rules, plain_labels
from pcfg.grammars.text_format import format_rules, read_rules
from pcfg.grammars.unary_chains import Chains
from pcfg.grammars.validation import check_grammar
from surgery.files import replace_bytes
from surgery.jsonfile import JsonError
from surgery.reporting.page import Table, Text, render
from surgery.reporting.plural import number_of

if TYPE_CHECKING:
    import nltk

    from pcfg.sparse.engine import SparseRules
    from pcfg.treebanks.trees import Tree

GRAMMAR_FILE = "grammar.pcfg.json"  # in folders that hold a grammar beside other things
_SHOWN = 10  # roots and rules in a notebook


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Grammar(GrammarArrays):
    """A probabilistic context-free grammar in binary form: `Grammar(roots=..., binary=..., lexical=...)`.

    A nonterminal heads binary rules, a preterminal lexical ones, so a nonterminal derives two words or more and a
    preterminal one; `GrammarArrays` says how they are numbered and kept. Rules of any other shape: `from_text`, `from_nltk`.
    """

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
        sizes = f"{number_of(len(self.nonterminals), 'nonterminal')}, {number_of(len(self.preterminals), 'preterminal')}, {number_of(len(self.words), 'word')}"
        return f"Grammar({sizes}, {len(self.parents):,} binary and {len(self.tags):,} lexical rules)"

    def _repr_html_(self) -> str:
        roots = sorted(self.roots.items(), key=lambda root: -root[1])
        rules = sorted(self.rules_of(roots[0][0]), key=lambda rule: -rule[1])
        tables = {"Roots": roots, f"Rules of {roots[0][0]}": rules}
        shown = [
            Table(f"{title}, the likeliest first.", [title.partition(" ")[0].lower(), "probability"], rows[:_SHOWN])
            for title, rows in tables.items()
        ]
        return render([Text(repr(self)), *shown])

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

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

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

        `undo` gives trees in the treebank's own form again. What `cut_labels` does: `pcfg.treebanks.cleaning.clean`; other options:
        `pcfg.treebanks.induction.induce`. Raises TreebankError for no trees, and for orders it doesn't know.
        """
        from pcfg.treebanks.cleaning import clean_trees
        from pcfg.treebanks.induction import induce
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
        """A text that `from_text` reads back to the last bit; words without a rule and the lexicon are left out."""
        return format_rules(self._rules())

    @classmethod
    def from_nltk(cls, grammar: "nltk.PCFG") -> "Grammar":
        """From any `nltk.PCFG`, made binary as in `from_text`."""
        return cls.from_rules(*rules_of_nltk(grammar))

    def to_nltk(self) -> "nltk.PCFG":
        """The same grammar for NLTK, which must be installed."""
        return nltk_of_rules(self._rules())

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
        replace_bytes(Path(path).expanduser(), json_of_arrays(self.__getstate__()).encode())

    @cached_property
    def plain_labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of each symbol, top first, in trees of the form that the grammar was made from.

        A symbol that only making rules binary brought about has none.
        """
        from pcfg.treebanks.transforms import chain

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
        """Take binarisation back: a tree over the grammar's symbols in the form of the treebank or rules it was made from.

        Chains of unary rules of `from_text` and `from_nltk` are the likeliest that a node may stand for; `plain=True` where
        trees are drawn or counted gives them as they were drawn, or each. A word beside others stands under a preterminal of
        its own. Raises GrammarError for a tree with rules that the grammar lacks. A grammar whose rules aren't known, as in
        files of earlier versions, gives the tops of chains only.
        """
        from pcfg.treebanks.transforms import relabelled

        if self.chains is not None:
            return self.chains.plain_tree(tree)
        return relabelled(tree, self.plain_labels.__getitem__)

    @cached_property
    def chains(self) -> Chains | None:
        """The unary chains that its rules stand for, where the rules that it was made from are known."""
        return None if self.origin is None else Chains(self, self.origin)

    @cached_property
    def whole(self) -> "Grammar | None":
        """The grammar with the symbols that stand in unary chains only; None where its original rules aren't known.

        They are in no tree of the binary grammar, but have inside scores of their own here.
        """
        return None if self.origin is None else Grammar(*self.origin.form(whole=True))

    @cached_property
    def likeliest(self) -> "Grammar":
        """The grammar with the likeliest chain's probability in place of the sum over chains: scores to find the best tree by."""
        if self.origin is None or self.places is None or not self.origin.ambiguous:
            return self
        made = object.__new__(Grammar)  # scores are no probabilities, so nothing is checked
        made.__dict__.update(self.__getstate__() | self.places.best_arrays(self.origin) | {"origin": None})
        return made

    @cached_property
    def compiled(self) -> "SparseRules":
        """The binary rules in the tables of the sparse engine."""
        from pcfg.sparse.engine import SparseRules

        columns = (self.parents, self.left, self.right, self.rule_probs)
        return SparseRules.build(len(self.nonterminals), len(self.preterminals), *columns)

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
        """The grammar without symbols, rules and words that no tree over words holds; posteriors of all sentences stay.

        Where trees may go on for ever, the probabilities become those given that they end: p q_B q_C / q_A for
        A -> B C, with q the probability of ending (Chi 1999, theorem 1). With a lexicon, whose scores have a column for
        each preterminal, all preterminals stay. The rules of any shape that it was made from are pruned likewise; a symbol
        that had phrases and words, and has one of them now, is one symbol again.
        """
        if self.origin is None or self.whole is None:
            return Grammar.of_arrays(**pruned_arrays(self))
        return Grammar.from_rules(pruned_rules(self.origin, self.whole), self.origin.shape.start)

    def _rules(self) -> list[Rule]:
        """The rules that it was made from, or its own; those of the start symbol first.

        Where several symbols may be the root, a new start symbol goes to each of them.
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
