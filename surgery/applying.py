"""Put a SparseDelta into a checkpoint's files, or take it out again, without ever holding a model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from surgery.checkpoint import JOURNAL, Checkpoint, fingerprint
from surgery.delta import SparseDelta
from surgery.errors import CheckpointError, SkillError
from surgery.files import new_folder, replace_bytes
from surgery.patching import Edit, WrongBaseError, digests, hash_and_patch, patch_in_place
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
    chunk of one tensor. The folder appears only when complete and checked.

    Args:
        add: further small files to write, by name.
        drop: files to leave out, by name, if their content is this.
        progress: counts bytes.

    Raises:
        SkillError: the checkpoint isn't the delta's base, naming fingerprints and the first differing tensor.
    """
    edits = delta.edits(revert=direction == "revert")
    with new_folder(Path(folder), overwrite=overwrite) as staged:
        check_shapes(delta, checkpoint)
        source = checkpoint.as_safetensors(staged)
        if source is not checkpoint:  # converted into the new folder already: patch it there
            _check_digests(delta, checkpoint, digests(source.entries.values(), edits))
            patch_in_place(source.entries.values(), edits)
        else:
            checkpoint.copy_other_files(staged)
            try:
                found = _copy_patched(checkpoint, edits, staged, progress)
            except WrongBaseError as error:
                raise _wrong_base(delta, checkpoint, error.tensor) from error
            _check_digests(delta, checkpoint, found)
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
    then `Checkpoint` refuses the folder, and running this again, in either direction, completes it.

    Raises:
        SkillError: the checkpoint isn't the delta's base, or another skill's patch is half done.
        CheckpointError: the weights aren't safetensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: only a checkpoint on this disk can be patched in place")
    checkpoint = Checkpoint(folder, half_patched=True)
    if linked := [file for file in checkpoint.files if file.is_symlink()]:
        raise CheckpointError(
            f"{linked[0]} is a link, as in the hub's cache, which others share: apply into a new folder"
        )
    if any(file.suffix != ".safetensors" for file in checkpoint.files):
        raise CheckpointError(
            f"{folder} holds pickled weights, which can't be patched in place: apply into a new folder"
        )
    check_shapes(delta, checkpoint)
    journal = folder / JOURNAL
    name = _name(delta)
    if journal.exists() and (begun := json.loads(journal.read_text()).get("delta")) != name:
        raise SkillError(
            f"{folder} is half patched by another skill ({begun}), not by this one ({name}): apply or revert that one first"
        )
    edits = delta.edits(revert=direction == "revert")
    try:
        found = digests(checkpoint.entries.values(), edits)
    except WrongBaseError as error:
        raise _wrong_base(delta, checkpoint, error.tensor) from error
    _check_digests(delta, checkpoint, found)
    replace_bytes(journal, json.dumps({"delta": name, "direction": direction}).encode())
    patch_in_place(checkpoint.entries.values(), edits)
    _change_extras(folder, add if direction == "apply" else None, drop if direction == "revert" else None)
    journal.unlink()
    return folder


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


def _copy_patched(
    checkpoint: Checkpoint, edits: Mapping[str, Edit], folder: Path, progress: Progress
) -> dict[str, str]:
    found = {}
    done, total = 0, sum(file.stat().st_size for file in checkpoint.files)
    for file in checkpoint.files:
        entries = sorted((e for e in checkpoint.entries.values() if e.file == file), key=lambda e: (e.start, e.stop))
        with file.open("rb", buffering=0) as source, (folder / file.name).open("wb") as target:
            target.write(source.read(entries[0].start if entries else -1))
            for entry in entries:
                found[entry.name] = hash_and_patch(source, entry, edits.get(entry.name), target)
                done += entry.stop - entry.start
                progress(done, total, "writing")
    return found


def _check_digests(delta: SparseDelta, checkpoint: Checkpoint, found: Mapping[str, str]) -> None:
    if delta.base_fingerprint and fingerprint(checkpoint.entries, found) != delta.base_fingerprint:
        raise _wrong_base(delta, checkpoint, None)


def _wrong_base(delta: SparseDelta, checkpoint: Checkpoint, touched: str | None) -> SkillError:
    names = sorted(checkpoint.entries)
    if len(names) == len(delta.base_digests):
        pairs = zip(names, delta.base_digests, strict=True)
        tensor = next((name for name, digest in pairs if checkpoint.digests[name] != digest), touched)
    else:
        tensor = f"unknown, since it holds {len(names)} tensors and the base {len(delta.base_digests)}"
    return SkillError(
        f"{checkpoint} is not the skill's base: fingerprint {checkpoint.fingerprint[:16]} instead of {delta.base_fingerprint[:16]}, "
        f"first differing tensor {tensor}; apply the skill to the checkpoint it was made from"
    )


def _change_extras(folder: Path, add: Mapping[str, bytes] | None, drop: Mapping[str, bytes] | None) -> None:
    for name, content in (add or {}).items():
        replace_bytes(folder / name, content)
    for name, content in (drop or {}).items():
        if (folder / name).exists() and (folder / name).read_bytes() == content:
            (folder / name).unlink()


def _name(delta: SparseDelta) -> str:
    return hashlib.sha256(delta.to_bytes()).hexdigest()[:16]
