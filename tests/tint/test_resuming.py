"""Runs that were interrupted go on where they were, and those that fail leave nothing."""

import json
import math

import pytest

from surgery.errors import OptionError, TintError
from surgery.tasks.task import Task
from surgery.tint import Run, TinT, run_task, run_text
from tests.support.tint import ROWS


class Killed(BaseException):
    """Stands for a signal: no handler for ordinary errors may catch it."""


@pytest.fixture
def passes(monkeypatch):
    """Counts the readings of a row, and makes one of them the last: `passes["until"]`."""
    counted, real = {"done": 0, "until": math.inf}, TinT.hidden

    def hidden(self, *arguments, **options):
        if counted["done"] >= counted["until"]:
            raise Killed
        counted["done"] += 1
        return real(self, *arguments, **options)

    monkeypatch.setattr(TinT, "hidden", hidden)
    return counted


@pytest.mark.parametrize("what", ["text", "task"])
def test_an_interrupted_run_goes_on_where_it_was(tiny, text, tmp_path, monkeypatch, passes, what):
    monkeypatch.setattr("surgery.tint.evaluation.in_context._PACKED", 40)  # several rows of prompts
    task = Task.load("sst2", train=ROWS, test=ROWS)

    def call(**options):
        if what == "task":
            return run_task(tiny("gpt2"), task, shots=4, lr=(1e-3, 1e-2), modes=("exact",), **options)
        return run_text(tiny("gpt2"), text, shares=(0.5, 0.75), lr=(1e-3, 1e-2), window=32, windows=5, dev_windows=2, **options)  # fmt: skip

    whole = call()
    needed, stops = passes["done"], (3, 9)
    passes["done"] = 0
    state = tmp_path / "state"
    for stop in stops:
        passes["until"] = stop
        with pytest.raises(Killed):
            call(resume=state)
    with (state / "figures.jsonl").open("a") as file:
        file.write('["cut sho')  # by a kill within a write
    passes["until"] = math.inf
    with pytest.raises(OptionError, match="is the state of another run"):
        call(resume=state, seed=1) if what == "task" else call(resume=state, steps=2)
    assert call(resume=state).points == whole.points
    # What was done was done once; but of a task the row of development prompts that a rate is chosen by, at most.
    assert needed <= passes["done"] <= needed + (len(stops) * 4 if what == "task" else 0)
    assert call(resume=state).points == whole.points  # all of it known


def test_a_run_that_diverges_leaves_no_state(tiny, text, tmp_path):
    with pytest.raises(TintError, match="lower the learning rate"):
        run_text(tiny("gpt2"), text, lr=1e30, window=32, windows=3, resume=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "figures.jsonl").write_text("mine")
    with pytest.raises(OptionError, match="delete it to begin anew"):
        run_text(tiny("gpt2"), text, lr=0.1, window=32, windows=3, resume=tmp_path / "state")
    assert (tmp_path / "state" / "figures.jsonl").read_text() == "mine"


def test_an_interrupted_command_says_how_to_go_on(run, tiny, text, tmp_path, monkeypatch):
    arguments = ("tint", "text", tiny("gpt2"), text, "--window", 32, "--windows", 3, "--lr", 0.01)
    real, calls = TinT.hidden, []

    def hidden(self, *given, **options):
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *given, **options)

    with monkeypatch.context() as moment:
        moment.setattr(TinT, "hidden", hidden)
        status, _, error = run(*arguments, "-o", tmp_path / "out")
    assert status not in (0, 2) and "run the same command again to go on" in error
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    assert run(*arguments, "-o", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out.partial").exists()
    status, out, _ = run(*arguments, "--json")
    assert json.loads(out)["points"] == [dict(point) for point in Run.load(tmp_path / "out").points]
