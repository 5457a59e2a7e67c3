"""Figures found so far, kept in a file, so that a run that was interrupted goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from surgery.errors import OptionError, SurgeryError
from surgery.files import replace_bytes
from surgery.locks import hold

Figures = TypeVar("Figures")


class Found:
    """What was worked out, by key; with a file, what an earlier run of the same call worked out too."""

    def __init__(self, known: dict[str, Any], file: TextIO | None = None) -> None:
        self._known = known
        self._file = file

    def get(self, key: Sequence[Any], find: Callable[[], Figures]) -> Figures:
        """The figures (JSON) of a key: known ones, or what `find` finds now, which is then kept."""
        name = json.dumps(key)
        if name not in self._known:
            self._known[name] = find()
            if self._file is not None:
                row = [name, self._known[name]]
                self._file.write(json.dumps([*row, digest(row)]) + "\n")
                self._file.flush()
        return self._known[name]


@contextmanager
def resumable(folder: str | Path | None, call: Mapping[str, Any]) -> Iterator[Found]:
    """Yield what is found, kept in a folder where one is given; the caller deletes it once the result is saved.

    A mistake of the user's (SurgeryError) leaves nothing behind: the same call would only make it again.

    Args:
        call: all that decides the figures, as JSON.

    Raises:
        OptionError: the folder holds another call's figures.
        BusyError: another run is at work on it.
    """
    if folder is None:
        yield Found({})
        return
    with hold(Path(folder)), _kept(Path(folder), call) as found:
        yield found


@contextmanager
def _kept(folder: Path, call: Mapping[str, Any]) -> Iterator[Found]:
    file, identity = folder / "figures.jsonl", digest(call)
    made = [parent for parent in file.absolute().parents if not parent.exists()]  # innermost first
    # Whole lines: a kill may have cut the last one short.
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if file.exists() else [identity]
    if lines[:1] != [identity]:
        raise OptionError(f"{file} is the state of another run (other model, data or options): delete it to begin anew")
    replace_bytes(file, ("\n".join(lines) + "\n").encode())
    with file.open("a", encoding="utf-8") as opened:
        try:
            yield Found(dict(filter(None, map(_row, lines[1:]))), opened)
        except SurgeryError:
            file.unlink()
            with suppress(OSError):  # something of someone else's lies there too
                for parent in made or [file.parent]:
                    parent.rmdir()
            raise


def _row(line: str) -> tuple[str, Any] | None:
    """Key and figures of a line; None, so that they are worked out again, for one that isn't as it was written."""
    try:
        name, figures, told = json.loads(line)
        return (name, figures) if told == digest([name, figures]) else None
    except (ValueError, TypeError, RecursionError):
        return None


def digest(content: Any) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
