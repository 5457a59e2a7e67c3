"""Long work that survives a kill: what is done lies in a folder beside the output until all is."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pcfg.errors import OptionError, PcfgError
from pcfg.grammars.grammar import Grammar
from surgery.files import discard, recover, replace_bytes
from surgery.jsonfile import JsonError, load_json
from surgery.locks import hold

Progress = Callable[[int, int, str], None]  # what is done, what there is to do, and a line that says what it is

_CALL = "call.json"


def silent(done: int, total: int, line: str) -> None:
    """Tell nobody."""


@contextmanager
def resumable(output: Path, call: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folder `<output>.partial`, with what an interrupted run of the same call left there.

    It goes when the block ends well, or with a mistake of the user's (PcfgError); after anything else it stays.
    Raises PcfgError for a folder of that name which isn't ours, and where another run is at work on the same output.
    """
    folder = output.absolute().with_name(f"{output.absolute().name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder):
        recover(folder)
        note = folder / _CALL
        if not note.exists() and _holds_anything(folder):
            raise PcfgError(f"{folder} is in the way, and no interrupted run made it: move it, or name another output")
        if note.exists() and note.read_bytes() != _dump(call).encode():
            discard(folder)
        if not note.exists():
            replace_bytes(note, _dump(call).encode())
        try:
            yield folder
        except PcfgError:
            discard(folder)
            raise
        discard(folder)


def _holds_anything(folder: Path) -> bool:
    """Whether a folder holds more than what a run leaves that is killed as it begins."""
    return folder.exists() and any(not path.name.startswith(f".{_CALL}.") for path in folder.iterdir())


def claim(folder: Path, call: Mapping[str, Any]) -> None:
    """Note in a folder whose state it holds, for work where throwing another run's away would cost much.

    Raises OptionError for a folder with the state of another call, or with anything else.
    """
    note = folder / _CALL
    if note.exists():
        if note.read_bytes() != _dump(call).encode():
            raise OptionError(
                f"{folder} is the state of another run (other inputs, options, seed or version): delete it to begin anew"
            )
    elif _holds_anything(folder):
        raise OptionError(f"{folder} is in the way, and no interrupted run made it: move it, or name another output")
    else:
        replace_bytes(note, _dump(call).encode())


def fingerprint(grammar: Grammar) -> str:
    """SHA-256 of all that a grammar is."""
    digest = hashlib.sha256()
    for field in fields(grammar):
        value = getattr(grammar, field.name)
        if field.name == "origin" and value is None:
            continue  # which grammars of earlier versions didn't have: theirs stays what it was
        if isinstance(value, np.ndarray):
            digest.update(value.tobytes())
        else:
            digest.update(json.dumps(value.to_json() if hasattr(value, "to_json") else value).encode())
    return digest.hexdigest()


def text_fingerprint(sentences: Sequence[Sequence[str]]) -> str:
    """SHA-256 of sentences."""
    return hashlib.sha256("\n".join(" ".join(sentence) for sentence in sentences).encode()).hexdigest()


def read_state(file: Path, kind: Any) -> Any:
    """JSON of a type that an interrupted run of this program left; raises PcfgError for anything else."""
    try:
        return load_json(file, kind)
    except (OSError, JsonError) as error:
        raise PcfgError(
            f"{file} can't be read ({error}): delete the folder {file.parent.parent} to begin anew"
        ) from None


def _dump(call: Mapping[str, Any]) -> str:
    return json.dumps({**call, "versions": versions()}, indent=2) + "\n"


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {name: version(name) for name in ("surgery", "numpy")}


def nearest(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def sync(file: Any) -> None:
    """Bring an open file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())
