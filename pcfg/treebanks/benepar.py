"""Trees for raw text from a trained parser, benepar (Kitaev, Cao & Klein 2019), behind one function: extra `benepar`."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from pcfg.errors import MissingPackageError, PcfgError
from pcfg.treebanks.cleaning import clean
from pcfg.treebanks.trees import Tree, escape_brackets
from surgery.progress import Progress, silent

MODEL = "benepar_en3"


@runtime_checkable
class Parser(Protocol):
    """A parser as benepar's: anything that parses lists of words to `nltk.Tree`."""

    def parse_sents(self, sents: Any) -> Any:
        """A tree for each list of words, in order."""


def benepar_parser(model: str = MODEL, batch_size: int = 64) -> Parser:
    """benepar with a model by name, as `python -c "import benepar; benepar.download('benepar_en3')"` fetches it, or by path.

    Raises MissingPackageError without the package, PcfgError for a model that can't be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its dependencies, about each other
            benepar = importlib.import_module("benepar")
    except ImportError:
        raise MissingPackageError("benepar", "benepar", "parsing raw text") from None
    try:
        return benepar.Parser(model, batch_size=batch_size)
    except (LookupError, OSError, ValueError) as error:
        reason = type(error).__name__ if isinstance(error, LookupError) else error
        raise PcfgError(
            f"the parser {model} can't be loaded ({reason}): fetch it first, "
            f"python -c \"import benepar; benepar.download('{model}')\", or give the path of a model"
        ) from None


def benepar_trees(
    sentences: Sequence[Sequence[str]],
    parser: Parser | None = None,
    *,
    batch_size: int = 64,
    progress: Progress = silent,
) -> list[Tree | None]:
    """A tree for each sentence, cleaned as trees are for scoring (`cleaning.clean`); None for one of no words.

    Brackets among the words are written as in the Penn Treebank: -LRB-.

    Args:
        parser: by default `benepar_parser()`.

    Raises PcfgError when the parser gives a tree of other words.
    """
    chosen = benepar_parser(batch_size=batch_size) if parser is None else parser
    cleaned: list[Tree | None] = [None] * len(sentences)
    numbers = [number for number, sentence in enumerate(sentences) if sentence]
    progress(0, len(numbers), "parsing")
    for first in range(0, len(numbers), batch_size):
        some = numbers[first : first + batch_size]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*arg_constraints")  # of torch, about torch-struct in benepar
            trees = list(chosen.parse_sents([list(sentences[n]) for n in some]))
        for number, parsed in zip(some, trees, strict=True):
            cleaned[number] = clean(_escaped(parsed), collapse=False)
            words = [escape_brackets(word) for word in sentences[number]]
            tree = cleaned[number]
            if tree is None or tree.words() != words:
                raise PcfgError(
                    f"the parser gave a tree of other words for sentence {number + 1}: use a model for words as they are"
                )
        progress(first + len(some), len(numbers), "parsing")
    return cleaned


def _escaped(tree: Any) -> Tree:
    """An `nltk.Tree` as ours, its words without brackets."""
    return Tree.from_nltk(tree).fold(
        lambda node, children: Tree(
            node.label, tuple(escape_brackets(c) if isinstance(c, str) else c for c in children)
        )
    )
