"""The state of a stopped run: whose it is, what becomes of it, and what a damaged or foreign one does."""

import json
import os
from pathlib import Path

import pytest

from surgery.errors import SurgeryError, TaskError
from surgery.files import discard
from surgery.locks import BusyError
from surgery.resuming import CALL, Memo, StateError, damaged, digest, read_state, resumable, state_folder

CALL_OF_OURS = {"what": "test", "seed": 0, "layers": (1, 2)}


def stopped(folder, call=CALL_OF_OURS, error=KeyboardInterrupt, **options):
    """A run that leaves a file and ends with an error."""
    with pytest.raises(error), resumable(folder, call, **options) as state:
        (state / "done.txt").write_text("half")
        raise error("stopped")


def test_the_same_call_finds_what_a_stopped_run_left(tmp_path):
    folder = tmp_path / "deep" / "out.partial"
    stopped(folder)
    with resumable(folder, CALL_OF_OURS) as state:
        assert state == folder and (state / "done.txt").read_text() == "half"
    assert folder.exists()  # the caller deletes it once the result is saved
    with resumable(None, CALL_OF_OURS) as state:
        assert state is None


@pytest.mark.parametrize("change", [{"seed": 1}, {"layers": (1,)}, {"more": True}])
def test_another_calls_state_is_refused_and_left_alone(tmp_path, change):
    stopped(tmp_path / "state")
    with pytest.raises(StateError, match=r"is the state of another run .* delete it to begin anew"):
        stopped(tmp_path / "state", {**CALL_OF_OURS, **change}, RuntimeError)
    assert (tmp_path / "state" / "done.txt").read_text() == "half"
    with resumable(tmp_path / "state", {**CALL_OF_OURS, **change}, replace_others=True) as state:
        assert [path.name for path in state.iterdir()] == [CALL]


def test_another_versions_state_is_another_runs(tmp_path, monkeypatch):
    stopped(tmp_path / "state")
    monkeypatch.setattr("surgery.resuming.package_version", lambda name: "99")
    with pytest.raises(StateError, match="is the state of another run"), resumable(tmp_path / "state", CALL_OF_OURS):
        pass
    stopped(tmp_path / "two", packages=("surgery", "numpy"))
    assert json.loads((tmp_path / "two" / CALL).read_text())["versions"] == {"surgery": "99", "numpy": "99"}


def test_a_note_that_is_damaged_is_nobodys(tmp_path):
    stopped(tmp_path / "state")
    (tmp_path / "state" / CALL).write_text("{")
    with pytest.raises(StateError, match="is the state of another run"), resumable(tmp_path / "state", CALL_OF_OURS):
        pass


@pytest.mark.parametrize("replace_others", [False, True])
def test_a_folder_of_ones_own_is_refused(tmp_path, replace_others):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "notes.txt").write_text("precious")
    with (
        pytest.raises(StateError, match="is in the way, and no interrupted run made it"),
        resumable(tmp_path / "state", CALL_OF_OURS, replace_others=replace_others),
    ):
        pass
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["notes.txt"]


def test_a_run_killed_as_it_began_is_in_no_ones_way(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / f".{CALL}.abcd_123.tmp").touch()
    with resumable(tmp_path / "state", CALL_OF_OURS) as state:
        assert (state / CALL).exists()


def test_a_mistake_leaves_nothing_and_a_kill_or_a_full_disk_all(tmp_path):
    for error in (SurgeryError, TaskError):
        stopped(tmp_path / "made" / "state", error=error)
        assert not (tmp_path / "made").exists()
    for error in (KeyboardInterrupt, OSError, RuntimeError):
        stopped(tmp_path / error.__name__, error=error)
        assert (tmp_path / error.__name__ / "done.txt").exists()


def test_a_damaged_state_is_refused_and_stays(tmp_path):
    with (
        pytest.raises(StateError, match=r"state/numbers.json can't be read .*: delete .*state to begin anew"),
        resumable(tmp_path / "state", CALL_OF_OURS) as state,
    ):
        (state / "numbers.json").write_text('["a"]')
        read_state(state / "numbers.json", list[float])
    assert (tmp_path / "state" / "numbers.json").exists()
    assert (
        str(damaged(tmp_path / "state" / "x", "why"))
        == f"{tmp_path}/state/x can't be read (why): delete {tmp_path}/state to begin anew"
    )


def test_one_run_at_a_time(tmp_path):
    with (
        resumable(tmp_path / "state", CALL_OF_OURS),
        pytest.raises(BusyError, match=f"process {os.getpid()}"),
        resumable(tmp_path / "state", CALL_OF_OURS),
    ):
        pass
    assert (tmp_path / "state" / CALL).exists()


def test_the_state_lies_beside_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert state_folder(Path("out")) == tmp_path / "out.partial"
    assert state_folder(Path("a/grammar.json")) == tmp_path / "a" / "grammar.json.partial"


def test_what_was_found_is_not_worked_out_again(tmp_path):
    asked = []

    def ask(memo, key, value):
        return memo.get(key, lambda: asked.append(key) or value)

    for file in (tmp_path / "figures.jsonl", None):
        memo = Memo(file)
        assert ask(memo, ["a", 1], [0.1, None]) == [0.1, None] == ask(memo, ("a", 1), "another")
        assert ask(memo, ["a", 2], "é") == "é" and len(asked) == 2
        asked.clear()
    memo = Memo(tmp_path / "figures.jsonl")
    assert ask(memo, ["a", 1], None) == [0.1, None] and ask(memo, ["a", 2], None) == "é" and not asked


@pytest.mark.parametrize(
    "harm", [lambda line: line[:-9], lambda line: line.replace("0.5", "0.6"), lambda line: "[" * 9999]
)
def test_a_line_that_was_cut_short_or_changed_is_worked_out_again(tmp_path, harm):
    file = tmp_path / "figures.jsonl"
    memo = Memo(file)
    for key in "abc":
        memo.get(key, lambda: 0.5)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], harm(lines[1]), lines[2]]) + "\n" + lines[2][:20])
    again = Memo(file)
    assert [again.get(key, lambda: 0.7) for key in "abcd"] == [0.5, 0.7, 0.5, 0.7]
    assert [Memo(file).get(key, lambda: 0.9) for key in "abcd"] == [0.5, 0.7, 0.5, 0.7]


def test_a_digest_tells_contents_apart():
    assert digest({"b": 1, "a": (1, 2)}) == digest({"a": [1, 2], "b": 1}) != digest({"a": [1, 2], "b": 2})


def test_a_worker_that_was_left_out_leaves_the_others_their_state(tmp_path):
    from surgery.errors import OptionError
    from surgery.resuming import resumable
    from surgery.sync import LeftOutError

    for error, stays in ((LeftOutError("woke"), True), (OptionError("wrong"), False)):
        with pytest.raises(type(error)), resumable(tmp_path / "state", {"a": 1}) as state:
            (state / "worker-1.40.safetensors").write_bytes(b"")
            raise error
        assert (tmp_path / "state").exists() == stays


def test_a_folder_with_read_only_parts_goes_whole(tmp_path):
    folder = tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file.txt").write_text("old")
    (folder / "deep").chmod(0o555), folder.chmod(0o555)
    discard(folder)
    assert not list(tmp_path.iterdir())
