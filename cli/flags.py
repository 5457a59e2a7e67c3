"""The library's words for a command's options: its errors name parameters, the command line says options."""

import re
from typing import Any

_NAMED = re.compile(r"`(\w+)`")
# What a library function calls a parameter -> what commands call it, the first that one has.
_OTHER_NAMES = {
    "train": ("data",),
    "test": ("evaluate", "data"),
    "words": ("word",),
    "phrases": ("phrase",),
    "columns": ("column",),
    "readings": ("reading",),
    "h_base": ("h",),
    "kind": ("sync",),
}


def with_flags(message: str, command: Any) -> str:
    """A library's sentence in the words of a command of Typer's: its parameter `key_dim` is the option --key-dim."""
    flags = {parameter.name: max(parameter.opts, key=len) for parameter in command.params if parameter.name}

    def flag(named: re.Match[str]) -> str:
        names = (named[1], *_OTHER_NAMES.get(named[1], ()))
        return next((flags[name] for name in names if name in flags), named[0])

    return _NAMED.sub(flag, message)


def all_flags(message: str) -> str:
    """A sentence all of whose parameters are options of the same names."""
    return _NAMED.sub(lambda named: f"--{named[1].replace('_', '-')}", message)
