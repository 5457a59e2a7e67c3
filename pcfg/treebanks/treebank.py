"""Treebanks: NLTK's Penn sample, cleaning, reversible transforms, and the grammar that a bank of trees holds.

The transforms are those of Klein & Manning (2003), sections 2 and 3: vertical and horizontal Markovisation.
"""

import math
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pcfg.errors import TreebankError
from pcfg.treebanks.lexicon import SmoothedLexicon, frequent_signatures, known_form, signatures
from pcfg.treebanks.trees import Tree, parse_trees

_EMPTY = "-NONE-"
OUTER = frozenset(["TOP", "ROOT", "S1", ""])  # what treebanks and parsers call a bracket around the whole tree
# The Penn Treebank's function tags (Bies et al. 1995, section 2.2), and the index of a gap: NP=2.
_FUNCTION = re.compile(
    r"(?<=.)[-=](ADV|BNF|CLF|CLR|DIR|DTV|EXT|HLN|LGS|LOC|MNR|NOM|PRD|PRP|PUT|SBJ|TMP|TPC|TTL|VOC)(?=[-=]|$)|(?<=.)=\d+$"
)
_HOMES = ("~/nltk_data", "/usr/share/nltk_data", "/usr/local/share/nltk_data", "/usr/lib/nltk_data")

# In a transformed label: UPPER+LOWER is a collapsed chain, CHAIN^PARENT stood under PARENT, CHAIN^PARENT|LEFT|SISTERS is
# a node that only binarisation made. A backslash before one of these signs says that it was in the label all along.
_JOIN, _PARENT, _MADE = "+", "^", "|"
_PIECES = re.compile(r"(?:[^\\+^|]|\\.)+|[+^|]", re.DOTALL)


def nltk_treebank() -> list[Tree]:
    """The 3,914 trees of NLTK's Penn Treebank sample, as they stand, in the order of the files.

    Looks for corpora/treebank (a folder or a zip file) in the folders that NLTK_DATA names, then where NLTK keeps its
    data. NLTK itself isn't needed. Raises TreebankError when it is nowhere.
    """
    named = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    for home in (*named, *_HOMES):
        corpora = Path(home).expanduser() / "corpora"
        files = sorted((corpora / "treebank" / "combined").glob("wsj_*.mrg"))
        if files:
            return [tree for file in files for tree in parse_trees(file.read_text("utf-8-sig"), str(file))]
        if (corpora / "treebank.zip").is_file():
            return _zipped(corpora / "treebank.zip")
    where = f"NLTK_DATA ({os.pathsep.join(named)})" if named else "the usual places, and NLTK_DATA isn't set"
    raise TreebankError(
        f"NLTK's treebank sample isn't in {where}: set NLTK_DATA to the folder that holds corpora/treebank, "
        "or fetch it with python -m nltk.downloader treebank"
    )


def _zipped(path: Path) -> list[Tree]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if re.fullmatch(r"treebank/combined/wsj_\d+\.mrg", n))
            texts = [(f"{path}/{name}", archive.read(name).decode("utf-8-sig")) for name in names]
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise TreebankError(f"{path} is damaged ({error}): fetch it again") from None
    return [tree for name, text in texts for tree in parse_trees(text, name)]


# -- cleaning --------------------------------------------------------------------------------------------------------


def clean(tree: Tree, *, collapse: bool = True, cut_labels: bool | None = None) -> Tree | None:
    """The tree as parsers are trained and scored on it; None when no word is left.

    Empty nodes (-NONE-) go, with whatever held nothing else; so does an outer TOP, ROOT or S1.

    Args:
        collapse: a node over just a node of its own label goes: for training. EVALB counts both, so not for scoring.
        cut_labels: labels lose functions and indices (`strip_function`); None: where there are some (`has_functions`).
    """
    cut = has_functions([tree]) if cut_labels is None else cut_labels

    def build(node: Tree, children: list[Any]) -> Tree | None:
        label = strip_function(node.label) if cut else node.label
        if node.is_preterminal:
            return None if node.label == _EMPTY else Tree(label, node.children)
        kept = tuple(child for child in children if child is not None)
        if collapse and len(kept) == 1 and kept[0].label == label:
            return kept[0]
        return Tree(label, kept) if kept else None

    cleaned = tree.fold(build)
    while cleaned is not None and cleaned.label in OUTER and len(cleaned.children) == 1 and not cleaned.is_preterminal:
        (cleaned,) = cleaned.children  # type: ignore[assignment]
    return cleaned


def clean_trees(trees: Iterable[Tree], *, collapse: bool = True, cut_labels: bool | None = None) -> list[Tree]:
    """`clean` of each tree, without those that hold no word; with None, all decide together whether labels are cut."""
    bank = list(trees)
    cut = has_functions(bank) if cut_labels is None else cut_labels
    return [cleaned for tree in bank if (cleaned := clean(tree, collapse=collapse, cut_labels=cut)) is not None]


def has_functions(trees: Iterable[Tree]) -> bool:
    """Whether trees are annotated as the Penn Treebank's are: one holds an empty node or a label with a function tag.

    Otherwise what follows a hyphen is part of the symbol's name, as in the NT-1 and NT-2 of an induced grammar.
    """
    labels = {node.label for tree in trees for node in tree.nodes()}
    return _EMPTY in labels or any(map(_FUNCTION.search, labels))


@lru_cache(1 << 14)
def strip_function(label: str) -> str:
    """A label without functions and indices: `NP-SBJ-1` and `NP=2` become NP, `-LRB-` stays."""
    return label if label.startswith("-") else re.split("[-=]", label, maxsplit=1)[0] or label


# -- transforms ------------------------------------------------------------------------------------------------------


def transform(tree: Tree, *, v: int = 2, h: int | float = 1, annotate_tags: bool = True) -> Tree:
    """A tree of binary nodes and tags alone, which `undo` turns back into the same tree.

    Chains of unary nodes become one node. With v = 2 each node's label says its parent's; `annotate_tags` does so for
    tags, whatever v is. A node of more than two children is split to the right, and what the split makes remembers the
    last h children to its left (math.inf: all).
    """
    check_orders(v, h)

    def build(node: Tree, children: list[Any]) -> Tree:
        if node.is_preterminal:
            return Tree(_escape(node.label), node.children)
        label = _escape(node.label)
        if len(children) == 1:
            return Tree(f"{label}{_JOIN}{children[0].label}", children[0].children)
        return Tree(label, tuple(children))

    def annotate(node: Tree, children: list[Any]) -> Tree:
        if node.is_preterminal:
            return node
        parent = _split(node.label, _JOIN)[-1]  # of a chain, the node that the children stood under
        marked = [
            Tree(f"{child.label}{_PARENT}{parent}", child.children)
            if (annotate_tags if child.is_preterminal else v == 2)
            else child
            for child in children
        ]
        return Tree(node.label, tuple(marked))

    return _binarise(tree.fold(build).fold(annotate), h)


def check_orders(v: int, h: int | float) -> None:
    """Raise TreebankError for orders that `transform` doesn't know."""
    if v not in (1, 2):
        raise TreebankError(f"the vertical order v is {v}: it must be 1 or 2")
    if not (h == math.inf or (h >= 0 and h == int(h))):
        raise TreebankError(f"the horizontal order h is {h}: it must be 0, 1, 2 ... or inf")


def _binarise(tree: Tree, h: int | float) -> Tree:
    def build(node: Tree, children: list[Any]) -> Tree:
        if len(children) <= 2:
            return Tree(node.label, tuple(children))
        # Sisters stand under the same parent, so their own names are enough.
        names = [_split(child.label, _PARENT)[0] for child in children]
        rest: Tree = children[-1]
        for i in range(len(children) - 2, -1, -1):
            past = names[max(0, i - int(min(h, i))) : i]
            label = node.label + (_MADE + _MADE.join(past) if i else "")
            rest = Tree(label, (children[i], rest))
        return rest

    return tree.fold(build)


def undo(tree: Tree) -> Tree:
    """The tree that `transform` was given, or, for a parse, the tree that it stands for."""
    return relabelled(tree, chain)


def relabelled(tree: Tree, labels_of: Callable[[str], Sequence[str]]) -> Tree:
    """The tree with each node as a chain of nodes, top first, of the labels given; where there are none, its children stay.

    Raises TreebankError where the root would go.
    """

    def build(node: Tree, children: list[Any]) -> list[Tree]:
        if node.is_preterminal:
            below: tuple[Tree | str, ...] = node.children
        else:
            below = tuple(child for group in children for child in group)
        for label in reversed(labels_of(node.label)):
            below = (Tree(label, below),)
        return [child for child in below if isinstance(child, Tree)]

    found = tree.fold(build)
    if len(found) != 1:
        raise TreebankError(f"the tree's root, {tree.label}, is a node that binarisation made: it isn't a whole parse")
    return found[0]


def is_made(label: str) -> bool:
    """Whether a transformed label belongs to a node that only binarisation made."""
    return _MADE in _PIECES.findall(label)


def chain(label: str) -> tuple[str, ...]:
    """The labels, from the top down, that a transformed label stands for; none for one that binarisation made."""
    if is_made(label):
        return ()
    return tuple(re.sub(r"\\(.)", r"\1", piece, flags=re.DOTALL) for piece in _split(_split(label, _PARENT)[0], _JOIN))


def _escape(label: str) -> str:
    return re.sub(r"([\\+^|])", r"\\\1", label)


def _split(label: str, sign: str) -> list[str]:
    parts = [""]
    for piece in _PIECES.findall(label):
        if piece == sign:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


# -- the grammar of a treebank ---------------------------------------------------------------------------------------


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
    rare = [(w, i) for tree in trees for i, w in enumerate(tree.words()) if counts[w] < min_count]
    vocabulary = {word for word, count in counts.items() if count >= min_count} | frequent_signatures(rare, min_count)
    changed = [transform(tree, v=v, h=h, annotate_tags=annotate_tags) for tree in trees]
    inner = {node.label for tree in changed for node in tree.nodes() if not node.is_preterminal}
    roots, rules, lexical, seen, signed = (Counter[Any]() for _ in range(5))
    for tree in changed:
        roots[_name(tree, inner)] += 1
        position = 0
        for node in tree.nodes():
            name = _name(node, inner)
            if node.is_preterminal:
                word = str(node.children[0])
                form = known_form(word, position, vocabulary)
                lexical[name, form] += 1
                seen[word, name] += 1
                if counts[word] < min_count:
                    signed.update((s, name) for s in signatures(word, position) if s in vocabulary)
                position += 1
            else:
                rules[name, *(_name(child, inner) for child in node.children if isinstance(child, Tree))] += 1
    nonterminals = tuple(sorted(inner))
    preterminals = tuple(sorted({tag for tag, _ in lexical}))
    words = tuple(sorted(form for form in {form for _, form in lexical}))
    symbol = {name: i for i, name in enumerate(nonterminals + preterminals)}
    tag = {name: i for i, name in enumerate(preterminals)}
    token = {name: i for i, name in enumerate(words)}
    lexicon = None
    if smooth_lexicon:
        lexicon = SmoothedLexicon.count(
            {(form, tag[name]): count for (form, name), count in seen.items()},
            {(form, tag[name]): count for (form, name), count in signed.items()},
            len(preterminals),
            k,
        )
    return Induced(
        nonterminals,
        preterminals,
        words,
        {symbol[name]: count for name, count in roots.items()},
        {(symbol[a], symbol[b], symbol[c]): count for (a, b, c), count in rules.items()},
        {(tag[name], token[form]): count for (name, form), count in lexical.items()},
        lexicon,
        len(changed),
        sum(counts.values()),
    )


def _name(node: Tree, inner: set[str]) -> str:
    # A label that stands over words here and over nodes there is two symbols; `undo` drops what follows the sign.
    return node.label + _PARENT if node.is_preterminal and node.label in inner else node.label


def _frequencies(counts: dict[Any, int], width: int) -> tuple[np.ndarray, np.ndarray]:
    keys = np.array(sorted(counts), np.int32).reshape(-1, width)
    values = np.array([counts[tuple(key)] for key in keys.tolist()], np.float64)
    totals = np.bincount(keys[:, 0], values) if len(keys) else np.zeros(0)
    return keys.T.copy(), values / totals[keys[:, 0]]
