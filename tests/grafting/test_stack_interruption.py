"""A change of a stack in place that is killed, at any moment, can be completed or undone; nothing else may touch it."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from surgery.checkpoints.applying import patch_folder
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint
from surgery.checkpoints.copies import STACK
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import CheckpointError, SkillError
from surgery.grafting.stack import Layer, Stack, restack
from tests.checkpoints.test_interruption import Killed, stop_at
from tests.project.test_kills import KILLS, kill_at_random
from tests.support.stacks import holds, layers_on, refused
from tests.support.tiny import hashes, perturb


@pytest.fixture(scope="module")
def layers(tiny):
    return layers_on(tiny("bert"))


def named(name):
    return lambda path, *_: path.name == name


# The moments, in order; True where the folder is half patched then.
MOMENTS = {
    "while the journal is written": (lambda m: stop_at(m, os, "fsync", 1), False),
    "once the journal has its name": (lambda m: stop_at(m, os, "fsync", 2), True),
    "before the first weight": (lambda m: stop_at(m, os, "pwrite", 1), True),
    "in the middle": (lambda m: stop_at(m, os, "pwrite", 5), True),
    "before the extra files": (
        lambda m: stop_at(m, sys.modules["surgery.checkpoints.applying"], "_change_extras", 1),
        True,
    ),
    "while the first of them is written": (lambda m: stop_at(m, os, "fsync", 3), True),
    "while the table is written": (
        lambda m: stop_at(m, Path, "replace", 1, lambda _, to: to.name == "stack.json"),
        True,
    ),
    "before the first file is dropped": (
        lambda m: stop_at(m, Path, "unlink", 1, lambda p, *_: p.suffix != ".tmp" and p.parent.name == STACK),
        True,
    ),
    "while the stack is cleared away": (lambda m: stop_at(m, sys.modules["shutil"], "rmtree", 1), False),
    "before the journal is removed": (lambda m: stop_at(m, Path, "unlink", 1, named(JOURNAL)), True),
}
# What the run does: direction, skills before, skills given, skills after.
RUNS = {
    "two onto the base": ("apply", "", "ab", "ab"),
    "one onto a plain graft": ("apply", "a", "ba", "ab"),
    "one onto a stack": ("apply", "ab", "c", "abc"),
    "the lowest off": ("revert", "abc", "a", "bc"),
    "one off, one left": ("revert", "ab", "a", "b"),
    "all off": ("revert", "ab", "ba", ""),
}
OPPOSITE = {"apply": "revert", "revert": "apply"}


def held(layers, names, base, folder):
    """A folder that holds some layers."""
    if len(names) > 1:
        return restack("apply", [layers[name] for name in names], base, folder).folder
    shutil.copytree(base, folder)
    for name in names:
        patch_folder(layers[name].delta, folder, add=layers[name].readouts)
    return folder


@pytest.mark.parametrize("how", ["again", "opposite"])
@pytest.mark.parametrize(("stop", "half"), MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize(("direction", "before", "given", "after"), RUNS.values(), ids=RUNS)
def test_an_interrupted_run_is_completed_or_undone(
    tiny, layers, tmp_path, monkeypatch, direction, before, given, after, stop, half, how
):
    base, skills = tiny("bert"), [layers[name] for name in given]
    folder = held(layers, before, base, tmp_path / "x")
    start = hashes(folder)
    with monkeypatch.context() as moment:
        stop(moment)
        try:
            restack(direction, skills, folder, in_place=True)
            return  # this run has no such moment
        except Killed:
            pass
    assert (folder / JOURNAL).exists() == half
    if not half:
        if stop is not MOMENTS["while the stack is cleared away"][0]:
            assert hashes(folder) == start
            return
        rest = [layers[name] for name in after]
        restack("apply", [*rest, layers["d"]], folder, in_place=True)  # any further run clears the rest away
        restack("revert", [layers["d"]], folder, in_place=True)
        assert holds(folder, base, [layers[name] for name in after])
        return
    with pytest.raises(CheckpointError, match="is half patched"):
        Checkpoint(folder)
    other = layers["d"]
    spoilt = hashes(folder)
    for call in (lambda: restack("apply", [other], folder, in_place=True), lambda: patch_folder(other.delta, folder)):
        with pytest.raises(SkillError, match="is half patched"):
            call()
    assert hashes(folder) == spoilt
    restack(direction if how == "again" else OPPOSITE[direction], skills, folder, in_place=True)
    assert holds(folder, base, [layers[name] for name in (after if how == "again" else before)])
    assert how == "again" or hashes(folder) == start


def test_interrupted_again_and_again(tiny, layers, tmp_path, monkeypatch):
    base, c = tiny("bert"), layers["c"]
    folder = held(layers, "abd", base, tmp_path / "x")
    start = hashes(folder)
    for direction, number in [("apply", 2), ("revert", 7), ("apply", 5), ("apply", 1), ("revert", 3)]:
        with monkeypatch.context() as moment:
            stop_at(moment, os, "pwrite", number)
            with pytest.raises(Killed):
                restack(direction, [c], folder, in_place=True)
    restack("revert", [c], folder, in_place=True)
    assert hashes(folder) == start
    restack("apply", [c], folder, in_place=True)
    assert holds(folder, base, [layers[name] for name in "abdc"])


@pytest.mark.parametrize("stop", [stop for stop, _ in MOMENTS.values()], ids=MOMENTS)
def test_putting_on_what_is_there_leaves_nothing_to_undo(tiny, layers, tmp_path, monkeypatch, stop):
    """Else taking it off would undo the run that did nothing, and leave it there."""
    base, (a, b, c) = tiny("bert"), (layers[name] for name in "abc")
    folder = held(layers, "abc", base, tmp_path / "x")
    with monkeypatch.context() as moment, suppress(Killed):
        stop(moment)
        restack("apply", [c], folder, in_place=True)
    restack("revert", [c], folder, in_place=True)
    assert holds(folder, base, [a, b])


def test_one_skills_half_done_patch_is_not_a_stacks(tiny, copied, layers, monkeypatch):
    folder, (a, b) = copied("bert"), (layers[name] for name in "ab")
    with monkeypatch.context() as moment:
        stop_at(moment, os, "pwrite", 2)
        with pytest.raises(Killed):
            patch_folder(a.delta, folder)
    refused(
        folder,
        SkillError,
        r"is half patched: an in-place run \(apply of one skill\)",
        "apply",
        [a, b],
        folder,
        in_place=True,
    )
    patch_folder(a.delta, folder, direction="revert")
    assert hashes(folder) == hashes(tiny("bert"))


@pytest.mark.parametrize("kills", KILLS)
def test_runs_at_once_that_are_killed_at_random(tiny, copied, tmp_path, kills):
    """Two processes put one skill on a stack and take it off again; whatever happens, the stack is whole or says it isn't."""
    base = tiny("bert")
    layers = layers_on(base)
    for number, name in enumerate("bc"):  # larger ones, so that kills hit
        perturb(base, tmp_path / name, count=300, seed=number)
        layers[name] = Layer(name, SparseDelta.between(Checkpoint(base), Checkpoint(tmp_path / name)))
    a, b, c, _ = layers.values()
    folder = restack("apply", [a, b], base, tmp_path / "ab").folder
    states = [hashes(folder)]
    states.append(hashes(restack("apply", [c], folder, tmp_path / "abc").folder))

    def change_it(number):
        restack(("apply", "revert")[number % 2], [c], folder, in_place=True)

    def check(busy):
        if not busy and not (folder / JOURNAL).exists():
            found = {n: h for n, h in hashes(folder).items() if not n.rpartition("/")[2].startswith(".")}
            assert found in states

    kill_at_random(change_it, check, kills)
    if not (folder / JOURNAL).exists() and c.id not in Stack.load(folder).ids:
        restack("apply", [c], folder, in_place=True)
    restack("revert", [c], folder, in_place=True)
    assert hashes(folder) == states[0]
    restack("apply", [c], folder, in_place=True)
    assert hashes(folder) == states[1]


def test_what_a_kill_left_of_a_file_goes_with_the_file(tiny, layers, tmp_path, monkeypatch):
    c = layers["c"]
    folder = held(layers, "ab", tiny("bert"), tmp_path / "x")
    start = hashes(folder)
    with monkeypatch.context() as moment:
        MOMENTS["while the table is written"][0](moment)
        with pytest.raises(Killed):
            restack("apply", [c], folder, in_place=True)
    (folder / STACK / f".{c.id}.safetensors.abcdefgh.tmp").write_bytes(b"half")
    restack("revert", [c], folder, in_place=True)
    assert hashes(folder) == start
