"""The grammar of a treebank: rules counted over its transformed trees, rare words by their signatures."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcfg.errors import TreebankError
from pcfg.treebanks.lexicon import SmoothedLexicon, frequent_signatures, known_form, signatures
from pcfg.treebanks.transforms import tag_apart, transform
from pcfg.treebanks.trees import Tree
from surgery.reporting.plural import number_of


@dataclass(frozen=True, eq=False)
class Induced:
    """A grammar read off trees, as counts.

    Attributes:
        nonterminals, preterminals, words: names, sorted; among the words are signatures, for the rare ones.
        roots: how often each symbol is the root; symbols are numbered jointly, nonterminals first.
        rules: how often (parent, left, right) comes.
        lexical: how often (preterminal, word) comes, in their own numbers.
        lexicon: scores for words, where `smooth_lexicon` asked for them.
        trees: how many trees were counted; `tokens`: how many words.
    """

    nonterminals: tuple[str, ...]
    preterminals: tuple[str, ...]
    words: tuple[str, ...]
    roots: dict[int, int]
    rules: dict[tuple[int, int, int], int]
    lexical: dict[tuple[int, int], int]
    lexicon: SmoothedLexicon | None
    trees: int
    tokens: int

    def __repr__(self) -> str:
        symbols = len(self.nonterminals) + len(self.preterminals)
        return f"<Induced: {number_of(symbols, 'symbol')}, {number_of(len(self.rules), 'binary rule')}, from {number_of(self.trees, 'tree')} of {number_of(self.tokens, 'word')}>"

    def arrays(self) -> dict[str, Any]:
        """Relative frequencies (the maximum-likelihood estimate), as keywords for `Grammar.of_arrays`."""
        start = np.zeros(len(self.nonterminals) + len(self.preterminals))
        for symbol, count in self.roots.items():
            start[symbol] = count / self.trees
        rules, rule_probs = _frequencies(self.rules, 3)
        lexical, word_probs = _frequencies(self.lexical, 2)
        return {
            "nonterminals": self.nonterminals,
            "preterminals": self.preterminals,
            "words": self.words,
            "start": start,
            **dict(zip(("parents", "left", "right"), rules, strict=True)),
            "rule_probs": rule_probs,
            **dict(zip(("tags", "tokens"), lexical, strict=True)),
            "word_probs": word_probs,
            "lexicon": self.lexicon,
            "transformed": True,
        }


def induce(
    trees: Sequence[Tree],
    *,
    v: int = 2,
    h: int | float = 1,
    min_count: int = 5,
    smooth_lexicon: bool = True,
    annotate_tags: bool = True,
    k: int | float = 1.0,
) -> Induced:
    """Count the rules of trees (cleaned already) after `transform`.

    Args:
        min_count: words seen fewer times are replaced by signatures (`lexicon.signatures`) in the lexical rules.
        smooth_lexicon: also make a `SmoothedLexicon`, which a parser then uses in place of the lexical rules.
        k: how many sightings a signature is worth in it.

    Raises TreebankError when there are no trees.
    """
    if not trees:
        raise TreebankError("there are no trees to read a grammar from")
    counts = Counter(word for tree in trees for word in tree.words())
    rare = {word for word, count in counts.items() if count < min_count}
    places = [(w, i) for tree in trees for i, w in enumerate(tree.words()) if w in rare]
    vocabulary = (counts.keys() - rare) | frequent_signatures(places, min_count)
    changed = [transform(tree, v=v, h=h, annotate_tags=annotate_tags) for tree in trees]
    inner = {node.label for tree in changed for node in tree.nodes() if not node.is_preterminal}
    uses = _Uses()
    for tree in changed:
        uses.add(tree, inner, vocabulary, rare)
    nonterminals, preterminals = tuple(sorted(inner)), tuple(sorted({tag for tag, _ in uses.lexical}))
    words = tuple(sorted({form for _, form in uses.lexical}))
    symbol = {name: i for i, name in enumerate(nonterminals + preterminals)}
    tag = {name: i for i, name in enumerate(preterminals)}
    token = {name: i for i, name in enumerate(words)}
    return Induced(
        nonterminals,
        preterminals,
        words,
        {symbol[name]: count for name, count in uses.roots.items()},
        {(symbol[a], symbol[b], symbol[c]): count for (a, b, c), count in uses.rules.items()},
        {(tag[name], token[form]): count for (name, form), count in uses.lexical.items()},
        uses.lexicon(tag, k) if smooth_lexicon else None,
        len(changed),
        sum(counts.values()),
    )


@dataclass(frozen=True)
class _Uses:
    """How often transformed trees use what, by name.

    Attributes:
        roots, rules, lexical: roots; (parent, left, right); (tag, word or the signature in its place).
        seen: (word, tag); `signed`: (signature, tag) of rare words.
    """

    roots: Counter[str] = field(default_factory=Counter)
    rules: Counter[tuple[str, ...]] = field(default_factory=Counter)
    lexical: Counter[tuple[str, str]] = field(default_factory=Counter)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    signed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, tree: Tree, inner: Set[str], vocabulary: Set[str], rare: Set[str]) -> None:
        """Count a tree.

        Args:
            inner: the labels that stand over nodes in any tree.
            vocabulary: words and signatures that are told apart; `rare`: the words that signatures stand for.
        """
        self.roots[_name(tree, inner)] += 1
        position = 0
        for node in tree.nodes():
            name = _name(node, inner)
            if not node.is_preterminal:
                self.rules[name, *(_name(child, inner) for child in node.children if isinstance(child, Tree))] += 1
                continue
            word = str(node.children[0])
            self.lexical[name, known_form(word, position, vocabulary)] += 1
            self.seen[word, name] += 1
            if word in rare:
                self.signed.update((s, name) for s in signatures(word, position) if s in vocabulary)
            position += 1

    def lexicon(self, tags: Mapping[str, int], k: int | float) -> SmoothedLexicon:
        """Smoothed scores of these words and signatures; `tags` gives the number of each tag."""
        seen, signed = (
            {(form, tags[name]): count for (form, name), count in table.items()} for table in (self.seen, self.signed)
        )
        return SmoothedLexicon.count(seen, signed, len(tags), k)


def _name(node: Tree, inner: Set[str]) -> str:
    """The symbol of a node; a label that stands over words here and over nodes there is two symbols."""
    return tag_apart(node.label) if node.is_preterminal and node.label in inner else node.label


def _frequencies(counts: dict[Any, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array(sorted(counts), np.int32).reshape(-1, width)
    values = np.array([counts[tuple(key)] for key in keys.tolist()], np.float64)
    totals = np.bincount(keys[:, 0], values) if len(keys) else np.zeros(0)
    return keys.T.copy(), values / totals[keys[:, 0]]
