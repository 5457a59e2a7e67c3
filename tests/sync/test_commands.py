"""The command under torchrun itself: a worker killed while it tunes, and mistakes told once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import workers
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import OptionError
from surgery.grafting.skill import Skill
from surgery.locks import BusyError, hold

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "surgery"]


def launch(folder, *arguments):
    """A command by two processes, in a folder."""
    line = [*TORCHRUN, *map(str, arguments)]
    return subprocess.Popen(line, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def data(folder):
    rows = [
        {"text": f"the {noun} was {word}", "label": label}
        for noun in ("film", "food", "book")
        for words, label in ((("great", "fun"), "positive"), (("awful", "bad"), "negative"))
        for word in words
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))


def children(pid):
    """Processes that a process started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_tuning_goes_on_when_the_first_worker_is_killed(tiny, tmp_path):
    data(tmp_path)
    given = ["--task", "sst2", "--data", "train.jsonl", "--batch-size", 4, "--steps", 60, "--device", "cpu"]
    run = launch(tmp_path, "tune", tiny("bert"), *given, "--sync", "constant", "--h", 3, "-o", "tuned", "--json")
    until = time.monotonic() + 240
    while not list(tmp_path.glob("tuned.partial/worker-0.*")):  # in the middle of training
        assert run.poll() is None and time.monotonic() < until, run.communicate()
        time.sleep(0.05)
    outer = next(pid for pid in children(run.pid) if b"RANK=0\0" in Path(f"/proc/{pid}/environ").read_bytes())
    first = children(outer)[0]
    os.kill(first, signal.SIGKILL)
    while Path(f"/proc/{first}").exists():  # only then its locks are gone
        time.sleep(0.01)
    with pytest.raises(BusyError), hold(tmp_path / "tuned.partial"):  # by the one that is left
        pass
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert json.loads(out)["steps"] == 60  # said by the one that is left
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())["sync"]
    assert (report["workers"], report["lost"]) == (2, [0])
    assert Checkpoint(tmp_path / "tuned").structure.kind == "masked"
    assert not (tmp_path / "tuned.partial").exists()


def test_a_mistake_is_told_once(tiny, tmp_path):
    data(tmp_path)
    given = ["--task", "sst2", "--data", "train.jsonl", "--steps", 2, "--sync", "qsr", "--alpha", 0, "-o", "tuned"]
    run = launch(tmp_path, "tune", tiny("bert"), *given)
    out, err = run.communicate(timeout=240)
    assert run.returncode != 0
    assert (out, err.count("surgery: ")) == ("", 1)
    assert "surgery: --alpha must be above 0" in err
    assert "surgery/" not in err  # no traceback of ours
    assert not (tmp_path / "tuned").exists()


def test_a_model_that_is_split_is_tuned_and_grafted(tiny, tmp_path):
    data(tmp_path)
    given = ["--task", "sst2", "--data", "train.jsonl", "--batch-size", 4, "--device", "cpu", "--shard", "--json"]
    run = launch(tmp_path, "tune", tiny("bert"), *given, "--optimizer", "sgd", "--steps", 6, "-o", "tuned")
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert json.loads(out)["steps"] == 6  # said once
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())["sync"]
    assert (report["recipe"]["kind"], report["workers"]) == ("sharded", 2)
    more = ["--eval", "train.jsonl", "--weights", 40, "-o", "skill"]
    run = launch(tmp_path, "graft", tiny("bert"), "tuned", *given, *more)
    out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert json.loads(out)["weights"] == 40
    assert Skill.load(tmp_path / "skill").delta.weights == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["skill", "train.jsonl", "tuned"]


@pytest.mark.parametrize(
    ("command", "more", "told"),
    [
        ("tune", ["--shard"], "--shard is for several workers, and no launcher started this one"),
        (
            "tune",
            ["--shard", "--sync", "qsr", "--budget", "0.1"],
            "--sync averages whole models, and --shard splits one",
        ),
        ("graft", ["--shard"], "--shard is for several workers, and no launcher started this one"),
    ],
)
def test_a_split_that_is_refused(tiny, tmp_path, run, monkeypatch, command, more, told):
    monkeypatch.chdir(tmp_path)
    data(tmp_path)
    tuned = [tiny("bert")] if command == "graft" else []
    given = ["--task", "sst2", "--data", "train.jsonl", "-o", "out", *more]
    status, _, said = run(command, tiny("bert"), *tuned, *given)
    assert (status, said.count("\n")) == (2, 1)
    assert told in said
    assert not (tmp_path / "out").exists()


def test_without_a_launcher(tiny, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data(tmp_path)
    given = ["--task", "sst2", "--data", "train.jsonl", "--sync", "qsr", "--budget", 0.1, "-o", "tuned"]
    status, _, said = run("tune", tiny("bert"), *given)
    assert (status, said.count("\n")) == (2, 1)
    assert "--sync qsr is for several workers, and no launcher started this one" in said


def test_what_runs_in_one_process_says_so(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(OptionError, match="surgery score runs in one process, and 4 were started: leave out torchrun"):
        workers.alone("surgery score")


@pytest.mark.parametrize(
    ("line", "shared"),
    [
        ("tune BASE --task sst2", True),
        ("tune replay TUNED -o out", False),
        ("tune BASE --dry-run", False),
        ("tune --help", True),  # or it would be said to be for one process
        ("pcfg pretrain g.json", True),
        ("graft BASE TUNED --shard", True),
        ("pcfg parse g.json", False),
        ("select POOL --target t", True),
        ("select show FOLDER", False),
        ("emergence measure mlm", True),
        ("emergence simulate", False),
        ("sync plan --steps 9", False),
        ("tuner", False),
    ],
)
def test_commands_that_have_work_for_several(line, shared):
    assert workers.is_shared(line.split()) == shared
