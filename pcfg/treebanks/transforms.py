"""Conversions of trees that can be taken back: binarised, unary chains collapsed, labels marked with their surroundings.

Vertical and horizontal Markovisation as in Klein & Manning (2003), sections 2 and 3.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pcfg.errors import TreebankError
from pcfg.treebanks.trees import Tree

# In a transformed label: UPPER+LOWER is a collapsed chain, CHAIN^PARENT stood under PARENT, CHAIN^PARENT|LEFT|SISTERS is
# a node that only binarisation made. A backslash before one of these signs says that it was in the label all along.
_JOIN, _PARENT, _MADE = "+", "^", "|"
_PIECES = re.compile(r"(?:[^\\+^|]|\\.)+|[+^|]", re.DOTALL)


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
        raise TreebankError(f"the vertical order `v` is {v}: it must be 1 or 2")
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

    roots = tree.fold(build)
    if len(roots) != 1:
        raise TreebankError(f"the tree's root, {tree.label}, is a node that binarisation made: it isn't a whole parse")
    return roots[0]


def is_made(label: str) -> bool:
    """Whether a transformed label belongs to a node that only binarisation made."""
    return _MADE in _PIECES.findall(label)


def chain(label: str) -> tuple[str, ...]:
    """The labels, from the top down, that a transformed label stands for; none for one that binarisation made."""
    if is_made(label):
        return ()
    return tuple(re.sub(r"\\(.)", r"\1", piece, flags=re.DOTALL) for piece in _split(_split(label, _PARENT)[0], _JOIN))


def tag_apart(label: str) -> str:
    """A transformed label of a tag, told apart from the same label over nodes; `chain` drops the sign again."""
    return label + _PARENT


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
