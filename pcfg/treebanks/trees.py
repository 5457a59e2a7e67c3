"""Trees: read from brackets, written as brackets, walked without recursion, so that a long sentence can't overflow."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pcfg.errors import TreebankError
from pcfg.treebanks.drawing import draw
from surgery.reporting.plural import number_of

if TYPE_CHECKING:
    import nltk

Value = TypeVar("Value")

_TOKEN = re.compile(r"[()]|[^\s()]+|\n", re.ASCII)  # U+00A0 and its like stand within words
_ROUND = {"(": "-LRB-", ")": "-RRB-"}
_BRACKETS = str.maketrans(_ROUND)
_NAMED_BRACKETS = _ROUND | {"[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_ALL_BRACKETS = str.maketrans(_NAMED_BRACKETS)
_KINDS = (".mrg", ".txt")  # of tree files in a folder
_LONGEST_REPR = 200
NO_PARSE = "(())"  # what EVALB reads as a sentence that has no parse


class Span(NamedTuple):
    """A labelled bracket over words start..end-1."""

    label: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A tree, as its root: a label over either one word (a preterminal) or one or more nodes.

    Two trees are equal when all their labels, words and shapes are. Raises TreebankError for a node over nothing, and for
    a word beside others, which would be lost.
    """

    label: str
    children: tuple["Tree | str", ...]

    def __post_init__(self) -> None:
        if len(self.children) != 1:
            for child in self.children:
                if child.__class__ is str:
                    raise TreebankError(f"the word {child!r} under {self.label} needs a node and a tag of its own")
            if not self.children:
                raise TreebankError(f"the node {self.label} holds nothing")

    @property
    def is_preterminal(self) -> bool:
        """Whether the node is a tag over a word."""
        return len(self.children) == 1 and isinstance(self.children[0], str)

    @classmethod
    def parse(cls, text: str) -> "Tree":
        """The one tree in a text: `Tree.parse("(S (NP (PRP It)) (VP (VBZ is)))")`."""
        trees = parse_trees(text)
        if len(trees) != 1:
            raise TreebankError(f"one bracketed tree was expected, and the text holds {len(trees)}: {text[:60]!r}")
        return trees[0]

    @classmethod
    def from_nltk(cls, tree: "nltk.Tree") -> "Tree":
        """The same tree as a `Tree`.

        Raises TreebankError for a leaf that isn't a text, a word beside other children, and a node over nothing.
        """
        rows: list[_Row] = []
        stack: list[tuple[Any, str]] = [(tree, "")]
        while stack:
            node, where = stack.pop()
            if not callable(getattr(node, "label", None)):
                raise TreebankError(
                    f"{node!r}{where} isn't a node: a word is a text alone under its tag, as in nltk.Tree('NN', ['dog'])"
                )
            label = str(node.label())
            if len(node) == 1 and isinstance(node[0], str):
                rows.append((label, node[0], 1))
            else:
                rows.append((label, None, len(node)))
                stack.extend((child, f" under {label}") for child in reversed(node))
        return _built(rows)

    def to_nltk(self) -> "nltk.Tree":
        """The same tree for NLTK, which must be installed."""
        import nltk

        return self.fold(lambda node, children: nltk.Tree(node.label, children))

    def nodes(self) -> Iterator["Tree"]:
        """Every node, each before its children, left to right."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(child for child in reversed(node.children) if isinstance(child, Tree))

    def preterminals(self) -> list["Tree"]:
        """The tags with their words, left to right."""
        return [node for node in self.nodes() if node.is_preterminal]

    def words(self) -> list[str]:
        """The words, left to right."""
        return [str(node.children[0]) for node in self.preterminals()]

    def tags(self) -> list[str]:
        """The label over each word."""
        return [node.label for node in self.preterminals()]

    def spans(self) -> list[Span]:
        """Every node above the tags, each before its children, left to right; one span can come twice (unary chains)."""
        spans: list[Span] = []
        stack: list[Tree | int] = [self]  # a number says that the node spans[number] ends here
        position = 0
        while stack:
            node = stack.pop()
            if isinstance(node, int):
                spans[node] = spans[node]._replace(end=position)
            elif node.is_preterminal:
                position += 1
            else:
                stack.append(len(spans))
                spans.append(Span(node.label, position, position))
                stack.extend(child for child in reversed(node.children) if isinstance(child, Tree))
        return spans

    def fold(self, build: Callable[["Tree", list[Any]], Value]) -> Value:
        """Build a value from the leaves up: `build(node, values of its children)`; a word's value is the word."""
        done: list[Any] = []
        stack: list[tuple[Tree | str, bool]] = [(self, False)]
        while stack:
            node, ready = stack.pop()
            if isinstance(node, str):
                done.append(node)
            elif ready:
                first = len(done) - len(node.children)
                done[first:] = [build(node, done[first:])]
            else:
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(node.children))
        return done[0]

    def __eq__(self, other: object) -> bool:
        return self._flat() == other._flat() if isinstance(other, Tree) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._flat()))

    def __reduce__(self) -> Any:
        return _built, (self._flat(),)  # copying and pickling node by node would be recursive

    def __str__(self) -> str:
        return format_tree(self)

    def __repr__(self) -> str:
        whole = f"Tree.parse({format_tree(self)!r})"
        if len(whole) <= _LONGEST_REPR:
            return whole
        words = self.words()
        return (
            shorten(
                f"<Tree: {self.label} over {number_of(len(words), 'word')}: {' '.join(words)}",
                _LONGEST_REPR - 1,
                placeholder=" ...",
            )
            + ">"
        )

    def _repr_html_(self) -> str:
        return draw(self.words(), self.tags(), self.spans())

    def _flat(self) -> "list[_Row]":
        return [
            (node.label, str(node.children[0]) if node.is_preterminal else None, len(node.children))
            for node in self.nodes()
        ]


_Row = tuple[str, str | None, int]  # of a node: label, its word if it is a tag, how many children


def _built(rows: Sequence[_Row]) -> Tree:
    """The tree of some nodes, each before its children, left to right."""
    made: list[Tree] = []
    for label, word, count in reversed(rows):
        made.append(Tree(label, tuple(made.pop() for _ in range(count)) if word is None else (word,)))
    return made.pop()


def escape_brackets(word: str) -> str:
    """A word as the Penn Treebank writes it: ( is -LRB-, and so on."""
    return word.translate(_ALL_BRACKETS)


def bracket_forms(word: str) -> tuple[str, str]:
    """A word with its brackets as the Penn Treebank writes them, and the word that is written so."""
    plain = word
    for bracket, name in _NAMED_BRACKETS.items():
        plain = plain.replace(name, bracket)
    return escape_brackets(word), plain


def format_tree(tree: Tree | None) -> str:
    """A tree in one line of brackets; None, no parse, as `(())`.

    Round brackets in words become -LRB- and -RRB-, as in the Penn Treebank.
    Raises TreebankError for what would not be read back: an empty label or word, one with spaces, a label with brackets.
    """
    if tree is None:
        return NO_PARSE
    pieces: list[str] = []
    stack: list[Tree | str | None] = [tree]
    while stack:
        node = stack.pop()
        if node is None:
            pieces.append(")")
        elif isinstance(node, str):
            pieces.append(f" {_checked(node.translate(_BRACKETS), 'word')}")
        else:
            pieces.append(f"{' ' if pieces else ''}({_checked(node.label, 'label')}")
            stack.append(None)
            stack.extend(reversed(node.children))
    return "".join(pieces)


def format_trees(trees: Iterable[Tree | None]) -> str:
    """A tree a line."""
    return "".join(f"{format_tree(tree)}\n" for tree in trees)


def read_trees(path: str | Path) -> list[Tree]:
    """The bracketed trees of a file, on one line or many each, several a line or not; or of a folder's .mrg and .txt files.

    An outer bracket with no label (Penn's files have one around each tree) is dropped, or called TOP where it holds
    more than one node. Files of a folder, and of those inside it, are read in the order of their paths.

    Raises TreebankError, with file and line, for brackets that don't match, a missing label, text outside a bracket, a
    word that shares its bracket with other things, and a sentence without a parse; also for a folder without such files.
    """
    return [tree for file in _files(Path(path).expanduser()) for tree in parse_trees(_read(file), str(file))]


def read_parses(path: str | Path) -> list[Tree | None]:
    """A parser's output: None for a sentence without a parse, which is `(())`.

    Where trees don't go on from line to line, as EVALB reads them, line k is sentence k: then an empty line too is one
    without a parse, and several trees on a line are one under TOP. Raises: as `read_trees`.
    """
    text, source = _read(path), str(path)
    lines = text.removesuffix("\n").split("\n") if text else []
    if any(line.count("(") != line.count(")") for line in lines):
        return list(_parse(text, source))
    return [_one(list(_parse(line, source, number))) for number, line in enumerate(lines, 1)]


def _one(parses: list[Tree | None]) -> Tree | None:
    trees = [tree for tree in parses if tree is not None]
    return Tree("TOP", tuple(trees)) if len(trees) > 1 else trees[0] if trees else None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    paths = (file for file in path.rglob("*") if file.suffix.lower() in _KINDS and file.is_file())
    files = sorted(file for file in paths if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not files:
        raise TreebankError(
            f"the folder {path} holds no {' or '.join(_KINDS)} files: name one that holds trees, or a file"
        )
    return files


def parse_trees(text: str, source: str = "the text") -> list[Tree]:
    """The trees of a text; `source` names it in errors. See `read_trees`."""
    trees = []
    for number, tree in enumerate(_parse(text, source), 1):
        if tree is None:
            raise TreebankError(f"{source}: tree {number} is {NO_PARSE}, a sentence without a parse: leave it out")
        trees.append(tree)
    return trees


def _read(path: str | Path) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TreebankError(f"{path} isn't UTF-8 text (byte {error.start:,}): convert it first") from None
    except OSError as error:
        raise TreebankError(f"{path} can't be read: {error.strerror}") from None


class _Open:
    """A bracket that isn't closed yet."""

    def __init__(self, line: int) -> None:
        self.line, self.label, self.children, self.word = line, "", list[Tree](), ""


def _parse(text: str, source: str, line: int = 1) -> Iterator[Tree | None]:
    """Trees, and None for each `(())`; `line` is the number of the text's first."""
    stack = list[_Open]()
    empty = False  # whether the outer bracket holds an empty one: "(())"
    for token in _TOKEN.findall(text):
        where = f"{source}, line {line}"
        if token == "\n":
            line += 1
        elif token == "(":
            if stack and stack[-1].word:
                raise TreebankError(f"{where}: the word {stack[-1].word!r} needs a bracket and a tag of its own")
            stack.append(_Open(line))
        elif token != ")":
            _take_word(stack, token, where)
        elif not stack:
            raise TreebankError(f"{where}: a ')' closes nothing")
        else:
            node = stack.pop()
            if not stack:
                if empty and (node.label or node.children):
                    raise TreebankError(f"{where}: a bracket inside a tree holds nothing")
                yield None if empty else _close_outer(node, where)
                empty = False
            elif len(stack) == 1 and not (node.label or node.children or stack[0].label or stack[0].children or empty):
                empty = True
            else:
                stack[-1].children.append(_close(node, where))
    if stack:
        raise TreebankError(f"{source}, line {stack[0].line}: a '(' is never closed")


def _take_word(stack: Sequence[_Open], token: str, where: str) -> None:
    if not stack:
        raise TreebankError(f"{where}: {token[:40]!r} stands outside any bracket")
    node = stack[-1]
    if node.word or node.children:
        raise TreebankError(f"{where}: the word {token[:40]!r} needs a bracket and a tag of its own")
    if node.label:
        node.word = token
    else:
        node.label = token


def _close(node: _Open, where: str) -> Tree:
    if not node.label:
        raise TreebankError(f"{where}: a bracket inside a tree has no label")
    if not node.word and not node.children:
        raise TreebankError(f"{where}: the bracket ({node.label}) holds nothing")
    return Tree(node.label, (node.word,) if node.word else tuple(node.children))


def _close_outer(node: _Open, where: str) -> Tree:
    if node.label:
        return _close(node, where)
    if not node.children:
        raise TreebankError(f"{where}: a bracket holds nothing")
    return node.children[0] if len(node.children) == 1 else Tree("TOP", tuple(node.children))


def _checked(name: str, kind: str) -> str:
    if not name or re.search(r"[\s()]", name, re.ASCII):
        raise TreebankError(
            f"the {kind} {name!r} can't be written between brackets: it is empty or holds spaces or brackets"
        )
    return name
