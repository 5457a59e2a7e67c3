"""Files and folders of sentences, parses and grammars made piece by piece, so that a stopped call goes on where it was."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surgery.files import discard
from surgery.provenance import package_version
from surgery.resuming import resumable, state_folder

PACKAGES = ("surgery", "numpy")  # whose versions decide the numbers


@contextmanager
def resumable_output(output: Path, call: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the folder `<output>.partial`, with what a stopped call with the same arguments left there.

    `surgery.resuming.resumable` beside an output. The folder goes when the block ends well; another call's is thrown away,
    as it cost minutes.
    """
    folder = state_folder(output)
    with resumable(folder, call, packages=PACKAGES, replace_others=True):
        yield folder
        discard(folder)


def versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers."""
    return {name: package_version(name) for name in PACKAGES}
