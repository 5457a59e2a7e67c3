"""Grammars, trees, sentences and output files as commands take them: the options, and what is read by them."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.render import print_error

if TYPE_CHECKING:
    from pcfg.grammars.grammar import Grammar
    from pcfg.treebanks.trees import Tree
    from surgery.progress import Progress


GrammarFile = Annotated[
    Path,
    typer.Argument(help="Grammar: .json as written here, or a text of rules such as 0.5 NP -> Det N, words in quotes."),
]
Text = Annotated[
    Path | None,
    typer.Option(
        help="Sentences, one a line, words between spaces; or .jsonl with tokens. Required.", show_default=False
    ),
]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="File to write. Required.", show_default=False)]
Trees = Annotated[
    Path | None,
    typer.Option(
        "--trees",
        help="Bracketed trees, as in the Penn Treebank: a file, or a folder of .mrg and .txt. Required, or another source of trees.",
        show_default=False,
    ),
]
CutLabels = Annotated[
    bool | None,
    typer.Option(
        "--cut-labels/--keep-labels",
        help="Cut labels at - and =, or leave them whole.",
        show_default="cut where there are traces or Penn's functions such as -SBJ",
    ),
]
NltkTreebank = Annotated[
    bool, typer.Option("--nltk-treebank", help="NLTK's sample of the Penn Treebank, found by NLTK_DATA.")
]
Only = Annotated[str | None, typer.Option(help="FIRST-LAST: these trees only, counted from 1.", show_default="all")]


def load_grammar(path: Path) -> "Grammar":
    """A grammar from JSON, or from a text of rules."""
    from pcfg.errors import GrammarError
    from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar

    if (path / GRAMMAR_FILE).is_file():  # a model's folder
        path = path / GRAMMAR_FILE
    if path.suffix.lower() == ".json":
        return Grammar.load(path)
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            grammar = Grammar.from_text(path.expanduser().read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise GrammarError(f"{path} isn't UTF-8 text (byte {error.start:,}): name a grammar file") from None
    except OSError as error:
        raise GrammarError(f"{path} can't be read: {error.strerror}") from None
    for note in notes:
        print_error(f"{path}: {note.message}")
    return grammar


def load_both(path: Path, text: Path | None) -> tuple["Grammar", list[list[str]]]:
    """Grammar and sentences, whose words it knows."""
    from pcfg.errors import OptionError
    from pcfg.sentences import check_words, read_sentences

    if text is None:
        raise OptionError("--text is missing: name the file of sentences, one a line")
    grammar, sentences = load_grammar(path), read_sentences(text)
    check_words(grammar, sentences, text)
    return grammar, sentences


def read_bank(
    source: Path | None,
    nltk: bool,
    raw: Path | None = None,
    model: str | None = None,
    progress: "Progress | None" = None,
    *,
    collapse: bool = True,
    cut_labels: bool | None = None,
) -> "list[Tree]":
    """Trees of a file, a folder or NLTK's sample, cleaned (`pcfg.treebanks.cleaning.clean`), or benepar's of a file of sentences."""
    from pcfg.errors import OptionError, TreebankError
    from pcfg.treebanks.cleaning import clean_trees
    from pcfg.treebanks.nltk_sample import nltk_treebank
    from pcfg.treebanks.trees import read_trees
    from surgery.progress import silent

    if [source is not None, nltk, raw is not None].count(True) != 1:
        more = " or --raw FILE" if progress else ""
        raise OptionError(f"give the trees by --trees FILE or --nltk-treebank{more}: one of them")
    if raw is not None:
        from pcfg.sentences import read_sentences
        from pcfg.treebanks.benepar import MODEL, benepar_parser, benepar_trees

        parsed = benepar_trees(read_sentences(raw), benepar_parser(model or MODEL), progress=progress or silent)
        trees = [tree for tree in parsed if tree is not None]
    else:
        bank = nltk_treebank() if source is None else read_trees(source)
        trees = clean_trees(bank, collapse=collapse, cut_labels=cut_labels)
    if not trees:
        raise TreebankError(f"{source} holds no trees: write them in brackets, (S (NP (DT The) (NN dog)) ...)")
    return trees


def whole_label(bank: "list[Tree]") -> str | None:
    """A label with a - or = that, for all the trees tell, is part of a symbol's name; None where there is none."""
    from pcfg.treebanks.cleaning import has_functions, strip_function

    labels = {node.label for tree in bank for node in tree.nodes()}
    first = min((label for label in labels if strip_function(label) != label), default=None)
    return None if has_functions(bank) else first


def pick(bank: "list[Tree]", only: str | None) -> "list[Tree]":
    """The trees that `--only FIRST-LAST` names."""
    from pcfg.errors import OptionError

    if only is None:
        return bank
    first, dash, last = only.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= len(bank)):
        raise OptionError(f"--only {only} must be FIRST-LAST, between 1 and {len(bank)}")
    return bank[int(first) - 1 : int(last)]


def horizontal_order(h: str) -> float:
    """`-h` as a number."""
    from pcfg.errors import OptionError

    if h != "inf" and not h.isdecimal():
        raise OptionError(f"--horizontal {h} must be 0, 1, 2 ... or inf")
    return float(h)


def need_file(output: Path | None, overwrite: bool, *inputs: Path | None) -> Path:
    """The output file; refuses what can't be written, before any work is spent on it."""
    from pcfg.errors import OptionError, PcfgError
    from surgery.files import check_apart

    if output is None:
        raise OptionError("-o is missing: name the file to write")
    check_apart(output, *(path for path in inputs if path is not None))
    if output.is_dir():
        raise PcfgError(f"{output} is a folder, not a file: name another output")
    if output.exists() and not overwrite:
        raise PcfgError(f"{output} exists already: name another output or add --overwrite")
    if not output.absolute().parent.is_dir():
        raise PcfgError(f"{output.absolute().parent} is not a folder: make it first, or name another output")
    if not os.access(output.absolute().parent, os.W_OK):
        raise PcfgError(f"{output.absolute().parent} can't be written to: name an output elsewhere")
    return output
