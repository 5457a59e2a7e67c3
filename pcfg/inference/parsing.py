"""Parses and span marginals of long texts, written to files in shards."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64

from pcfg.errors import OptionError, PcfgError
from pcfg.grammars.grammar import Grammar
from pcfg.resuming import resumable_output
from pcfg.sentences import batches, fingerprint
from pcfg.treebanks.trees import NO_PARSE, Tree, format_trees
from surgery.files import new_folder, replace_bytes, sync
from surgery.progress import Progress, silent
from surgery.reporting.plural import number_of
from surgery.reporting.results import Shown

if TYPE_CHECKING:
    from pcfg.devices import Device, Dtype

RULES = ("viterbi", "mbr")


@dataclass(frozen=True)
class WrittenParses(Shown):
    """How many sentences were parsed, and the numbers (from 1) of those without a parse."""

    sentences: int
    unparsed: tuple[int, ...]

    @property
    def summary(self) -> list[str]:
        """How many sentences, and how many of them have no parse."""
        return [f"{number_of(self.sentences, 'sentence')}, {len(self.unparsed):,} of them without a parse."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row for each sentence without a parse: its number from 1."""
        return ["without a parse"], [[number] for number in self.unparsed]


def parse(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    *,
    rule: str = "viterbi",
    cost: float | None = None,
    binary: bool = False,
    device: "Device | None" = None,
    workers: int = 1,
) -> list[Tree | None]:
    """A tree for each sentence, None without a parse, in the form of what the grammar was made from: see `Grammar.undo`.

    Args:
        rule: `viterbi`, the most probable tree, or `mbr`, the tree with the most expected labelled recall.
        cost: for `mbr`: the marginal above which a label is worth putting, 0 to 1.
        binary: leave the most probable trees as the grammar has them.
        device, workers: as for `inside_outside`.
    """
    from pcfg.inference.chart import inside_outside
    from pcfg.inference.engines import chart_numbers, pick_engine

    if rule not in RULES:
        raise OptionError(f"`rule` {rule} isn't one of {', '.join(RULES)}")
    if rule != "mbr" and cost is not None:
        raise OptionError("`cost` is for `rule` mbr: leave it out")
    if rule == "mbr" and binary:
        raise OptionError("`binary` is for `rule` viterbi: minimum-risk trees aren't the grammar's own")
    trees: list[Tree | None] = [None] * len(sentences)
    tables = rule == "mbr" or pick_engine(grammar) == "dense"  # the sparse engine's best trees take none that last
    for numbers in batches(sentences, lambda n: chart_numbers(grammar, n) if tables else n * n):
        chart = inside_outside(grammar, [sentences[number] for number in numbers], device=device, workers=workers)
        if rule == "mbr":
            plain = chart.mbr_trees() if cost is None else chart.mbr_trees(cost=cost)
        else:
            plain = [tree if tree is None or binary else grammar.undo(tree) for tree in chart.best_trees()]
        for number, tree in zip(numbers, plain, strict=True):
            trees[number] = tree
    return trees


def write_parses(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    output: str | Path,
    *,
    rule: str = "viterbi",
    cost: float | None = None,
    binary: bool = False,
    device: "Device | None" = None,
    workers: int = 1,
    shard_size: int = 200,
    progress: Progress = silent,
) -> WrittenParses:
    """`parse` into a file, a tree a line; goes on where an interrupted call stopped."""
    output = Path(output)
    parse(
        grammar, [], rule=rule, cost=cost, binary=binary
    )  # settings that don't go together are refused before any work
    settings = {"rule": rule, "cost": cost, "binary": binary, "shard_size": shard_size}
    call = {"what": "parse", "grammar": grammar.fingerprint, "text": fingerprint(sentences), **settings}
    with resumable_output(output, call) as partial:
        shards = []
        progress(0, len(sentences), "parsing")
        for done, some in _longest_first(sentences, shard_size):
            shards.append(partial / f"{some.start // shard_size:06d}.txt")
            if not shards[-1].exists():
                trees = parse(
                    grammar, sentences[some], rule=rule, cost=cost, binary=binary, device=device, workers=workers
                )
                replace_bytes(shards[-1], format_trees(trees).encode())
            progress(done, len(sentences), "parsing")
        shards.sort()
        unparsed: list[int] = []
        with (partial / "whole").open("wb") as file:
            number = 0
            for shard in shards:
                content = shard.read_bytes()
                file.write(content)
                for line in content.decode().splitlines():
                    number += 1
                    if line == NO_PARSE:
                        unparsed.append(number)
        sync(partial / "whole")
        (partial / "whole").replace(output)
    return WrittenParses(len(sentences), tuple(unparsed))


@dataclass(frozen=True)
class WrittenSpans(WrittenParses):
    """The same of span marginals, and how many numbers were written."""

    entries: int


def write_spans(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    output: str | Path,
    *,
    device: "Device | None" = None,
    dtype: "Dtype" = "float64",
    workers: int = 1,
    shard_size: int = 200,
    progress: Progress = silent,
) -> WrittenSpans:
    """Span marginals of every sentence into one safetensors file; goes on where an interrupted call stopped.

    Tensors: `lengths` [sentences], `offsets` [sentences + 1], `log_z` [sentences] and `marginals` [entries]: those of
    sentence k are marginals[offsets[k]:offsets[k + 1]], an array [n, n + 1] row by row. `read_spans` takes them apart.
    """
    output = Path(output)
    from pcfg.devices import dtype_name

    dtype = dtype_name(dtype)
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    offsets = np.append(0, np.cumsum(lengths * (lengths + 1)))
    need = 2 * int(offsets[-1]) * np.dtype(dtype).itemsize  # shards, and then the whole
    there = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise PcfgError(
            f"the spans of {len(sentences):,} sentences of up to {lengths.max():,} words take {need / 1e9:,.0f} GB to write, "
            f"and {free / 1e9:,.0f} GB are free: give fewer or shorter sentences"
        )
    call = {"what": "spans", "grammar": grammar.fingerprint, "text": fingerprint(sentences), "dtype": dtype}
    with resumable_output(output, {**call, "shard_size": shard_size}) as partial:
        shards = []
        progress(0, len(sentences), "marginals")
        for done, some in _longest_first(sentences, shard_size):
            shards.append(partial / f"{some.start // shard_size:06d}")
            if not shards[-1].exists():
                marginals, log_z = _marginals(grammar, sentences[some], device, dtype, workers)
                with new_folder(shards[-1]) as staged:
                    (staged / "marginals").write_bytes(marginals.tobytes())
                    (staged / "log_z").write_bytes(log_z.tobytes())
            progress(done, len(sentences), "marginals")
        shards.sort()
        scores = b"".join((shard / "log_z").read_bytes() for shard in shards)
        table = {"lengths": ("I64", lengths), "offsets": ("I64", offsets), "log_z": ("F64", np.frombuffer(scores))}
        metadata = {name: str(value) for name, value in call.items()}
        _write_safetensors(partial / "whole", table, [shard / "marginals" for shard in shards], dtype, metadata)
        (partial / "whole").replace(output)
    unparsed = np.flatnonzero(np.isneginf(np.frombuffer(scores))) + 1
    return WrittenSpans(len(sentences), tuple(unparsed.tolist()), int(offsets[-1]))


def read_spans(path: str | Path) -> list[Float[np.ndarray, "n places"]]:
    """The span marginals [n, n + 1] of each sentence in a file of `write_spans`; entry (i, j) for words i..j-1."""
    from safetensors.numpy import load_file

    tensors = load_file(str(path))
    lengths, ends = tensors["lengths"].tolist(), tensors["offsets"][1:-1]
    return [part.reshape(n, n + 1) for n, part in zip(lengths, np.split(tensors["marginals"], ends), strict=True)]


def _longest_first(sentences: Sequence[Sequence[str]], size: int) -> Iterator[tuple[int, slice]]:
    """Stretches of `size` sentences, the one with the longest first, each with how many are done after it.

    So a sentence too long for the memory is refused at once, not after hours.
    """
    stretches = [slice(first, min(first + size, len(sentences))) for first in range(0, len(sentences), size)]
    done = 0
    for some in sorted(stretches, key=lambda some: -max(map(len, sentences[some]))):
        done += some.stop - some.start
        yield done, some


def _marginals(
    grammar: Grammar, sentences: Sequence[Sequence[str]], device: "Device | None", dtype: str, workers: int
) -> tuple[Float[np.ndarray, " entries"], Float[np.ndarray, " sentences"]]:
    """Marginals one after another, and log Z."""
    from pcfg.inference.chart import inside_outside
    from pcfg.inference.engines import chart_numbers

    marginals: list[np.ndarray] = [np.zeros(0, dtype)] * len(sentences)
    log_z = np.full(len(sentences), -np.inf)
    for numbers in batches(sentences, lambda n: chart_numbers(grammar, n)):
        some = [sentences[number] for number in numbers]
        chart = inside_outside(grammar, some, device=device, dtype=dtype, workers=workers)
        log_z[numbers] = chart.log_z.detach().cpu().numpy()
        spans = chart.span_marginals.detach().cpu().numpy().astype(dtype)
        for row, number in enumerate(numbers):
            n = len(sentences[number])
            marginals[number] = spans[row, :n, : n + 1].ravel()
    return np.concatenate(marginals), log_z


def _write_safetensors(
    path: Path,
    table: Mapping[str, tuple[str, Int64[np.ndarray, " k"] | Float[np.ndarray, " k"]]],
    shards: Sequence[Path],
    dtype: str,
    metadata: Mapping[str, str],
) -> None:
    """A file with small tensors and one large, `marginals`, which is read shard by shard."""
    kind = {"float32": "F32", "float64": "F64"}[dtype]
    end, header = 0, dict[str, Any](__metadata__=dict(metadata))
    for name, (code, array) in table.items():
        header[name] = {"dtype": code, "shape": [len(array)], "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    size = sum(shard.stat().st_size for shard in shards)
    shape = [size // np.dtype(dtype).itemsize]
    header["marginals"] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in table.values():
            file.write(array.tobytes())
        for shard in shards:
            with shard.open("rb") as part:
                shutil.copyfileobj(part, file)
    sync(path)
