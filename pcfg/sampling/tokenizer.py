"""Sampled sentences as files, and a tokenizer for a grammar's words."""

import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar
from pcfg.sampling.sampler import Samples
from surgery.files import new_folder, replace_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, UNKNOWN, MASK = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")


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


def tokenizer(grammar: Grammar) -> "PreTrainedTokenizerFast":
    """A tokenizer with one token a word: first the special ones, then the grammar's words in their order.

    It splits at spaces, puts <s> and </s> around a sentence (twice for a pair), and takes other words for <unk>. A
    grammar that has <unk> among its own words shares it.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    for word in grammar.words:
        if any(c.isspace() for c in word):
            raise GrammarError(f"the word {word!r} holds a space, and the tokenizer splits at spaces: rename it")
        for special in SPECIAL:
            if special in word and word != UNKNOWN:
                raise GrammarError(f"the word {word!r} holds the special token {special}: rename the word")
    numbers = {token: i for i, token in enumerate(dict.fromkeys((*SPECIAL, *grammar.words)))}
    model: Any = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A {END} {BEGIN}:1 $B:1 {END}:1",
        special_tokens=[(token, numbers[token]) for token in (BEGIN, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )
