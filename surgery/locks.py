"""One writer at a time: a lock on a path, which dies with the process that holds it."""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from surgery.errors import SurgeryError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)


class BusyError(SurgeryError):
    """Another run writes there."""


class _NoLockError(Exception):
    """This file system has no locks of its own."""


@contextmanager
def hold(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a path, whether anything is there or not, against every other run that holds it before it writes.

    The lock is a `flock` on a hidden file beside it, which goes with the lock; after a kill the file stays, no longer
    locked, until the next run. Where the file system has no `flock`, the file's being there is the lock, unless it names
    a process of this machine that is gone.

    Args:
        shared: let other processes of the same run hold it too, by `hold_too`.

    Raises:
        BusyError: another run holds it, naming its process and since when.
    """
    path = _resolved(path)
    file = lock_file(path)
    made = [parent for parent in file.parents if not parent.exists()]  # innermost first
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _flock(file, path)
    except OSError as error:
        raise SurgeryError(f"{path.parent} can't be written to ({error.strerror}): name an output elsewhere") from None
    except _NoLockError:
        file = file.with_suffix(".pid")
        handle = _create(file, path)
    try:
        os.write(handle, json.dumps(_self()).encode())
        if shared and lock_alone(handle, shared=True) is False:  # another run came between the two
            raise _busy(path, {})
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)
        with suppress(OSError):  # something was made there
            for parent in made:
                parent.rmdir()


@contextmanager
def hold_too(path: Path) -> Iterator[None]:
    """Hold a path beside a process that holds it `shared`: other runs are kept out until the last of them has ended.

    Where the file system has no `flock`, the path is held by the first process alone. Raises BusyError where that one is gone and
    another run has begun.
    """
    path = _resolved(path)
    file = lock_file(path)
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:  # a lock of the other kind, or a first process that has ended
        yield
        return
    try:
        if lock_alone(handle, shared=True) is False:
            raise _busy(path, _read(file))
        yield
    finally:
        os.close(handle)


def _resolved(path: Path) -> Path:
    path = path.absolute()
    return path.resolve() if path.exists() else path.parent.resolve() / path.name


def lock_file(path: Path) -> Path:
    """Path of the lock of an absolute path: beside it, or inside a folder beside which nothing can be written."""
    inside = path.is_dir() and not os.access(path.parent, os.W_OK)
    return path / ".surgery.lock" if inside else path.with_name(f".{path.name}.lock")


def lock_alone(handle: int, *, shared: bool = False) -> bool | None:
    """Lock an open file without waiting, for as long as it is open; False where another has it, None where none can.

    `shared`: beside others that lock it so; a lock that this file has already becomes such a one.
    """
    try:
        _try_flock(handle, shared)
    except BlockingIOError:
        return False
    except _NoLockError:
        return None
    return True


def _flock(file: Path, path: Path) -> int:
    while True:
        handle, own = _open(file)
        try:
            _try_flock(handle)
            with suppress(FileNotFoundError):
                if os.path.samestat(
                    os.fstat(handle), file.stat()
                ):  # else the one before deleted it, or it is another's
                    if own:
                        os.ftruncate(handle, 0)
                        return handle
                    _unlink(file, path)
        except BlockingIOError:
            note = _read(file)
            os.close(handle)
            raise _busy(path, note) from None
        except BusyError:
            os.close(handle)
            raise
        except _NoLockError:
            file.unlink(missing_ok=True)
            os.close(handle)
            raise
        os.close(handle)


def _open(file: Path) -> tuple[int, bool]:
    """The lock's file, and whether it can be written to: another user's can only be read, and locked, and deleted."""
    if file.is_symlink():
        raise SurgeryError(f"{file} is a link, and a lock would overwrite what it leads to: delete it")
    apart = getattr(os, "O_NOFOLLOW", 0)  # a link may be put there just now
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | apart, 0o666), True
    except PermissionError:
        return os.open(file, os.O_RDONLY | apart), False


def _unlink(file: Path, path: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except PermissionError:  # a folder whose files only their owners delete, such as /tmp
        raise BusyError(
            f"{path} can't be locked: a killed run of another user left {file}; have it deleted, or name another output"
        ) from None


def _try_flock(handle: int, shared: bool = False) -> None:
    if fcntl is None:
        raise _NoLockError
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_FLOCK:
            raise _NoLockError from None
        raise


def _create(file: Path, path: Path) -> int:
    while True:
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            note = _read(file)
            if note.get("host") != socket.gethostname() or _alive(note.get("pid")):
                raise _busy(path, note, f", or delete {file} if that run is gone") from None
            file.unlink(missing_ok=True)


def _busy(path: Path, note: dict, remedy: str = "") -> BusyError:
    who = f"process {note['pid']} of {note['host']}, since {note['since']}" if note else "it just began"
    return BusyError(f"{path} is being written by another run ({who}): wait until that ends{remedy}")


def _self() -> dict:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _read(file: Path) -> dict:
    try:
        note = json.loads(file.read_bytes())
        return {key: note[key] for key in ("pid", "host", "since")}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
