"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from surgery.errors import SurgeryError


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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_json(path: Path, content: Any) -> None:
    """`replace_bytes` of indented JSON; refuses NaN, which isn't JSON."""
    replace_bytes(path, (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


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
    if folder.exists() and not folder.is_dir():
        raise SurgeryError(f"{folder} is a file, not a folder: name another output")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise SurgeryError(f"{folder} exists already: name another output or add --overwrite (overwrite=True)")
        if not (folder / replaces).exists():
            raise SurgeryError(f"{folder} holds no {replaces}, so it isn't overwritten: name another output")
    parent = folder.absolute().parent
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
    """Yield an empty folder beside `folder` that takes its name if, and only if, the block ends well."""
    check_output(folder, overwrite=overwrite, replaces=replaces)
    folder = folder.absolute()
    made = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        staged.chmod(0o777 & ~_umask())
        yield staged
        for path in staged.rglob("*"):
            sync(path)
        sync(staged)
        _take_name(staged, folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):  # another run may have put something there meanwhile
            for parent in made:
                parent.rmdir()
        raise
    sync(folder.parent)


def _take_name(staged: Path, folder: Path) -> None:
    if not folder.exists():
        staged.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    old = aside / "old"
    try:
        folder.rename(old)
        staged.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
