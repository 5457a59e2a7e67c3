"""Corpora of any size drawn from a grammar into a folder, in shards."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.resuming import resumable_output, versions
from pcfg.sampling.formats import check_spaces, write_dataset, write_jsonl, write_text
from pcfg.sampling.sampler import sample
from pcfg.sampling.samples import Samples
from pcfg.sampling.tokenizer import tokenizer
from surgery.files import new_folder, replace_json, take_name
from surgery.locks import hold
from surgery.progress import Progress, silent
from surgery.resuming import read_state, state_folder
from surgery.sync import ranks

SCHEMA = 1
REPORT = "report.json"


class _Drawn(TypedDict):
    """Sizes of a shard, as its report holds them."""

    parts: dict[str, int]
    words: int
    method: str
    acceptance: float


@dataclass(frozen=True)
class Corpus:
    """Sizes of a corpus on disk: sentences of each part, words, the method, and the share of free draws within the limit."""

    parts: dict[str, int]
    words: int
    method: str
    acceptance: float


def write_corpus(
    grammar: Grammar,
    folder: str | Path,
    count: int,
    *,
    seed: int,
    max_length: int | None = None,
    held_out: float = 0.0,
    dataset: bool = False,
    with_tokenizer: bool = False,
    binary: bool = False,
    shard_size: int = 50_000,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Corpus:
    """Draw sentences into a folder: text and JSONL with trees, in shards; goes on where an interrupted call stopped.

    Args:
        held_out: share of the different sentences that go to a part `test`, none of which is in the part `train`.
        dataset: also a folder `dataset` for `datasets.load_from_disk`.
        binary: leave trees in the grammar's symbols, instead of as `Grammar.undo` gives them.
        with_tokenizer: also a folder `tokenizer` for `AutoTokenizer.from_pretrained`.
    """
    folder = Path(folder).resolve()  # the end of a link, which a folder can't be renamed to
    if count < 1 or shard_size < 1:
        raise OptionError(f"{min(count, shard_size)} sentences can't be drawn: ask for 1 or more")
    if not 0 <= held_out < 1:
        raise OptionError(f"the held-out share `held_out` is {held_out}: it must be 0 or more, and below 1")
    sample(grammar, 0, seed=seed, max_length=max_length)  # raises now what would be raised later
    check_spaces(grammar)
    words = tokenizer(grammar) if with_tokenizer else None
    settings = {"count": count, "seed": seed, "max_length": max_length, "held_out": held_out, "shard_size": shard_size}
    call = {"what": "sample", "grammar": grammar.fingerprint, **settings, "dataset": dataset, "binary": binary}
    shares = {"train": 1 - held_out, "test": held_out} if held_out else {"train": 1.0}
    with ranks.first_holds(resumable_output(folder, call), state_folder(folder)) as partial:
        assert partial is not None
        progress(0, count, "sampling")
        shards = [partial / f"{number:05d}" for number in range(-(-count // shard_size))]
        for number, shard in list(enumerate(shards))[ranks.my_part()]:
            first, end = number * shard_size, min((number + 1) * shard_size, count)
            if not shard.exists():
                drawn = sample(grammar, end - first, seed=seed, max_length=max_length, first=first)
                _write_shard(drawn, drawn.split(shares, seed), shard, dataset=dataset, plain=not binary)
            progress(end, count, "sampling")
        ranks.first_goes_on()
        corpus = _corpus([read_state(shard / REPORT, _Drawn) for shard in shards])
        whole = partial / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        with new_folder(whole) as staged:
            _join(shards, list(shares), staged, dataset=dataset)
            if words is not None:
                words.save_pretrained(staged / "tokenizer")
            report = {"schema": SCHEMA, "versions": versions(), "call": call, "corpus": vars(corpus)}
            replace_json(staged / REPORT, report)
        with hold(folder):
            take_name(whole, folder, overwrite=overwrite, replaces=REPORT)
    return corpus


def _write_shard(drawn: Samples, parts: Mapping[str, Samples], folder: Path, *, dataset: bool, plain: bool) -> None:
    """The parts of a shard as files of each kind, with a report."""
    report = {
        "parts": {name: len(part) for name, part in parts.items()},
        "words": len(drawn.words),
        "method": drawn.method,
        "acceptance": drawn.acceptance,
    }
    with new_folder(folder) as staged:
        for name, part in parts.items():
            write_text(part, staged / f"{name}.txt")
            write_jsonl(part, staged / f"{name}.jsonl", plain=plain)
        if dataset:
            with _quiet_datasets():
                write_dataset(parts, staged / "dataset", plain=plain)
        replace_json(staged / REPORT, report)


def _join(shards: Sequence[Path], parts: Sequence[str], output: Path, *, dataset: bool) -> None:
    """The shards' files side by side under the names that users see, their datasets as one."""
    for name in parts:
        for number, shard in enumerate(shards):
            place = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            for kind in ("txt", "jsonl"):
                _link(shard / f"{name}.{kind}", output / f"{name}{place}.{kind}")
    if dataset:
        _join_datasets([shard / "dataset" for shard in shards], output / "dataset")


def _corpus(shards: Sequence[Mapping[str, Any]]) -> Corpus:
    parts = {name: sum(shard["parts"].get(name, 0) for shard in shards) for name in shards[0]["parts"]}
    return Corpus(parts, sum(shard["words"] for shard in shards), shards[0]["method"], shards[0]["acceptance"])


def _join_datasets(folders: Sequence[Path], output: Path) -> None:
    from datasets import DatasetDict, concatenate_datasets, load_from_disk

    with _quiet_datasets():
        shards = [load_from_disk(str(folder)) for folder in folders]
        parts = {name: concatenate_datasets([shard[name] for shard in shards]) for name in shards[0]}
        DatasetDict(parts).save_to_disk(str(output))


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Without the library's own progress bars."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
