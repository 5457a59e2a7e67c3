"""Put a SparseDelta into a checkpoint's files, or take it out again, without ever holding a model."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint, fingerprint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.patching import Edit, WrongBaseError, digests, hash_and_patch, patch_in_place
from surgery.checkpoints.traits import Traits
from surgery.errors import CheckpointError, SkillError
from surgery.files import check_apart, new_folder, replace_bytes, streamed_file
from surgery.jsonfile import parse_loose
from surgery.locks import hold
from surgery.progress import Progress, silent

Direction = Literal["apply", "revert"]


def write_patched(
    delta: SparseDelta,
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    direction: Direction = "apply",
    overwrite: bool = False,
    add: Mapping[str, bytes] | None = None,
    drop: Mapping[str, bytes] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write `checkpoint` with the delta applied or reverted into a new folder, file by file, in one pass.

    A weight that holds the wanted value already is left as it is, so either direction may be run twice. Memory: one
    chunk of one tensor. The folder appears only when complete and checked. Further copies of the weights
    (`Checkpoint.other_copies`), which would stay as they are, are left out.

    Args:
        add: further small files to write, by name.
        drop: files to leave out, by name, if their content is this.
        progress: counts bytes.

    Raises:
        SkillError: the checkpoint isn't the delta's base, naming what differs: a field of the config, the tokenizer, or
            fingerprints and the first differing tensor.
    """
    edits = delta.edits(revert=direction == "revert")
    check_apart(Path(folder), checkpoint.folder)
    if direction == "apply":
        _check_extras(checkpoint.folder, add)
    with new_folder(Path(folder), overwrite=overwrite, replaces="config.json") as staged:
        check_shapes(delta, checkpoint)
        _check_traits(delta, checkpoint)
        source = checkpoint.as_safetensors(staged)
        if source is not checkpoint:  # converted into the new folder already: patch it there
            _check_base(delta, source, edits, checkpoint)
            patch_in_place(source.entries.values(), edits)
        else:
            checkpoint.copy_other_files(staged)
            try:
                found = _copy_patched(checkpoint, edits, staged, progress)
            except WrongBaseError as error:
                raise _wrong_base(delta, checkpoint, edits) from error
            if not _is_base(delta, checkpoint, found):
                raise _wrong_base(delta, checkpoint, edits)
        _change_extras(staged, add if direction == "apply" else None, drop if direction == "revert" else None)
    return Path(folder)


def patch_folder(
    delta: SparseDelta,
    folder: str | Path,
    *,
    direction: Direction = "apply",
    add: Mapping[str, bytes] | None = None,
    drop: Mapping[str, bytes] | None = None,
) -> Path:
    """Apply or revert a delta in a checkpoint's own files, writing only the touched weights.

    A journal names the patch from before the first write until after the last. A run that is killed leaves it there:
    then `Checkpoint` refuses the folder, and running this again, in either direction, completes it. The folder is held
    against other runs all the while.

    Raises:
        BusyError: another run is patching the folder, or writing it.
        SkillError: the checkpoint isn't the delta's base, or another skill's patch is half done.
        CheckpointError: the weights aren't safetensors, or the skill would go into them and not into other copies that
            lie there too.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: only a checkpoint on this disk can be patched in place")
    with hold(folder):
        _patch(delta, folder, direction, add, drop)
    return folder


def _patch(
    delta: SparseDelta,
    folder: Path,
    direction: Direction,
    add: Mapping[str, bytes] | None,
    drop: Mapping[str, bytes] | None,
) -> None:
    checkpoint = Checkpoint(folder, half_patched=True)
    if linked := [file for file in checkpoint.files if file.is_symlink() or file.stat().st_nlink > 1]:
        raise CheckpointError(
            f"{linked[0]} is a link, as in the hub's cache, which others share: apply into a new folder"
        )
    if any(file.suffix != ".safetensors" for file in checkpoint.files):
        raise CheckpointError(
            f"{folder} holds pickled weights, which can't be patched in place: apply into a new folder"
        )
    check_shapes(delta, checkpoint)
    if readonly := [file for file in checkpoint.files if not os.access(file, os.W_OK)]:
        raise CheckpointError(f"{readonly[0]} can't be written to: apply into a new folder")
    journal = folder / JOURNAL
    name = _name(delta)
    if journal.exists() and (begun := _read_journal(journal)) != name:
        raise SkillError(
            f"{folder} is half patched by another skill ({begun}), not by this one ({name}): apply or revert that one first"
        )
    if direction == "apply" and not journal.exists() and checkpoint.other_copies:
        raise CheckpointError(
            f"{folder} also holds {', '.join(checkpoint.other_copies)}, copies of the weights that other tools may load and "
            "that wouldn't be patched: move them away, or apply into a new folder"
        )
    if not journal.exists():  # else what is half done would stay so
        _check_traits(delta, checkpoint)
    edits = delta.edits(revert=direction == "revert")
    _check_base(delta, checkpoint, edits)
    if direction == "apply":
        _check_extras(folder, add)  # before the first write: else it would be half done for good
    replace_bytes(journal, json.dumps({"delta": name, "direction": direction}).encode())
    patch_in_place(checkpoint.entries.values(), edits)
    _change_extras(folder, add if direction == "apply" else None, drop if direction == "revert" else None)
    journal.unlink()


def check_shapes(delta: SparseDelta, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors can't be the base's, by name."""
    for extent in delta.extents:
        entry = checkpoint.entries.get(extent.name)
        if entry is None:
            raise SkillError(
                f"the skill touches tensor {extent.name}, which {checkpoint} doesn't hold: apply it to its own base"
            )
        if (entry.shape, entry.dtype) != (extent.shape, extent.dtype):
            raise SkillError(
                f"tensor {extent.name} is {entry.dtype} {entry.shape} in {checkpoint}, but {extent.dtype} {extent.shape} in the skill: "
                "apply it to its own base"
            )


def unchecked(delta: SparseDelta, checkpoint: Checkpoint) -> str:
    """What can't be held against the base, and why; empty where all can."""
    if delta.traits is None:
        return "config and tokenizer, which the skill doesn't hold: an earlier version made it"
    if not delta.traits.tokenizer:
        return "the tokenizer, since the skill's base had none"
    return "" if Traits.of(checkpoint, delta.traits).tokenizer else f"the tokenizer, since {checkpoint} has none"


def _check_traits(delta: SparseDelta, checkpoint: Checkpoint) -> None:
    if delta.traits and (difference := delta.traits.difference(Traits.of(checkpoint, delta.traits))):
        raise SkillError(
            f"{checkpoint} is not the skill's base: its {difference}; apply the skill to the checkpoint it was made from"
        )


def _copy_patched(
    checkpoint: Checkpoint, edits: Mapping[str, Edit], folder: Path, progress: Progress
) -> dict[str, str]:
    found = {}
    done, total = 0, sum(entry.stop - entry.start for entry in checkpoint.entries.values())
    for file in checkpoint.files:
        entries = sorted((e for e in checkpoint.entries.values() if e.file == file), key=lambda e: (e.start, e.stop))
        size = file.stat().st_size
        with file.open("rb", buffering=0) as source, streamed_file(folder / file.name, size) as target:
            target.write(source.read(entries[0].start if entries else -1))
            for entry in entries:
                found[entry.name] = hash_and_patch(source, entry, edits.get(entry.name), target)
                done += entry.stop - entry.start
                progress(done, total, "writing")
    return found


def _check_base(
    delta: SparseDelta, checkpoint: Checkpoint, edits: Mapping[str, Edit], shown: Checkpoint | None = None
) -> None:
    try:
        found = digests(checkpoint.entries.values(), edits)
    except WrongBaseError as error:
        raise _wrong_base(delta, checkpoint, edits, shown) from error
    if not _is_base(delta, checkpoint, found):
        raise _wrong_base(delta, checkpoint, edits, shown)


def _is_base(delta: SparseDelta, checkpoint: Checkpoint, found: Mapping[str, str]) -> bool:
    return not delta.base_fingerprint or fingerprint(checkpoint.entries, found) == delta.base_fingerprint


def _wrong_base(
    delta: SparseDelta, checkpoint: Checkpoint, edits: Mapping[str, Edit], shown: Checkpoint | None = None
) -> SkillError:
    """Says what differs; `shown` is the checkpoint to name where `checkpoint` is only a converted copy of it."""
    expected = delta.base_fingerprint[:16] or "one that holds the skill's values"
    return SkillError(
        f"{shown or checkpoint} is not the skill's base: fingerprint {checkpoint.fingerprint[:16]} instead of {expected}, "
        f"first differing tensor {_first_difference(delta, checkpoint, edits)}; apply the skill to the checkpoint it was made from"
    )


def _first_difference(delta: SparseDelta, checkpoint: Checkpoint, edits: Mapping[str, Edit]) -> str:
    names = sorted(checkpoint.entries)
    if delta.base_digests and len(names) != len(delta.base_digests):
        return f"unknown, since it holds {len(names)} tensors and the base {len(delta.base_digests)}"
    # A tensor is compared as it was before the skill: a touched weight that holds its tuned value is no difference.
    for name, digest in zip(names, delta.base_digests or [None] * len(names), strict=True):
        try:
            found = digests([checkpoint.entries[name]], edits)[name]
        except WrongBaseError:
            return name
        if digest not in (None, found):
            return name
    return "unknown, since only names or shapes differ"


def _read_journal(journal: Path) -> str:
    try:
        return str(parse_loose(journal.read_bytes())["delta"])
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"{journal} can't be read, so this folder is half patched by no one knows what") from None


def _check_extras(folder: Path, add: Mapping[str, bytes] | None) -> None:
    for name, content in (add or {}).items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            raise SkillError(f"{folder / name} is there already, and isn't the skill's: move it away and apply again")


def _change_extras(folder: Path, add: Mapping[str, bytes] | None, drop: Mapping[str, bytes] | None) -> None:
    for name, content in (add or {}).items():
        replace_bytes(folder / name, content)
    for name, content in (drop or {}).items():
        if (folder / name).exists() and (folder / name).read_bytes() == content:
            (folder / name).unlink()


def _name(delta: SparseDelta) -> str:
    return hashlib.sha256(delta.to_bytes()).hexdigest()[:16]
