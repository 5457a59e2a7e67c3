"""Long work that survives a kill: what is done lies in a folder until the result is saved, and the same call goes on from there.

One design for every command that takes minutes or more:

- *What identifies a run*: all that decides its result, as JSON (fingerprints of inputs, options, seeds) with the versions
  of the packages that compute it, noted in `call.json`.
- *Where its state lies*: in a folder that the caller names, for a command `<output>.partial` (`state_folder`), held
  against other runs.
- *When it goes*: the caller deletes it once the result is saved (`surgery.files.discard`). A mistake of the user's
  (SurgeryError) deletes it at once: the next call will be another one. After anything else, a kill or a full disk, it stays.
- *A state that isn't this run's*, or that is damaged, is refused with a sentence and left alone (StateError).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from surgery.errors import OptionError, SurgeryError
from surgery.files import discard, recover, replace_bytes, replace_json
from surgery.jsonfile import JsonError, load_json, parse_loose
from surgery.locks import hold
from surgery.provenance import package_version

CALL = "call.json"

Value = TypeVar("Value")


class StateError(OptionError):
    """A state that can't be gone on from: another run's, a damaged one, or a folder with something else in it."""

    keeps_state = True


def state_folder(output: Path) -> Path:
    """`<output>.partial`, where a command keeps its state."""
    output = output.absolute()
    return output.with_name(f"{output.name}.partial")


@contextmanager
def resumable(
    folder: str | Path | None,
    call: Mapping[str, Any],
    *,
    packages: tuple[str, ...] = ("surgery",),
    replace_others: bool = False,
    shared: bool = False,
) -> Iterator[Path | None]:
    """Hold a folder for the state of a run and yield it, with what a stopped run of the same call left there.

    Args:
        folder: None for a run that keeps nothing.
        call: all that decides the result, as JSON; large inputs by a digest.
        packages: whose versions decide the result too.
        replace_others: throw another call's state away instead of refusing it, for work that costs little.
        shared: let other processes of this run hold the folder too (`surgery.locks.hold_too`).

    Raises:
        StateError: the folder holds another run's state, or something that no run left.
        BusyError: another run is at work on it.
    """
    if folder is None:
        yield None
        return
    folder = Path(folder).absolute()
    with hold(folder, shared=shared):
        recover(folder)
        _claim(folder, {**call, "versions": {name: package_version(name) for name in packages}}, replace_others)
        try:
            yield folder
        except SurgeryError as error:
            if not error.keeps_state:
                discard(folder)
            raise


def _claim(folder: Path, call: Mapping[str, Any], replace_others: bool) -> None:
    note = folder / CALL
    wanted = json.loads(json.dumps(call))  # tuples as the lists that a file holds
    if not note.exists():
        # What a run leaves that is killed as it begins is no state yet.
        if folder.exists() and not _is_fresh(folder):
            raise StateError(
                f"{folder} is in the way, and no interrupted run made it: name another output, or delete it to begin anew"
            )
    elif _noted(note) == wanted:
        return
    elif not replace_others:
        raise StateError(
            f"{folder} is the state of another run (other inputs, options, seed or version): delete it to begin anew"
        )
    else:
        discard(folder)
    replace_json(note, wanted)


def _is_fresh(folder: Path) -> bool:
    return folder.is_dir() and all(path.name.startswith(f".{CALL}.") for path in folder.iterdir())


def _noted(note: Path) -> Any:
    try:
        return load_json(note)
    except (OSError, JsonError):
        return None


def damaged(file: Path, why: object) -> StateError:
    """The refusal of a state's file, `<state>/...`, that can't be read."""
    return StateError(f"{file} can't be read ({why}): delete {file.parent} to begin anew")


def read_state(file: Path, kind: Any) -> Any:
    """JSON of a type that a stopped run left; raises StateError for anything else."""
    try:
        return load_json(file, kind)
    except (OSError, JsonError) as error:
        raise damaged(file, error) from None


class Memo:
    """Values (JSON) by key, each written to a file as soon as it is known, so that a later run needn't work it out again.

    A line that a kill cut short, or that was changed, is worked out again.

    Args:
        file: None for values that are kept in memory only.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        if file is not None and file.exists():
            lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # whole ones
            self._known = dict(filter(None, map(_row, lines)))
            replace_bytes(file, "".join(f"{line}\n" for line in lines).encode())

    def get(self, key: Any, find: Callable[[], Value]) -> Value:
        """The value of a key (JSON): the known one, or what `find` gives now."""
        name = json.dumps(key)
        if name not in self._known:
            self._known[name] = find()
            if self._file is not None:
                row = [name, self._known[name]]
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([*row, digest(row)]) + "\n")
        return self._known[name]


def _row(line: str) -> tuple[str, Any] | None:
    try:
        name, value, told = parse_loose(line)
    except (ValueError, TypeError):
        return None
    return (name, value) if told == digest([name, value]) else None


def digest(content: Any) -> str:
    """SHA-256 of anything that JSON can hold, as 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
