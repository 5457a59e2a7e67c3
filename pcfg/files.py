"""Files and folders that appear whole or not at all, with this package's errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import surgery.files as files
from pcfg.errors import PcfgError
from surgery.errors import SurgeryError
from surgery.files import discard, recover, replace_bytes, replace_json, sync
from surgery.locks import hold as _hold

__all__ = ["discard", "hold", "new_folder", "recover", "replace_bytes", "replace_json", "sync", "take_name"]


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False, replaces: str = "report.json") -> Iterator[Path]:
    """`surgery.files.new_folder`."""
    with _own_errors(), files.new_folder(folder, overwrite=overwrite, replaces=replaces) as staged:
        yield staged


def take_name(staged: Path, folder: Path, *, overwrite: bool, replaces: str = "report.json") -> None:
    """`surgery.files.take_name`."""
    with _own_errors():
        files.take_name(staged, folder, overwrite=overwrite, replaces=replaces)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """`surgery.locks.hold`; raises PcfgError where another run holds the path."""
    with _own_errors(), _hold(path):
        yield


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except SurgeryError as error:
        raise PcfgError(str(error)) from None
