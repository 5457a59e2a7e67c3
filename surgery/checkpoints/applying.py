"""Put a SparseDelta into a checkpoint's files, or take it out again, without ever holding a model."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint, fingerprint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.patching import Edit, WrongBaseError, digests, hash_and_patch, patch_in_place
from surgery.checkpoints.traits import Traits
from surgery.errors import CheckpointError, OptionError, SkillError
from surgery.files import check_apart, new_folder, replace_bytes, streamed_file, sweep_files
from surgery.jsonfile import parse_loose
from surgery.locks import hold
from surgery.progress import Progress, silent

Direction = Literal["apply", "revert"]


@dataclass(frozen=True)
class Patch:
    """A change of a checkpoint's weights, and of small files beside them.

    Attributes:
        delta: every weight that may change, and the base that the checkpoint must be of.
        edits: what these weights hold and what they are to hold.
        direction: whether skills go in or come out; going in stops at whatever would be left without them.
        name: names the patch while it is under way in place; one name for both directions.
        journal: what else the journal is to say then.
        add: files to write; a file that is there already must have this content.
        own: files of ours to write, over older ones.
        drop: files to delete if this is their content; None for a file of ours, whatever its content.
        settled: the checkpoint is as it is to be already, so there is nothing that a kill could leave half done.
    """

    delta: SparseDelta
    edits: Mapping[str, Edit]
    direction: Direction
    name: str
    journal: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, bytes] = field(default_factory=dict)
    own: Mapping[str, bytes] = field(default_factory=dict)
    drop: Mapping[str, bytes | None] = field(default_factory=dict)
    settled: bool = False

    @classmethod
    def of(
        cls,
        delta: SparseDelta,
        direction: Direction,
        add: Mapping[str, bytes] | None = None,
        drop: Mapping[str, bytes] | None = None,
    ) -> "Patch":
        """The patch that applies a delta, adding files, or reverts it, dropping files."""
        applies = direction == "apply"
        return cls(
            delta,
            delta.edits(revert=not applies),
            direction,
            delta_name(delta),
            add=(add or {}) if applies else {},
            drop={} if applies else (drop or {}),
        )


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
    patch = Patch.of(delta, direction, add, drop)
    return write_patch(patch, checkpoint, folder, overwrite=overwrite, progress=progress)


def write_patch(
    patch: Patch,
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """`write_patched` of any patch."""
    check_apart(Path(folder), checkpoint.folder)
    _check_extras(checkpoint.folder, patch.add)
    with new_folder(Path(folder), overwrite=overwrite, replaces="config.json") as staged:
        check_shapes(patch.delta, checkpoint)
        _check_traits(patch.delta, checkpoint)
        source = checkpoint.as_safetensors(staged)
        if source is not checkpoint:  # converted into the new folder already: patch it there
            _check_base(patch, source, checkpoint)
            patch_in_place(source.entries.values(), patch.edits)
        else:
            checkpoint.copy_other_files(staged)
            try:
                hashes = _copy_patched(checkpoint, patch.edits, staged, progress)
            except WrongBaseError as error:
                raise _wrong_base(patch, checkpoint) from error
            if not _is_base(patch.delta, checkpoint, hashes):
                raise _wrong_base(patch, checkpoint)
        _change_extras(staged, patch)
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
    with hold_checkpoint(folder) as held:
        patch_held(Patch.of(delta, direction, add, drop), held)
    return held


@contextmanager
def hold_checkpoint(folder: str | Path) -> Iterator[Path]:
    """Hold a checkpoint's folder against other runs while it is patched in place."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: only a checkpoint on this disk can be patched in place")
    with hold(folder):
        yield folder


def patch_held(patch: Patch, folder: Path) -> None:
    """`patch_folder` of any patch, in a folder that the caller holds."""
    checkpoint = Checkpoint(folder, half_patched=True)
    if linked := [file for file in checkpoint.files if file.is_symlink() or file.stat().st_nlink > 1]:
        raise CheckpointError(
            f"{linked[0]} is a link, as in the hub's cache, which others share: apply into a new folder"
        )
    if any(file.suffix != ".safetensors" for file in checkpoint.files):
        raise CheckpointError(
            f"{folder} holds pickled weights, which can't be patched in place: apply into a new folder"
        )
    check_shapes(patch.delta, checkpoint)
    if readonly := [file for file in checkpoint.files if not os.access(file, os.W_OK)]:
        raise CheckpointError(f"{readonly[0]} can't be written to: apply into a new folder")
    begun = read_journal(folder)
    if begun and begun["delta"] != patch.name:
        raise SkillError(
            f"{folder} is half patched by another skill ({begun['delta']}), not by this one ({patch.name}): apply or revert that one first"
        )
    if patch.direction == "apply" and not begun and checkpoint.other_copies:
        raise CheckpointError(
            f"{folder} also holds {', '.join(checkpoint.other_copies)}, copies of the weights that other tools may load and "
            "that wouldn't be patched: move them away, or apply into a new folder"
        )
    if not begun:  # else what is half done would stay so
        _check_traits(patch.delta, checkpoint)
    _check_base(patch, checkpoint)
    _check_extras(folder, patch.add)  # before the first write: else it would be half done for good
    if patch.settled and not begun:  # a journal would let the opposite run undo this one, which is to do nothing
        _change_extras(folder, patch)
        return
    note = {"delta": patch.name, "direction": patch.direction, **patch.journal}
    replace_bytes(folder / JOURNAL, json.dumps(note).encode())
    patch_in_place(checkpoint.entries.values(), patch.edits)
    _change_extras(folder, patch)
    (folder / JOURNAL).unlink()


def check_place(checkpoint: str | Path | Checkpoint, output: str | Path | None, in_place: bool) -> None:
    """Refuse no place to write to, or two, and a hub id to be patched in place, before anything is fetched."""
    if in_place == (output is not None):
        raise OptionError("give `output` or `in_place`, one of the two")
    if in_place and not isinstance(checkpoint, Checkpoint) and not Path(checkpoint).is_dir():
        raise CheckpointError(f"{checkpoint} is not a folder: only a checkpoint on this disk can be patched in place")


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
    hashes = {}
    done, total = 0, sum(entry.stop - entry.start for entry in checkpoint.entries.values())
    for file in checkpoint.files:
        entries = sorted((e for e in checkpoint.entries.values() if e.file == file), key=lambda e: (e.start, e.stop))
        size = file.stat().st_size
        with file.open("rb", buffering=0) as source, streamed_file(folder / file.name, size) as target:
            target.write(source.read(entries[0].start if entries else -1))
            for entry in entries:
                hashes[entry.name] = hash_and_patch(source, entry, edits.get(entry.name), target)
                done += entry.stop - entry.start
                progress(done, total, "writing")
    return hashes


def _check_base(patch: Patch, checkpoint: Checkpoint, shown: Checkpoint | None = None) -> None:
    try:
        hashes = digests(checkpoint.entries.values(), patch.edits)
    except WrongBaseError as error:
        raise _wrong_base(patch, checkpoint, shown) from error
    if not _is_base(patch.delta, checkpoint, hashes):
        raise _wrong_base(patch, checkpoint, shown)


def _is_base(delta: SparseDelta, checkpoint: Checkpoint, hashes: Mapping[str, str]) -> bool:
    return not delta.base_fingerprint or fingerprint(checkpoint.entries, hashes) == delta.base_fingerprint


def _wrong_base(patch: Patch, checkpoint: Checkpoint, shown: Checkpoint | None = None) -> SkillError:
    """Says what differs; `shown` is the checkpoint to name where `checkpoint` is only a converted copy of it."""
    delta = patch.delta
    more = ", and name any other skill that it holds" if patch.direction == "apply" else ""
    expected = delta.base_fingerprint[:16] or "one that holds the skill's values"
    return SkillError(
        f"{shown or checkpoint} is not the skill's base: fingerprint {checkpoint.fingerprint[:16]} instead of {expected}, "
        f"first differing tensor {_first_difference(delta, checkpoint, patch.edits)}; apply the skill to the checkpoint it was made from{more}"
    )


def _first_difference(delta: SparseDelta, checkpoint: Checkpoint, edits: Mapping[str, Edit]) -> str:
    names = sorted(checkpoint.entries)
    if delta.base_digests and len(names) != len(delta.base_digests):
        return f"unknown, since it holds {len(names)} tensors and the base {len(delta.base_digests)}"
    # A tensor is compared as it was before the skill: a touched weight that holds its tuned value is no difference.
    for name, digest in zip(names, delta.base_digests or [None] * len(names), strict=True):
        try:
            actual = digests([checkpoint.entries[name]], edits)[name]
        except WrongBaseError:
            return name
        if digest not in (None, actual):
            return name
    return "unknown, since only names or shapes differ"


def read_journal(folder: Path) -> dict[str, Any] | None:
    """What is half done in a folder, `delta` naming the patch; None where nothing is."""
    journal = folder / JOURNAL
    if not journal.exists():
        return None
    try:
        content = parse_loose(journal.read_bytes())
        return {**content, "delta": str(content["delta"])}
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(
            f"{journal} can't be read, so the patch that was begun here can't be told: fetch the checkpoint again"
        ) from None


def _check_extras(folder: Path, add: Mapping[str, bytes]) -> None:
    for name, content in add.items():
        if (folder / name).exists() and (folder / name).read_bytes() != content:
            raise SkillError(f"{folder / name} is there already, and isn't the skill's: move it away and apply again")


def _change_extras(folder: Path, patch: Patch) -> None:
    for name, content in {**patch.add, **patch.own}.items():
        replace_bytes(folder / name, content)
    for name, held in patch.drop.items():
        path = folder / name
        if path.exists() and held in (None, path.read_bytes()):
            path.unlink()
            sweep_files(path)


def delta_name(delta: SparseDelta) -> str:
    """Sixteen hex digits that name a delta, by the content of its file."""
    return hashlib.sha256(delta.to_bytes()).hexdigest()[:16]
