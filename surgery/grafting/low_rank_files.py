"""Checkpoints with a skill of low rank: written from the base, and taken back to it."""

from collections.abc import Mapping
from pathlib import Path

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.checkpoints.low_rank import LowRankDelta
from surgery.errors import OptionError, SkillError
from surgery.files import check_apart, new_folder, replace_bytes


def add_factors(
    factors: LowRankDelta,
    readouts: Mapping[str, bytes],
    checkpoint: str | Path | Checkpoint,
    output: str | Path | None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the base with the factors added into a new folder, with the readouts beside it.

    Raises OptionError without an output: in place nothing could take them out again; SkillError for another checkpoint.
    """
    if output is None:
        raise OptionError(
            "a skill of low rank can't be applied with `in_place`, since nothing there could take it out again: give `output`"
        )
    base = open_checkpoint(checkpoint)
    tensors = factors.tensors(base)
    check_apart(Path(output), base.folder)
    with new_folder(Path(output), overwrite=overwrite, replaces="config.json") as staged:
        rewrite(base, tensors, staged)
        for name, content in readouts.items():
            if (staged / name).exists() and (staged / name).read_bytes() != content:
                raise SkillError(
                    f"{base.folder / name} is there already, and isn't the skill's: move it away and apply again"
                )
            replace_bytes(staged / name, content)
    return Path(output)


def take_out_factors(
    factors: LowRankDelta,
    readouts: Mapping[str, bytes],
    checkpoint: str | Path | Checkpoint,
    output: str | Path | None,
    base: str | Path | Checkpoint | None,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint with the base's own tensors where the factors are, into a new folder: the base's weights, bit for bit.

    Raises OptionError without the base or an output, SkillError where what comes out isn't the base.
    """
    if base is None:
        raise OptionError(
            "a skill of low rank holds none of the base's values, so it can't be taken out without it: give `base`"
        )
    if output is None:
        raise OptionError("a skill of low rank can't be taken out with `in_place`: give `output`")
    before, grafted = open_checkpoint(base), open_checkpoint(checkpoint)
    factors.check_base(before)
    check_apart(Path(output), before.folder, grafted.folder)
    for name in factors.factors:
        entry = grafted.entries.get(name)
        if entry is None or entry.shape != factors.touched[name].shape:
            raise SkillError(f"{grafted} doesn't hold the skill: its tensor {name} isn't that of the base")
    with new_folder(Path(output), overwrite=overwrite, replaces="config.json") as staged:
        rewrite(grafted, {name: before.tensor(name) for name in factors.factors}, staged)
        if Checkpoint(staged).fingerprint != factors.base_fingerprint:
            raise SkillError(
                f"{grafted} isn't the base with this skill alone: it differs from the base in tensors that the skill doesn't touch"
            )
        for name, content in readouts.items():
            if (staged / name).exists() and (staged / name).read_bytes() == content:
                (staged / name).unlink()
    return Path(output)
