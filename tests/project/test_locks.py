"""One writer at a time: what a second run is told, what a kill leaves, and every place that takes the lock."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from pcfg.errors import PcfgError
from surgery.checkpoints.applying import patch_folder, write_patched
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import SurgeryError
from surgery.files import check_output, new_folder
from surgery.locks import BusyError, hold, hold_too
from tests.support.tiny import hashes, perturb
from tests.tuning.test_tuning import ROWS

BUSY = r"{} is being written by another run \(process {} of \S+, since \d{{4}}-\d\d-\d\dT\S+\): wait until that ends"
GRAMMAR = "S -> A B [1.0]\nA -> 'a' [1.0]\nB -> 'b' [0.5] | 'c' [0.5]\n"


@contextmanager
def holder(path, shared=False):
    """Another process that holds a path; yields it."""
    script = f"import sys, pathlib, time\nfrom surgery.locks import hold\nwith hold(pathlib.Path(sys.argv[1]), shared={shared}):\n print('held', flush=True)\n time.sleep(60)"
    run = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "held\n"
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


def test_the_second_is_told_who_holds_it_and_a_kill_lets_go(tmp_path):
    place = tmp_path / "new" / "place"
    with holder(place) as first:
        with pytest.raises(BusyError, match=BUSY.format(re.escape(str(place)), first.pid)), hold(place):
            pass
        with hold(tmp_path / "new" / "other"):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert [path.name for path in place.parent.iterdir()] == [".place.lock"]
        with hold(place):
            assert json.loads((place.parent / ".place.lock").read_text())["pid"] == os.getpid()
    assert list(place.parent.iterdir()) == []
    with hold(tmp_path / "deep" / "er" / "place"):
        pass
    assert not (tmp_path / "deep").exists()


def test_a_run_of_several_processes_holds_until_the_last_has_ended(tmp_path):
    place = tmp_path / "place"
    with holder(place, shared=True) as first:
        with hold_too(place):
            first.send_signal(signal.SIGKILL)
            first.wait()
            for shared in (False, True):
                told = pytest.raises(BusyError, match=BUSY.format(re.escape(str(place)), first.pid))
                with told, hold(place, shared=shared):
                    pass
        with hold(place, shared=True):
            assert json.loads((tmp_path / ".place.lock").read_text())["pid"] == os.getpid()
            with pytest.raises(BusyError), hold(place):
                pass
    assert list(tmp_path.iterdir()) == []
    refused = pytest.raises(BusyError, match="is being written by another run")
    with holder(place), refused, hold_too(place):  # the first has ended, and another run has begun
        pass
    (tmp_path / ".place.lock").unlink()
    with hold_too(place):  # the first has ended, or its lock is of the other kind
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def strangers_file(tmp_path, monkeypatch):
    """The lock's file of `place`, as another user's: it can be read, not written."""
    file = tmp_path / ".place.lock"
    file.write_text('{"pid": 1, "host": "elsewhere", "since": "then"}')
    stranger, opened = file.stat().st_ino, os.open

    def refuse(path, flags, *mode, **options):
        if flags & os.O_RDWR and Path(path).exists() and Path(path).stat().st_ino == stranger:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    return file


def test_what_another_users_killed_run_left_is_cleared_away(tmp_path, strangers_file):
    check_output(tmp_path / "place", overwrite=False)
    assert not strangers_file.exists()
    with hold(tmp_path / "place"):
        assert json.loads(strangers_file.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_another_users_run_is_named(tmp_path, strangers_file):
    fcntl.flock(keep := strangers_file.open(), fcntl.LOCK_EX)
    with pytest.raises(BusyError, match=r"written by another run \(process 1 of elsewhere, since then\)"):
        check_output(tmp_path / "place", overwrite=False)
    keep.close()


def test_what_another_user_left_where_only_owners_delete_is_named(tmp_path, strangers_file, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    with pytest.raises(BusyError, match=rf"another user left {strangers_file}; have it deleted, or name another"):
        check_output(tmp_path / "place", overwrite=False)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_that_came_with_a_strangers_folder_is_not_followed(tmp_path, monkeypatch, there):
    """A lock is written to: what `.place.lock` leads to would be lost, or made."""
    target = tmp_path / "target"
    if there:
        target.write_text("precious")
    (tmp_path / ".place.lock").symlink_to(target)
    for outlooked in (False, True):  # put there after it was looked for
        if outlooked:
            monkeypatch.setattr(Path, "is_symlink", lambda _: False)
        with pytest.raises(SurgeryError, match="link"), hold(tmp_path / "place"):
            pass
    assert target.read_text() == "precious" if there else not target.exists()


def test_two_names_of_one_folder_are_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with hold(tmp_path / "link"), pytest.raises(BusyError), hold(tmp_path / "x" / ".." / "real"):
        pass


def test_a_folder_in_a_place_that_cannot_be_written_to_holds_its_own_lock(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with hold(tmp_path / "model"):
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        assert [path.name for path in (tmp_path / "model").iterdir()] == [".surgery.lock"]
        with pytest.raises(BusyError), hold(tmp_path / "model"):
            pass
    assert list((tmp_path / "model").iterdir()) == []


@pytest.fixture
def no_flock(monkeypatch):
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)


def test_without_flock_the_file_itself_is_the_lock(tmp_path, no_flock):
    place, file = tmp_path / "place", tmp_path / ".place.pid"
    with hold(place):
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        note = json.loads(file.read_text())
        with (
            pytest.raises(BusyError, match=rf"process {os.getpid()} of .*, or delete \S+\.pid if that run is gone"),
            hold(place),
        ):
            pass
    assert list(tmp_path.iterdir()) == []
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid, host, free in [
        (gone.pid, note["host"], True),
        (gone.pid, "elsewhere", False),
        (os.getpid(), note["host"], False),
    ]:
        file.write_text(json.dumps({**note, "pid": pid, "host": host}))
        if free:
            with hold(place):
                pass
        else:
            with pytest.raises(BusyError), hold(place):
                pass
    file.write_text("{")  # damaged: nobody knows
    with pytest.raises(BusyError), hold(place):
        pass


# -- who takes it ------------------------------------------------------------------------------------------------------


@pytest.fixture
def delta(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    perturb(tiny("bert"), folder / "tuned", count=40)
    return SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(folder / "tuned"))


def test_a_second_patch_in_place_is_refused(tiny, copied, tmp_path, delta):
    folder = copied("bert")
    before = hashes(tmp_path)
    perturb(tiny("bert"), tmp_path / "other", count=40, seed=9)
    other = SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(tmp_path / "other"))
    with holder(folder) as first:
        for patch in (delta, other):
            for direction in ("apply", "revert"):
                with pytest.raises(BusyError, match=BUSY.format(re.escape(str(folder)), first.pid)):
                    patch_folder(patch, folder, direction=direction)
        with pytest.raises(BusyError):  # nor may it be replaced meanwhile
            write_patched(delta, Checkpoint(tiny("bert")), folder, overwrite=True)
    patch_folder(delta, folder)
    patch_folder(delta, folder, direction="revert")
    assert {name: digest for name, digest in hashes(tmp_path).items() if name in before} == before
    assert not list(tmp_path.glob(".*"))


def test_skills_patched_in_at_once_never_mix(tiny, copied, tmp_path, delta):
    """Twelve trials of two processes: each ends with the base plus one skill, or both one after the other, or refused."""
    perturb(tiny("bert"), tmp_path / "other", count=40, seed=9)
    other = SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(tmp_path / "other"))
    base = hashes(tiny("bert"))
    for number in range(12):
        folder = copied("bert", f"base{number}")
        children = []
        for patch in (delta, other):
            if (child := os.fork()) == 0:
                status = 1
                try:
                    patch_folder(patch, folder)
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        done = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert 0 in done
        # The skills touch other weights, so one that comes second finds another base.
        assert sorted(done) == [0, 1]
        patch_folder((delta, other)[done.index(0)], folder, direction="revert")
        assert hashes(folder) == base


def test_outputs_are_held_while_they_are_made(tmp_path):
    with new_folder(tmp_path / "out"):
        with pytest.raises(BusyError):
            check_output(tmp_path / "out", overwrite=True)
        with pytest.raises(BusyError), new_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out").is_dir()


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in ROWS))
    return file


def test_states_of_long_work_are_held(tiny, tmp_path, run, data):
    grammar, text, out = tmp_path / "g.pcfg", tmp_path / "t.txt", tmp_path / "out"
    grammar.write_text(GRAMMAR)
    text.write_text("a b\n")
    calls = {
        "sample": ("pcfg", "sample", grammar, "-n", 5, "-o", out),
        "parse": ("pcfg", "parse", grammar, "--text", text, "-o", out),
        "spans": ("pcfg", "spans", grammar, "--text", text, "-o", out),
        "fit": ("pcfg", "fit", grammar, "--text", text, "--em", 1, "-o", out),
        "tune": ("tune", tiny("bert"), "--task", "sst2", "--data", data, "--steps", 2, "-o", out),
        "pretrain": (
            "pcfg",
            "pretrain",
            grammar,
            "--sentences",
            64,
            "--layers",
            1,
            "--heads",
            1,
            "--width",
            8,
            "-o",
            out,
        ),
    }
    state = tmp_path / "out.partial"
    state.mkdir()
    with hold(state):
        for name, call in calls.items():
            status, _, error = run(*call)
            assert status == 2 and f"{state} is being written by another run (process {os.getpid()}" in error, (
                name,
                error,
            )
    assert list(state.iterdir()) == []  # and what the first has there isn't touched
    state.rmdir()
    assert run(*calls["sample"])[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out"]


def test_who_catches_the_errors_of_grammars_catches_those_of_their_files(tmp_path):
    with (
        hold(tmp_path / "x"),
        pytest.raises(PcfgError, match="is being written by another run"),
        hold(tmp_path / "x"),
    ):
        pass


def test_where_nothing_can_be_written_is_said_without_our_own_files(tmp_path):
    for path in (Path("/proc/out"), Path("/dev/null/out")):
        with (
            pytest.raises(SurgeryError, match=rf"^{path.parent} can't be written to \(.*\): name an output elsewhere$"),
            hold(path),
        ):
            pass
