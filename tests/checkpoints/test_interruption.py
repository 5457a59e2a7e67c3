"""An in-place patch that is interrupted, at any moment, can be completed in either direction; nothing else may touch it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.checkpoints.applying import patch_folder, write_patched
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import CheckpointError, SkillError
from tests.support.tiny import hashes, perturb, shard

COUNT = 40  # weights in the skill
EXTRA = {"readout.bin": b"readout"}


class Killed(BaseException):
    """Stands for a signal: no handler for ordinary errors may catch it."""


@pytest.fixture
def folder(tiny, tmp_path):
    """A sharded BERT, to be patched in place."""
    return shard(tiny("bert"), tmp_path / "base")


@pytest.fixture
def skill(folder, tmp_path):
    """A skill file for it; loaded anew for each use, as by another run."""
    perturb(folder, tmp_path / "tuned", count=COUNT)
    file = tmp_path / "skill.safetensors"
    file.write_bytes(SparseDelta.between(Checkpoint(folder), Checkpoint(tmp_path / "tuned")).to_bytes())
    return file


@pytest.fixture
def states(folder, skill, tmp_path):
    """Hashes of all files as they are to be after each direction, by way of a new folder."""
    base = Checkpoint(folder)
    write_patched(SparseDelta.load(skill), base, tmp_path / "applied", add=EXTRA)
    return {"revert": hashes(folder), "apply": hashes(tmp_path / "applied")}


def patch(skill, folder, direction):
    patch_folder(SparseDelta.load(skill), folder, direction=direction, add=EXTRA, drop=EXTRA)


def stop_at(monkeypatch, owner, name, number, when=lambda *_: True):
    """Make the call number `number` of a function, of those for which `when` holds, the last thing that happens."""
    real, seen = getattr(owner, name), []

    def stopped(*arguments, **options):
        if when(*arguments):
            seen.append(arguments)
            if len(seen) == number:
                raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, stopped)


def is_journal(path, *_):
    return path.name == JOURNAL


# The moments, in order; True where the folder is half patched then.
MOMENTS = {
    "while the base is checked": (
        lambda m: stop_at(m, sys.modules["surgery.checkpoints.patching"], "hash_and_patch", 9),
        False,
    ),
    "while the journal is written": (lambda m: stop_at(m, os, "fsync", 1), False),
    "before the journal takes its name": (lambda m: stop_at(m, Path, "replace", 1), False),
    "once the journal has its name": (lambda m: stop_at(m, os, "fsync", 2), True),
    "before the first weight": (lambda m: stop_at(m, os, "pwrite", 1), True),
    "before the second weight": (lambda m: stop_at(m, os, "pwrite", 2), True),
    "in the middle": (lambda m: stop_at(m, os, "pwrite", COUNT // 2), True),
    "before the last weight": (lambda m: stop_at(m, os, "pwrite", COUNT), True),
    "before the extra file": (
        lambda m: stop_at(m, sys.modules["surgery.checkpoints.applying"], "_change_extras", 1),
        True,
    ),
    "before the journal is removed": (lambda m: stop_at(m, Path, "unlink", 1, is_journal), True),
}


@pytest.mark.parametrize("then", ["apply", "revert"])
@pytest.mark.parametrize("first", ["apply", "revert"])
@pytest.mark.parametrize(("stop", "half"), MOMENTS.values(), ids=MOMENTS)
def test_interrupted_patch_is_completed_in_either_direction(
    folder, skill, states, monkeypatch, stop, half, first, then
):
    if first == "revert":
        patch(skill, folder, "apply")
    start = hashes(folder)
    with monkeypatch.context() as moment:
        stop(moment)
        with pytest.raises(Killed):
            patch(skill, folder, first)
    assert (folder / JOURNAL).exists() == half
    if half:
        with pytest.raises(CheckpointError, match="is half patched"):
            Checkpoint(folder)
    else:
        assert hashes(folder) == start
        Checkpoint(folder)
    patch(skill, folder, then)
    assert hashes(folder) == states[then]
    assert Checkpoint(folder).entries


def test_interrupted_again_and_again(folder, skill, states, monkeypatch):
    for direction, number in [("apply", 3), ("revert", 30), ("apply", 35), ("apply", 1), ("revert", 12)]:
        with monkeypatch.context() as moment:
            stop_at(moment, os, "pwrite", number)
            with pytest.raises(Killed):
                patch(skill, folder, direction)
    patch(skill, folder, "apply")
    assert hashes(folder) == states["apply"]
    patch(skill, folder, "revert")
    assert hashes(folder) == states["revert"]


def half_patched(skill, folder, monkeypatch):
    with monkeypatch.context() as moment:
        stop_at(moment, os, "pwrite", COUNT // 2)
        with pytest.raises(Killed):
            patch(skill, folder, "apply")
    return hashes(folder)


@pytest.mark.parametrize("direction", ["apply", "revert"])
def test_another_skill_may_not_touch_a_half_patched_folder(folder, skill, states, tmp_path, monkeypatch, direction):
    perturb(folder, tmp_path / "other", count=7, seed=5)
    other = tmp_path / "other.safetensors"
    other.write_bytes(SparseDelta.between(Checkpoint(folder), Checkpoint(tmp_path / "other")).to_bytes())
    before = half_patched(skill, folder, monkeypatch)
    begun = json.loads((folder / JOURNAL).read_text())["delta"]
    with pytest.raises(SkillError, match=rf"is half patched by another skill \({begun}\), not by this one \(\w+\)"):
        patch(other, folder, direction)
    assert hashes(folder) == before
    patch(skill, folder, "revert")
    assert hashes(folder) == states["revert"]


def test_a_half_patched_folder_that_was_spoiled_is_refused_and_keeps_its_journal(folder, skill, monkeypatch):
    half_patched(skill, folder, monkeypatch)
    entry = next(iter(SparseDelta.load(skill).tensors.values()))
    place = Checkpoint(folder, half_patched=True).entries[entry.name]
    with place.file.open("r+b") as file:
        file.seek(place.start)
        file.write(b"\x01\x02\x03\x04" * place.size)
    before = hashes(folder)
    with pytest.raises(SkillError, match=f"is not the skill's base: .* first differing tensor {entry.name};"):
        patch(skill, folder, "apply")
    assert hashes(folder) == before
    assert JOURNAL in before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"3", b"\xff"])
def test_an_unreadable_journal_is_refused(folder, skill, content):
    (folder / JOURNAL).write_bytes(content)
    before = hashes(folder)
    with pytest.raises(CheckpointError, match=r"journal\.json can't be read"):
        patch(skill, folder, "apply")
    assert hashes(folder) == before


# -- a real signal ---------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from surgery.checkpoints import applying
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta

skill, folder, output, owner, name, number = sys.argv[1:]
owner = {"os": os, "applying": applying}[owner]
real, calls = getattr(owner, name), []

def killed(*arguments, **options):
    calls.append(arguments)
    if len(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

setattr(owner, name, killed)
delta, extra = SparseDelta.load(skill), {"readout.bin": b"readout"}
if output:
    applying.write_patched(delta, Checkpoint(folder), output, add=extra, overwrite=True)
else:
    applying.patch_folder(delta, folder, add=extra, drop=extra)
"""


def run_and_kill(*arguments):
    run = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, check=False)
    assert run.returncode == -9, run.stderr.decode()


@pytest.mark.parametrize(("then", "number"), [("apply", 5), ("revert", COUNT)])
def test_killed_in_place(folder, skill, states, then, number):
    run_and_kill(skill, folder, "", "os", "pwrite", number)
    assert hashes(folder).keys() == {*states["revert"], JOURNAL}
    with pytest.raises(CheckpointError, match="is half patched"):
        Checkpoint(folder)
    patch(skill, folder, then)
    assert hashes(folder) == states[then]


def test_killed_while_writing_a_new_folder(folder, skill, states, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / "config.json").write_text("mine")
    before = hashes(output)
    run_and_kill(skill, folder, output, "applying", "hash_and_patch", 20)
    assert hashes(output) == before
    assert hashes(folder) == states["revert"]
