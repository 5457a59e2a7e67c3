"""Sampled sentences as files: text, JSON lines with trees, and folders of the `datasets` library."""

import json
import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar
from pcfg.sampling.samples import Samples
from surgery.files import new_folder, replace_bytes


def check_spaces(grammar: Grammar) -> None:
    """Raise GrammarError for a word with a space in it, where words are written with spaces between."""
    for word in grammar.words:
        if any(c in string.whitespace for c in word):
            raise GrammarError(f"the word {word!r} holds a space, and words are written between spaces: rename it")


def write_text(samples: Samples, path: str | Path) -> None:
    """A sentence a line, words between spaces."""
    check_spaces(samples.grammar)
    replace_bytes(Path(path), "".join(f"{' '.join(sentence)}\n" for sentence in samples).encode())


def write_jsonl(samples: Samples, path: str | Path, *, plain: bool = False) -> None:
    """A JSON object a line: `tokens`, a list of words, and `tree`, a line of brackets (`plain`: as for `bracketed`)."""
    rows = ({"tokens": sentence, "tree": samples.bracketed(i, plain=plain)} for i, sentence in enumerate(samples))
    replace_bytes(Path(path), "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())


def write_dataset(parts: Mapping[str, Samples], folder: str | Path, *, plain: bool = False) -> None:
    """A folder for `datasets.load_from_disk`: a `DatasetDict` of the parts, with the columns of `write_jsonl`.

    The folder appears whole or not at all. Raises PcfgError where it exists already.
    """
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    tables = {}
    for name, samples in parts.items():
        words = pa.array(samples.grammar.words, pa.string()).take(pa.array(samples.words))
        offsets = pa.array(samples.offsets.astype(np.int64))
        trees = pa.array((samples.bracketed(i, plain=plain) for i in range(len(samples))), pa.string())
        tokens = pa.LargeListArray.from_arrays(offsets, words).cast(pa.list_(pa.string()))
        tables[name] = Dataset(pa.table({"tokens": tokens, "tree": trees}))
    with new_folder(Path(folder)) as staged:
        DatasetDict(tables).save_to_disk(str(staged))
