"""`surgery tune --method mezo` and `surgery tune replay`."""

import json

import pytest

from surgery.checkpoints.checkpoint import Checkpoint


@pytest.fixture
def data(task, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in task.train))
    return path


def test_tune_replay_and_a_skill(data, ok, run, tiny, tmp_path):
    base, tuned = tiny("bert"), tmp_path / "tuned"
    quick = ["--steps", 4, "--rate", "1e-2", "--eps", "1e-2", "--batch-size", 4]
    given = ["tune", base, "--method", "mezo", "--task", "sst2", "--data", data, *quick, "--device", "cpu"]
    told = ok(*given, "--where", "random:0.02", "-o", tuned, "--json")
    assert (told["steps"], told["movable"], told["rate"]) == (4, round(0.02 * 4448), 1e-2)
    assert not (tmp_path / "tuned.partial").exists()
    again = ok("tune", "replay", tuned / "trajectory.safetensors", base, "-o", tmp_path / "again", "--json")
    assert again["moved"] == told["moved"]
    assert Checkpoint(tmp_path / "again").fingerprint == Checkpoint(tuned).fingerprint
    assert "after 2 steps" in ok(
        "tune", "replay", tuned / "trajectory.safetensors", base, "--to", 2, "-o", tmp_path / "at"
    )
    ok("skill", "show", tuned / "skill")
    ok("skill", "apply", tuned / "skill", base, "-o", tmp_path / "grafted")
    more = ok(*given, "--only", tuned / "skill", "-o", tmp_path / "more")
    assert f"{told['movable']} weights moved" in more
    assert "the same as a skill" in more
    need = ok(*given, "--only", tuned / "skill", "--dry-run", "--json")
    assert need["parts"]["tuned weights"] == 20 * told["movable"]
    status, _, said = run("tune", "replay", tuned / "trajectory.safetensors", base, "--to", 9, "-o", tmp_path / "far")
    assert (status, "--to 9 isn't one of the trajectory's 4 steps" in said) == (2, True)


@pytest.mark.parametrize(("given", "said"), [
    (["--method", "adam"], "--method adam isn't one of gradient, mezo"),
    (["--method", "mezo", "--l1", 1], "--l1 isn't for --method mezo: leave it out"),
    (["--method", "mezo", "--optimizer", "adamw"], "--optimizer isn't for --method mezo"),
    (["--where", "random:0.1"], "--where isn't for --method gradient"),
    (["--method", "mezo", "--noise", "uniform"], "--noise uniform isn't one of rademacher, gaussian"),
    (["--method", "mezo", "--objective", "bleu"], "--objective bleu isn't one of"),
    (["--method", "mezo", "--dtype", "bfloat16", "--no-residual"], "keep the --residual, or --force it"),
])  # fmt: skip
def test_options_that_do_not_fit(given, said, data, run, tiny, tmp_path):
    status, _, error = run("tune", tiny("bert"), "--task", "sst2", "--data", data, *given, "-o", tmp_path / "out")
    assert status == 2
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_trajectory_of_another_base(data, run, tiny, tmp_path):
    quick = ["--steps", 1, "--rate", "1e-2", "--eps", "1e-2", "--batch-size", 4, "--device", "cpu"]
    run("tune", tiny("bert"), "--method", "mezo", "--task", "sst2", "--data", data, *quick, "-o", tmp_path / "tuned")
    status, _, said = run(
        "tune", "replay", tmp_path / "tuned/trajectory.safetensors", tiny("gpt2"), "-o", tmp_path / "out"
    )
    assert status == 2
    assert "isn't what the trajectory began at" in said
