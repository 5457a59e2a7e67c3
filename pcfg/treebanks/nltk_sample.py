"""NLTK's sample of the Penn Treebank, found where NLTK keeps its data; NLTK itself isn't needed."""

import os
import re
import zipfile
from pathlib import Path

from pcfg.errors import TreebankError
from pcfg.treebanks.trees import Tree, parse_trees

_HOMES = ("~/nltk_data", "/usr/share/nltk_data", "/usr/local/share/nltk_data", "/usr/lib/nltk_data")


def nltk_treebank() -> list[Tree]:
    """The 3,914 trees of NLTK's Penn Treebank sample, as they stand, in the order of the files.

    Looks for corpora/treebank (a folder or a zip file) in the folders that NLTK_DATA names, then where NLTK keeps its
    data. NLTK itself isn't needed. Raises TreebankError when it is nowhere.
    """
    named = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    for home in (*named, *_HOMES):
        corpora = Path(home).expanduser() / "corpora"
        files = sorted((corpora / "treebank" / "combined").glob("wsj_*.mrg"))
        if files:
            return [tree for file in files for tree in parse_trees(file.read_text("utf-8-sig"), str(file))]
        if (corpora / "treebank.zip").is_file():
            return _zipped(corpora / "treebank.zip")
    where = f"NLTK_DATA ({os.pathsep.join(named)})" if named else "the usual places, and NLTK_DATA isn't set"
    raise TreebankError(
        f"NLTK's treebank sample isn't in {where}: set NLTK_DATA to the folder that holds corpora/treebank, "
        "or fetch it with python -m nltk.downloader treebank"
    )


def _zipped(path: Path) -> list[Tree]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if re.fullmatch(r"treebank/combined/wsj_\d+\.mrg", n))
            texts = [(f"{path}/{name}", archive.read(name).decode("utf-8-sig")) for name in names]
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise TreebankError(f"{path} is damaged ({error}): fetch it again") from None
    return [tree for name, text in texts for tree in parse_trees(text, name)]
