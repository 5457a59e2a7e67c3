"""Commands that take several tasks: `tune --tasks`, `tune --only`, `skill study`, `skill show` of a stack."""

import json

import pytest

from tests.support.tiny import hashes
from tests.tuning.test_limits import skill
from tests.tuning.test_tuning import ROWS


@pytest.fixture
def root(tmp_path):
    for name in ("sst2", "mr"):
        (tmp_path / "data" / name).mkdir(parents=True)
        lines = [json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS]
        for split in ("train", "test"):
            (tmp_path / "data" / name / f"{split}.jsonl").write_text("".join(lines))
    return tmp_path / "data"


def test_tune_takes_several_tasks_and_regions(tiny, root, run, tmp_path):
    shared = ("--steps", 3, "--rate", 0.3, "--l1", 0, "--device", "cpu", "--json")
    several = ("--tasks", "sst2,mr", "--data-root", root)
    status, out, _ = run("tune", tiny("llama"), *several, *shared, "-o", tmp_path / "multi")
    assert status == 0 and json.loads(out)["steps"] == 3
    task = ("--task", "sst2", "--data", root / "sst2/train.jsonl")
    graft = ("--eval", root / "sst2/test.jsonl", "--weights", 30, "--method", "movement", "--device", "cpu", "--json")
    assert run("graft", tiny("llama"), tmp_path / "multi", *task, *graft, "-o", tmp_path / "skill")[0] == 0
    only = ("tune", tiny("llama"), *task, *shared, "--only", tmp_path / "skill", "-o", tmp_path / "only")
    status, out, _ = run(*only)
    assert status == 0 and json.loads(out)["movable"] == 30


def test_bad_options_are_one_sentence_in_flags(tiny, root, run, tmp_path):
    tune, study = (
        ("tune", tiny("llama"), "-o", tmp_path / "new"),
        ("skill", "study", tiny("llama"), "-o", tmp_path / "new"),
    )
    for command, message in (
        ((*tune, "--tasks", "sst2,mr"), "--data-root is missing"),
        ((*tune, "--data-root", root), "--tasks is missing"),
        ((*tune, "--tasks", "sst2,cr", "--data-root", root), "cr isn't there: --data-root"),
        ((*tune, "--tasks", "sst2,mr", "--data-root", root, "--task", "sst2"), "--task goes with one task"),
        ((*tune, "--tasks", "sst2,sst2", "--data-root", root), "each once (--tasks)"),
        ((*tune, "--tasks", "sst2", "--data-root", root, "--only", root), "is missing: name a skill folder"),
        ((*study, "--tasks", "sst2", "--data-root", root), "a study takes two or more"),
        ((*study, "--tasks", "sst2,mr", "--data-root", root, "--sparsity", 2), "--sparsity"),
    ):
        status, _, err = run(*command)
        assert status == 2 and message in err, (command, err)
        assert not (tmp_path / "new").exists()


def test_a_dry_study_says_its_stages_and_writes_nothing(tiny, root, run, tmp_path):
    before = hashes(tmp_path)
    study = (
        "skill",
        "study",
        tiny("llama"),
        "--tasks",
        "sst2,mr",
        "--data-root",
        root,
        "--shots",
        2,
        "--device",
        "cpu",
    )
    status, out, _ = run(*study, "-o", tmp_path / "study", "--dry-run", "--json")
    found = json.loads(out)
    assert status == 0 and found["left"] == found["stages"] and found["minutes"] > 0
    assert found["stages"][:3] == ["seed0-base", "seed0-skill-sst2", "seed0-skill-mr"]
    assert hashes(tmp_path) == before


def test_show_of_a_checkpoint_with_a_stack_says_what_it_holds(tiny, run, tmp_path):
    skills = [skill(tiny("bert"), tmp_path, 20, seed)[0] for seed in (0, 1)]
    assert run("skill", "apply", *skills, tiny("bert"), "--rule", "mean", "-o", tmp_path / "out")[0] == 0
    status, out, _ = run("skill", "show", tmp_path / "out", "--json")
    found = json.loads(out)
    assert status == 0 and found["rule"] == "mean"
    assert [(layer["skill"], layer["weights"]) for layer in found["stack"]] == [("skill-0", 20), ("skill-1", 20)]
    assert "2 skills" in run("skill", "show", tmp_path / "out")[1]
