"""Two processes write the same output and are killed at random: old or new, never a mix, and no litter after the next run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pcfg.grammars.grammar import Grammar
from pcfg.sampling.corpus import write_corpus
from surgery.checkpoints.applying import patch_folder
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import SurgeryError
from surgery.files import check_output, new_folder, replace_bytes
from tests.support.tiny import hashes, perturb

KILLS = [10, pytest.param(100, marks=pytest.mark.real)]  # the second number is what is promised


def fork(work):
    """A child that does `work(number)` over and over, with numbers of its own, until it is killed."""
    if child := os.fork():
        return child
    try:
        number = 1000 * os.getpid()
        while True:
            number += 1
            with suppress(SurgeryError):  # the other one is at it
                work(number)
    except BaseException:
        os._exit(1)  # seen below: a child that isn't killed is a failure
    os._exit(1)


def kill_at_random(work, check, kills):
    """Keep two children at work, kill one or both at a time, and check what is there after each time."""
    chance = random.Random(kills)
    children = {index: fork(work) for index in range(2)}
    try:
        for _ in range(kills):
            time.sleep(chance.uniform(0.001, 0.06))
            killed = chance.choice([(0,), (1,), (0, 1)])
            for index in killed:
                os.kill(children[index], signal.SIGKILL)
                assert os.waitstatus_to_exitcode(os.waitpid(children.pop(index), 0)[1]) == -signal.SIGKILL
            check(bool(children))
            children |= {index: fork(work) for index in killed}
    finally:
        for child in children.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def write_output(folder, number, overwrite=True):
    with new_folder(folder, overwrite=overwrite) as staged:
        (staged / "report.json").write_text(json.dumps(number))
        for part in range(5):
            (staged / f"part{part}").write_text(json.dumps(number))


def held(folder):
    """The one number that all files of an output hold."""
    for _ in range(200):  # another process may swap it while it is read here: then it is read again
        with suppress(FileNotFoundError):
            before = folder.stat().st_ino
            found = {path.name: path.read_text() for path in sorted(folder.iterdir())}
            if folder.stat().st_ino == before and len(found) == 6:
                assert len(set(found.values())) == 1, found
                return json.loads(found["report.json"])
    raise AssertionError(f"{folder} is never whole")


@pytest.mark.parametrize("kills", KILLS)
def test_outputs_are_old_or_new(tmp_path, kills):
    out = tmp_path / "out"
    write_output(out, 0)
    kill_at_random(lambda number: write_output(out, number), lambda busy: held(out), kills)
    assert held(out)
    write_output(out, 7)
    assert held(out) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kills", KILLS)
def test_outputs_where_names_can_only_be_taken_in_turn(tmp_path, kills, monkeypatch):
    """Between two renames there is nothing: the next run, whatever it is, puts the old output back first."""
    monkeypatch.setattr("surgery.files.exchange", lambda *_: False)
    out = tmp_path / "out"
    write_output(out, 0)
    seen = []

    def check(busy):
        if not busy:
            check_output(out, overwrite=True)  # any command's first step
            seen.append(held(out))

    kill_at_random(lambda number: write_output(out, number), check, kills)
    check(False)
    assert seen
    write_output(out, 7)
    assert held(out) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kills", KILLS)
def test_files_are_old_or_new(tmp_path, kills):
    file = tmp_path / "state.json"

    def check(busy=False):
        content = file.read_bytes()
        assert content == content[:8] * 4000

    replace_bytes(file, b"%08d" % 0 * 4000)
    kill_at_random(lambda number: replace_bytes(file, b"%08d" % (number % 10**8) * 4000), check, kills)
    replace_bytes(file, b"%08d" % 7 * 4000)
    check()
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("kills", KILLS)
def test_patches_in_place_are_the_base_or_the_graft(tiny, copied, tmp_path, kills):
    folder = copied("bert")
    base = hashes(folder)
    perturb(folder, tmp_path / "tuned", count=400)
    delta = SparseDelta.between(Checkpoint(folder), Checkpoint(tmp_path / "tuned"))
    patch_folder(delta, folder)
    states = [base, hashes(folder)]

    def patch(number):
        patch_folder(delta, folder, direction=("apply", "revert")[number % 2])

    def check(busy):
        if not busy and not (folder / JOURNAL).exists():  # with one, nothing opens the folder
            assert {name: digest for name, digest in hashes(folder).items() if name[0] != "."} in states

    kill_at_random(patch, check, kills)
    patch_folder(delta, folder, direction="revert")
    assert hashes(folder) == base
    patch_folder(delta, folder)
    assert hashes(folder) == states[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def drawn_from():
    return Grammar.from_text("S -> A B [1.0]\nA -> 'a' [1.0]\nB -> 'b' [0.5] | 'c' [0.5]\n")


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.real)])
def test_corpora_drawn_twice_at_once(tmp_path, kills):
    grammar = drawn_from()
    out = tmp_path / "out"

    def draw(seed):
        write_corpus(grammar, out, 60, seed=seed, shard_size=20, overwrite=True)

    draw(0)
    kill_at_random(draw, lambda busy: None, kills)
    draw(0)
    first = hashes(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    write_corpus(grammar, tmp_path / "again", 60, seed=0, shard_size=20)
    assert hashes(tmp_path / "again") == first


# -- one kill, at one place ---------------------------------------------------------------------------------------------

BETWEEN = """
import os, pathlib, signal, sys
from surgery import files
real, out = pathlib.Path.rename, pathlib.Path(sys.argv[1])
files.exchange = lambda *_: False
def rename(path, target):
    if not out.exists() and path.suffix == ".new":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, target)
pathlib.Path.rename = rename
with files.new_folder(out, overwrite=True) as staged:
    (staged / "report.json").write_text("1")
"""


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_between_the_two_renames(tmp_path, overwrite):
    out = tmp_path / "out"
    write_output(out, 5)
    assert subprocess.run([sys.executable, "-c", BETWEEN, out], check=False).returncode == -9
    assert not out.exists() and len(list(tmp_path.iterdir())) == 3  # the old one, the new one and the lock
    if overwrite:
        write_output(out, 6)
    else:
        with pytest.raises(SurgeryError, match="exists already"):  # it is back before anything is decided
            write_output(out, 6, overwrite=False)
    assert held(out) == (6 if overwrite else 5)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_while_an_output_is_made_is_kept(tmp_path, overwrite):
    out = tmp_path / "out"
    with pytest.raises(SurgeryError), new_folder(out, overwrite=overwrite):
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    assert hashes(tmp_path).keys() == {"out/thesis.txt"}
    with pytest.raises(SurgeryError), new_folder(tmp_path / "file", overwrite=overwrite):
        (tmp_path / "file").write_text("mine")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("there", ["nothing", "empty", "older"])
@pytest.mark.parametrize("swap", [True, False], ids=["at a stroke", "in turn"])
def test_an_output_may_be_a_link_to_another_disk(tmp_path, monkeypatch, there, swap):
    """The work lands at the link's end, and the link stays."""
    if not swap:
        monkeypatch.setattr("surgery.files.exchange", lambda *_: False)
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk / "out")
    if there != "nothing":
        (disk / "out").mkdir()
    if there == "older":
        (disk / "out" / "report.json").write_text("{}")
    with new_folder(link, overwrite=there == "older") as staged:
        (staged / "report.json").write_text("new")
        assert staged.parent == disk  # so that the rename stays on that disk
    assert link.is_symlink() and (disk / "out" / "report.json").read_text() == "new"
    assert [path.name for path in (disk / "out").iterdir()] == ["report.json"]
    write_corpus(drawn_from(), link, 3, seed=0, overwrite=True)
    assert link.is_symlink() and sorted(path.name for path in disk.iterdir()) == ["out"]


def test_a_mounted_disk_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    with pytest.raises(SurgeryError, match=r"is a mounted disk, .*: name a folder in it"):
        check_output(tmp_path / "out", overwrite=True)
    check_output(tmp_path / "out" / "in", overwrite=False)


def test_what_looks_like_litter_and_is_another_outputs_stays(tmp_path):
    others = [
        ".out.abcdefgh",
        ".out2.abcdefgh.new",
        ".out.new",
        ".out.abcdefgh.new.txt",
        "out.abcdefgh.new",
        ".out.ABCDEFGH.new",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.abcdefgh.new").mkdir()
    write_output(tmp_path / "out", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "out"])


def test_a_file_that_another_process_is_writing_is_not_litter(tmp_path):
    script = "import sys, pathlib, time\nfrom surgery.files import _staged_file\nheld = _staged_file(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)"
    run = subprocess.Popen([sys.executable, "-c", script, tmp_path / "x"], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "held\n"
    replace_bytes(tmp_path / "x", b"1")
    assert len(list(tmp_path.iterdir())) == 2
    run.kill()
    run.communicate()
    replace_bytes(tmp_path / "x", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert Path(tmp_path / "x").read_bytes() == b"2"


@pytest.mark.parametrize(("umask", "file", "inner"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_may_read_a_folder_as_the_umask_says(tmp_path, umask, file, inner):
    """Also what a library kept to its owner."""
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out") as staged:
            (staged / "inner").mkdir(mode=0o700)
            (staged / "inner" / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "out/inner/weights", tmp_path / "out/inner")]
    assert modes == [file, inner]
