"""The pages of the repository: their code blocks, inline code, links and anchors."""

import importlib
import re
import shlex
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import typer

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"[A-Z_]+=\S+")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of code and its language."""

    language: str
    code: str


def pages():
    """Every page, README first, by its path from the root."""
    beside_code = [page for package in ("surgery", "pcfg", "probes") for page in (ROOT / package).rglob("README.md")]
    files = [ROOT / "README.md", *sorted(beside_code), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    return [file.relative_to(ROOT).as_posix() for file in files]


def blocks(page):
    """The fenced blocks of a page, in order."""
    return [Block(*match) for match in _FENCE.findall((ROOT / page).read_text())]


def inline(page):
    """What a page's prose has between backquotes."""
    return [" ".join(code.split()) for code in _INLINE.findall(_prose(page))]


def links(page):
    """Targets of links and pictures."""
    return _LINK.findall(_prose(page))


def anchors(page):
    """Where links within a page may lead: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(page):
    """The lines of a page's shell blocks as lists of words."""
    return words("".join(block.code for block in blocks(page) if block.language == "sh"))


def words(code):
    """The words of each line of shell code: without comments, and without variables set before a command."""
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [list(dropwhile(_VARIABLE.fullmatch, line)) for line in lines if line]


def find(line):
    """The command that the words after `surgery` lead to, and the words that are left for it."""
    command, left = _app(), list(line)
    if (two := " ".join(left[:2])) in command.commands:
        return command.commands[two], left[2:]
    while left and left[0] in getattr(command, "commands", {}):
        command = command.commands[left.pop(0)]
    return command, left


def parse(line):
    """Have Typer read a whole line: its own error for an option that isn't there; returns the command."""
    command, left = find(line)
    assert not hasattr(command, "commands") or not left or left[0].startswith("-"), f"no command {left[0]}"
    if left or not hasattr(command, "commands"):
        command.make_context(command.name, left)
    return command


def options():
    """Every option of every command."""

    def of(command):
        yield from (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
        for inner in getattr(command, "commands", {}).values():
            yield from of(inner)

    return set(of(_app())) | {"--help"}


def resolve(name):
    """The module, or the attribute of one, of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def _app():
    from cli.main import app

    return typer.main.get_command(app)


def _prose(page):
    return _FENCE.sub("", (ROOT / page).read_text())
