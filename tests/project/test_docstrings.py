"""Docstrings of the library: the arguments they explain are those of the function."""

import ast
import re

import pytest

from tests.support.pages import ROOT

FILES = sorted(file for package in ("surgery", "probes", "pcfg") for file in (ROOT / package).rglob("*.py"))
# A section's entries begin one level in: `name: text`, or `first, second: text` where two are explained together.
_SECTION = re.compile(r"^( *)Args:\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+(?:, \w+)*): ")


def explained(docstring):
    """The names in the section on arguments."""
    found = _SECTION.search(docstring + "\n")
    if not found:
        return []
    depth = len(found[1]) + 4
    entries = [_ENTRY.match(line[depth:]) for line in found[2].splitlines() if line[depth : depth + 1] != " "]
    return [name for entry in entries if entry for name in entry[1].split(", ")]


def parameters(node):
    """The names of a function's parameters, or of those of a class's `__init__`, or of a dataclass's fields."""
    if isinstance(node, ast.ClassDef):
        inits = [inner for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"]
        fields = {inner.target.id for inner in node.body if isinstance(inner, ast.AnnAssign)}
        return fields.union(*map(parameters, inits))
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return {argument.arg for argument in every if argument}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_arguments_that_are_explained_are_there(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (docstring := ast.get_docstring(node)):
            gone = set(explained(docstring)) - parameters(node)
            assert not gone, f"{file}:{node.lineno} {node.name} explains {gone}"


def test_entries_are_read_as_they_are_written():
    text = "Do it.\n\nArgs:\n    base, tuned: two folders, of which one: is\n        told apart.\n    seed: of it.\n\nRaises:\n    OptionError: no.\n"
    assert explained(text) == ["base", "tuned", "seed"]
