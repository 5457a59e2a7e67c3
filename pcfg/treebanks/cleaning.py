"""Trees as parsers are trained and scored on them: without traces, functions and the bracket around the whole."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pcfg.treebanks.trees import Tree

_EMPTY = "-NONE-"
OUTER = frozenset(["TOP", "ROOT", "S1", ""])  # what treebanks and parsers call a bracket around the whole tree
# The Penn Treebank's function tags (Bies et al. 1995, section 2.2), and the index of a gap: NP=2.
_FUNCTION = re.compile(
    r"(?<=.)[-=](ADV|BNF|CLF|CLR|DIR|DTV|EXT|HLN|LGS|LOC|MNR|NOM|PRD|PRP|PUT|SBJ|TMP|TPC|TTL|VOC)(?=[-=]|$)|(?<=.)=\d+$"
)


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
    """`clean` of each tree; those that hold no word go. Without `cut_labels`, labels are cut in all trees or in none."""
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
