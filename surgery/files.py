"""Files and folders that appear whole or not at all."""

import ctypes
import errno
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from surgery.errors import SurgeryError
from surgery.locks import hold, lock_alone, lock_file

# JSON can hold half a letter, as an escape, which is what this handler writes.
JSON_TEXT = {"encoding": "utf-8", "errors": "backslashreplace"}


def sync(path: Path) -> None:
    """Make a file's or folder's content survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old content or the new one and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = _staged_file(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            staged.chmod(0o666 & ~_umask())
            staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync(path.parent)
    sweep_files(path)


def _staged_file(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked as long as it is open: so others know that it isn't a killed run's."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        locked = lock_alone(handle)
        if locked is None or (locked and os.fstat(handle).st_nlink):
            return handle, Path(name)
        os.close(handle)  # another run took it for a leftover in the moment between the two


def sweep_files(path: Path) -> None:
    """Delete what killed runs left of writing `path`."""
    for left in _leftovers(path, "tmp"):
        with suppress(OSError), left.open("rb") as file:
            if lock_alone(file.fileno()):
                left.unlink()


def _leftovers(path: Path, kinds: str) -> list[Path]:
    """List what runs, killed ones or others, keep beside `path` while they write it."""
    name = re.compile(rf"{re.escape(f'.{path.name}.')}[a-z0-9_]{{8}}\.({kinds})")
    return [Path(entry) for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]


def replace_json(path: Path, content: Any) -> None:
    """`replace_bytes` of indented JSON; refuses NaN, which isn't JSON."""
    replace_bytes(path, (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode(**JSON_TEXT))


def check_output(
    folder: Path, *, overwrite: bool, replaces: str = "report.json", inputs: Sequence[object] = ()
) -> None:
    """Refuse an output folder that can't be used, before any work is spent on it.

    Args:
        replaces: a file that a folder must hold to be overwritten: what we write ourselves holds it, a user's own
            checkpoint or data folder doesn't.
        inputs: files and folders that must lie apart from the output; what isn't on this disk doesn't count.
    """
    check_apart(folder, *inputs)
    place = folder.resolve()
    if place.parent.is_dir() and (lock_file(place).exists() or _leftovers(place, "new|old")):
        with hold(place):
            recover(place)
    _check_free(folder, overwrite, replaces)


def _check_free(folder: Path, overwrite: bool, replaces: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise SurgeryError(f"{folder} is a file, not a folder: name another output")
    if os.path.ismount(folder):
        raise SurgeryError(f"{folder} is a mounted disk, whose name no folder can take: name a folder in it")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise SurgeryError(f"{folder} exists already: name another output or add `overwrite`")
        if not (folder / replaces).exists():
            raise SurgeryError(f"{folder} holds no {replaces}, so it isn't overwritten: name another output")
    parent = folder.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise SurgeryError(f"{parent} can't be written to: name an output folder elsewhere")


def check_apart(output: Path, *inputs: object) -> None:
    """Refuse an output that is one of the inputs, or lies inside one or around it."""
    output = output.resolve()
    for given in inputs:
        path = Path(str(given)).expanduser()
        if path.exists() and (
            path.resolve() == output or path.resolve() in output.parents or output in path.resolve().parents
        ):
            raise SurgeryError(
                f"the output {output} and the input {path} are the same or lie one inside the other: name another output"
            )


@contextmanager
def streamed_file(path: Path, size: int) -> Iterator[BinaryIO]:
    """Yield a new file of a `new_folder`, to write `size` bytes to in one go.

    The space is claimed first, so a full disk is found at once, and the disk is kept writing while the block runs: then
    the folder's own sync at its end has little left to wait for, and being durable takes hardly longer than a copy.
    """
    with path.open("wb") as file:
        handle = file.fileno()
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(handle, 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise  # these two: a file system that can't, which is no harm
        done = threading.Event()
        writer = threading.Thread(target=_keep_syncing, args=(handle, done))
        writer.start()
        try:
            yield file
        finally:
            done.set()
            writer.join()


def _keep_syncing(handle: int, done: threading.Event) -> None:
    sync_data = getattr(os, "fdatasync", os.fsync)
    while not done.wait(0.0005):
        with suppress(OSError):  # what matters fails again when the folder is synced
            sync_data(handle)


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False, replaces: str = "report.json") -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name if, and only if, the block ends well.

    `folder` is held against other runs (`surgery.locks`); what a killed run left of it is cleared away first.
    """
    check_output(folder, overwrite=overwrite, replaces=replaces)
    folder = folder.resolve()  # the end of a link, which a folder can't be renamed to
    made = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder):
            recover(folder)
            staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".new"))
            try:
                staged.chmod(0o777 & ~_umask())
                yield staged
                for path in staged.rglob("*"):
                    # Some libraries keep what they write to its owner: others may read a folder as the user's umask says.
                    path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666) & ~_umask())
                    sync(path)
                sync(staged)
                take_name(staged, folder, overwrite=overwrite, replaces=replaces)
            except BaseException:
                shutil.rmtree(staged, ignore_errors=True)
                raise
            sync(folder.parent)
    except BaseException:
        with suppress(OSError):  # another run may have put something there meanwhile
            for parent in made:
                parent.rmdir()
        raise


def take_name(staged: Path, folder: Path, *, overwrite: bool, replaces: str) -> None:
    """Give a finished folder its name; what lies there by now is replaced under the same rules as at first."""
    _check_free(folder, overwrite, replaces)
    try:
        staged.rename(folder)  # over nothing, or over an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if not overwrite:
        raise SurgeryError(f"{folder} appeared while it was being made: name another output or add `overwrite`")
    if exchange(staged, folder):
        _remove(staged)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".old"))
    old = aside / "old"
    try:
        folder.rename(old)
        staged.rename(folder)  # a kill before this: the next run puts the old one back
    except BaseException:
        if old.exists():
            old.rename(folder)
        aside.rmdir()
        raise
    _remove(aside)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's name at one stroke; False where the system can't."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def _remove(folder: Path) -> None:
    """Delete a folder whose parts may be read-only."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.chmod(path.stat().st_mode | 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder, if it is there, so that a kill leaves it whole or nothing that the next run doesn't clear away."""
    if folder.exists():
        with suppress(OSError):
            folder.chmod(folder.stat().st_mode | 0o700)  # a folder that is read-only can't be moved to another
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".new"))
        folder.rename(aside / "gone")
        _remove(aside)


def recover(folder: Path) -> None:
    """Clear away what killed runs left beside a folder that this run holds, and put back what they had moved aside."""
    for left in _leftovers(folder, "new|old"):
        if (left / "old").is_dir() and left.suffix == ".old" and not folder.exists():
            (left / "old").rename(folder)
        shutil.rmtree(left, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
