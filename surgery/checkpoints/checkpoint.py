"""Checkpoint: a Hugging Face model folder seen as named tensors, read lazily."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from surgery.checkpoints.copies import NOT_CONTENT, other_copies
from surgery.checkpoints.folder import ModelFolder
from surgery.checkpoints.hub import hub_folder
from surgery.checkpoints.patching import digests
from surgery.checkpoints.refusals import check_readable, no_model
from surgery.checkpoints.structure import Structure
from surgery.checkpoints.tensorfile import Entry, read_header
from surgery.errors import CheckpointError
from surgery.jsonfile import parse_loose

JOURNAL = ".surgery-journal.json"
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OLD_SINGLE, _OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# What decides over tokens, as shell patterns: `bpe.codes` are BERTweet's merges, `dict.txt` PhoBERT's vocabulary.
TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "*.model", "*.spm", "bpe.codes", "dict.txt", "emoji*")


class Checkpoint(ModelFolder):
    """A folder in Hugging Face layout, or the id of one on the hub.

    The weights lie in one or several safetensors files; `pytorch_model.bin` is read too, with code execution in
    pickles disallowed. Opening reads only headers.

    Args:
        source: a folder, or a hub id such as `FacebookAI/roberta-base` (fetched once, then cached by the hub library).
        half_patched: open a folder whose in-place patch was interrupted; only what completes the patch wants that.

    Raises:
        CheckpointError: nothing there, a damaged file, tensors missing from the files, an interrupted in-place patch.
    """

    def __init__(self, source: "str | Path | Checkpoint", *, half_patched: bool = False) -> None:
        self.source = str(source)
        self.folder = source.folder if isinstance(source, Checkpoint) else _resolve(source)
        if (self.folder / JOURNAL).exists() and not half_patched:
            raise CheckpointError(
                f"{self.folder} is half patched: an in-place run was interrupted; complete it with "
                "`surgery skill apply SKILL FOLDER --in-place` or undo it with `surgery skill revert SKILL FOLDER --in-place`"
            )
        if not (self.folder / "config.json").exists():
            raise CheckpointError(no_model(self.folder))
        self.config = _read_json(self.folder / "config.json")
        self._pickled = not any((self.folder / name).exists() for name in (_SINGLE, _INDEX))
        self._shards: dict[Path, dict[str, Tensor]] = {}
        self._finite: set[str] = set()
        self.files = self._weight_files()
        self.entries = self._read_entries()

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.entries)} tensors)"

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """One tensor, on the CPU or straight on a device, in the dtype it is stored in; nothing else is read."""
        if name not in self.entries:
            raise CheckpointError(f"{self} has no tensor {name}")
        file = self.entries[name].file
        if self._pickled:
            return self._pickled_shard(file)[name].to(device)
        with safe_open(file, "pt", device="cpu" if device is None else str(device)) as opened:
            return opened.get_tensor(name)

    def finite_tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """`tensor`, refused by name when it holds NaN or infinity; looked at once."""
        tensor = self.tensor(name, device)
        if name not in self._finite:
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{self}: tensor {name} holds NaN or infinity: fetch or make it again")
            self._finite.add(name)
        return tensor

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, one in memory at a time."""
        for name in self.entries:
            yield name, self.tensor(name)

    @cached_property
    def digests(self) -> dict[str, str]:
        """A hash of each tensor's content (xxh3-64, hex), by name in sorted order. Reads every byte once."""
        if self._pickled:
            import xxhash

            hashes = {name: xxhash.xxh3_64(_raw_bytes(tensor)).hexdigest() for name, tensor in self}
        else:
            hashes = digests(self.entries.values())
        return dict(sorted(hashes.items()))

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights: the same for the same tensors whatever the files, another if one bit differs."""
        return fingerprint(self.entries, self.digests)

    @cached_property
    def structure(self) -> Structure:
        """What the architecture says of the tensors: blocks, ties, the kind of model. Builds the model without weights."""
        return Structure.of(self)

    def check_readable(self) -> None:
        """Refuse a folder that transformers would load as something else than it says: an adapter, undeclared codes."""
        check_readable(self)

    def block_weights(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of the tensors that a skill may touch, in sorted order.

        By default the weights of the repeated encoder or decoder blocks: embeddings, position tables, final norm and
        heads are left out (Panigrahi et al. 2023, section 2). `include` and `exclude` are shell patterns over tensor
        names: with `include`, what they match is taken instead; what `exclude` matches is left out.
        """
        return self.structure.select(include, exclude)

    @cached_property
    def other_copies(self) -> tuple[str, ...]:
        """Names in the folder that hold further copies of the weights (`pytorch_model.bin`, `onnx/`, `checkpoint-500/`).

        Nothing that changes the weights changes these, and many tools load them: they are never copied along.
        """
        index = _OLD_INDEX if self._pickled else _INDEX
        sharded = not (self.folder / (_OLD_SINGLE if self._pickled else _SINGLE)).exists()
        return other_copies(self.folder, {file.name for file in self.files} | ({index} if sharded else set()))

    def copy_other_files(self, folder: Path) -> None:
        """Copy config, tokenizer and whatever else lies there into `folder`, but no weights: neither these nor `other_copies`."""
        left = {JOURNAL, *NOT_CONTENT, *(file.name for file in self.files)}
        left |= {name.rstrip("/") for name in self.other_copies}
        if self._pickled:
            left.add(_OLD_INDEX)
        for path in sorted(self.folder.iterdir()):
            if path.name in left:
                continue
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                shutil.copyfile(path, folder / path.name)

    def as_safetensors(self, scratch: Path) -> "Checkpoint":
        """This checkpoint if its weights are safetensors already, else a copy in `scratch`, converted shard by shard."""
        if not self._pickled:
            return self
        self.copy_other_files(scratch)
        table: dict[str, str] = {}
        for number, file in enumerate(self.files, 1):
            name = _SINGLE if len(self.files) == 1 else f"model-{number:05d}-of-{len(self.files):05d}.safetensors"
            # Cloned: tied tensors share memory, which safetensors refuses.
            tensors = {key: value.contiguous().clone() for key, value in self._pickled_shard(file).items()}
            save_file(tensors, scratch / name, metadata={"format": "pt"})
            table |= dict.fromkeys(tensors, name)
        if len(self.files) > 1:
            total = sum(entry.stop - entry.start for entry in self.entries.values())
            content = {"metadata": {"total_size": total}, "weight_map": table}
            (scratch / _INDEX).write_text(json.dumps(content, indent=2))
        return Checkpoint(scratch)

    def _weight_files(self) -> list[Path]:
        single, index = (_OLD_SINGLE, _OLD_INDEX) if self._pickled else (_SINGLE, _INDEX)
        if (self.folder / single).exists():
            return [self.folder / single]
        if not (self.folder / index).exists():
            raise CheckpointError(
                f"{self.folder} holds no {_SINGLE}, {_INDEX} or {_OLD_SINGLE}: is it a Hugging Face model folder?"
            )
        table = _read_json(self.folder / index).get("weight_map")
        if not isinstance(table, dict) or not table or any(Path(str(n)).name != n for n in table.values()):
            raise CheckpointError(
                f"{self.folder / index} has no weight_map from tensors to files beside it: fetch the checkpoint again"
            )
        files = [self.folder / name for name in sorted(set(table.values()))]
        for file in files:
            if not file.exists():
                raise CheckpointError(f"{file} is missing, though {index} names it: fetch the checkpoint again")
        return files

    def _read_entries(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for file in self.files:
            if self._pickled:
                shard = self._pickled_shard(file).items()
                entries = [
                    Entry(name, tensor.dtype, tuple(tensor.shape), file, 0, tensor.nbytes) for name, tensor in shard
                ]
            else:
                entries = read_header(file)[0]
            for entry in entries:
                if entry.name in found:
                    raise CheckpointError(
                        f"tensor {entry.name} lies in {found[entry.name].file} and in {file}: fetch the checkpoint again"
                    )
                found[entry.name] = entry
        single, index = (_OLD_SINGLE, _OLD_INDEX) if self._pickled else (_SINGLE, _INDEX)
        indexed = {} if (self.folder / single).exists() else _read_json(self.folder / index)["weight_map"]
        if lost := set(indexed) - set(found):
            raise CheckpointError(
                f"{self.folder}: {index} names tensor {min(lost)}, which no file holds: fetch the checkpoint again"
            )
        return found

    def _pickled_shard(self, file: Path) -> dict[str, Tensor]:
        if file not in self._shards:
            zipped = zipfile.is_zipfile(file)  # torch wrote another format before 1.6, which can't be mapped
            try:
                shard = torch.load(file, weights_only=True, map_location="cpu", mmap=zipped)
            except Exception as error:  # the unpickler raises a dozen different types
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(
                    f"{file} can't be read as plain weights ({reason}): convert it to safetensors"
                ) from error
            if not isinstance(shard, dict) or not all(isinstance(tensor, Tensor) for tensor in shard.values()):
                raise CheckpointError(f"{file} holds more than tensors: convert it to safetensors")
            self._shards[file] = shard
        return self._shards[file]


def fingerprint(entries: Mapping[str, Entry], digests: Mapping[str, str]) -> str:
    """SHA-256 over name, dtype, shape and content hash of every tensor in sorted order; 64 hex digits."""
    total = hashlib.sha256()
    for name in sorted(entries):
        entry = entries[name]
        total.update(json.dumps([name, str(entry.dtype), list(entry.shape), digests[name]]).encode())
    return total.hexdigest()


def rewrite(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write `checkpoint` into the empty `folder` with some whole tensors replaced, in the same files and order.

    The new tensors are cast to the dtype that the checkpoint stores. One shard's worth of new tensors is in memory.
    """
    if lost := set(tensors) - set(checkpoint.entries):
        raise CheckpointError(f"{checkpoint} has no tensor {min(lost)} to replace")
    source = checkpoint.as_safetensors(folder)
    if source is checkpoint:
        checkpoint.copy_other_files(folder)
        for file in checkpoint.files:
            shutil.copyfile(file, folder / file.name)
    for name, tensor in tensors.items():
        entry = replace(source.entries[name], file=folder / source.entries[name].file.name)
        if tuple(tensor.shape) != entry.shape:
            raise CheckpointError(f"tensor {name} has shape {entry.shape} in {checkpoint}, not {tuple(tensor.shape)}")
        with entry.file.open("r+b") as handle:
            handle.seek(entry.start)
            handle.write(_raw_bytes(tensor.detach().to("cpu", entry.dtype)))


def tokenizer_files(folder: Path) -> list[Path]:
    """Files of a folder that decide over tokens, sorted by name."""
    return [
        path
        for path in sorted(folder.iterdir())
        if any(fnmatchcase(path.name, pattern) for pattern in TOKENIZER_FILES) and path.is_file()
    ]


def _raw_bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _resolve(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")) or not name.strip():
        raise CheckpointError(f"{name!r} is not a folder: give a Hugging Face model folder or a hub id")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja", *TOKENIZER_FILES]
    found = hub_folder(name, patterns, CheckpointError)
    if not any(found.glob("*.safetensors")):
        found = hub_folder(name, [*patterns, "pytorch_model*.bin"], CheckpointError)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_loose(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: is {path.parent} a Hugging Face model folder?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} isn't readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} isn't a JSON table")
    return content


def open_checkpoint(source: "str | Path | Checkpoint") -> Checkpoint:
    """The checkpoint itself, or the one that a folder or hub id names."""
    return source if isinstance(source, Checkpoint) else Checkpoint(source)
