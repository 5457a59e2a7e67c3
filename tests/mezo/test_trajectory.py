"""Trajectories: replaying one gives the weights that training made, to the bit, at any step."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import CheckpointError, OptionError
from surgery.grafting.skill import Skill
from surgery.mezo import training
from surgery.mezo.recipe import MezoRecipe
from surgery.mezo.run import tune
from surgery.mezo.trajectory import MezoTuned, Trajectory
from surgery.tasks.scoring import score
from surgery.tasks.task import Task

RECIPE = MezoRecipe(steps=6, rate=1e-2, eps=1e-2, batch_size=4, probes=2)
WAYS = [
    {},
    {"dtype": "bfloat16"},
    {"where": "random:0.05"},
    {"where": "random:0.05", "dtype": "bfloat16"},
    {"include": ["*"]},
    {"residual": False, "force": True, "dtype": "bfloat16"},
]


@pytest.fixture
def kept(monkeypatch):
    """The tensors of each step of a training, copied as they are then."""
    copies = []
    walk = training.MezoLoop._walk

    def walked(loop, first, stop):
        walk(loop, first, stop)
        copies.append([tensor.values.clone() for tensor in loop.tensors])

    monkeypatch.setattr(training.MezoLoop, "_walk", walked)
    return copies


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "recipe", [RECIPE, replace(RECIPE, directions=2, momentum=0.6, noise="gaussian", accumulate=2)]
)
def test_replay_is_training_bit_for_bit(way, recipe, kept, task, tiny):
    base = Checkpoint(tiny("llama-tied"))
    run = tune(base, task, recipe, seed=3, device="cpu", **way)
    assert len(kept) == 6
    for step in (0, 3, 6):
        walked = run.trajectory.cut(step)
        for number, name in enumerate(run.trajectory.tensors):
            made = walked.weights(base, name)
            if step:
                assert torch.equal(made.values, kept[step - 1][number])
            elif way.get("dtype") is None:
                assert made.moved(base.tensor(name)) == 0
    assert run.report["moved"] > 0


def test_what_is_saved_is_a_checkpoint_a_skill_and_a_trajectory(task, tiny, tmp_path):
    base = tiny("bert-encoder")
    run = tune(base, task, RECIPE, where="gradient:0.02", device="cpu")
    before = Checkpoint(base).fingerprint
    folder = run.save(tmp_path / "tuned")
    loaded = MezoTuned.load(folder)
    assert loaded.report == json.loads(json.dumps(run.report))
    assert loaded.readout is not None
    assert loaded.table() == run.table()
    again = Trajectory.load(folder / "trajectory.safetensors").replay(base)
    again.save(tmp_path / "again")
    skill = Skill.load(folder / "skill")
    skill.apply(base, tmp_path / "grafted")
    tuned = Checkpoint(folder)
    for made in ("again", "grafted"):
        assert Checkpoint(tmp_path / made).fingerprint == tuned.fingerprint
    assert skill.delta.weights == run.report["movable"] == round(0.02 * 4448)
    assert SparseDelta.between(Checkpoint(base), tuned).weights == run.report["moved"]
    assert score(folder, task).accuracy == score(tmp_path / "grafted", task).accuracy
    assert Checkpoint(base).fingerprint == before == run.trajectory.base


def test_going_on_from_a_step_is_never_having_stopped_there(task, tiny):
    """A branch's first steps are the trajectory's; what comes then is its own."""
    base = tiny("bert")
    run = tune(base, task, RECIPE, device="cpu", where="random:0.1")
    branch = tune(base, task, RECIPE, device="cpu", where="random:0.1", steps=2, onward=run.trajectory.cut(3))
    assert branch.trajectory.steps == 5
    assert np.array_equal(branch.trajectory.coefficients[:3], run.trajectory.coefficients[:3])
    assert not np.array_equal(branch.trajectory.coefficients[3:], run.trajectory.coefficients[3:5])
    with pytest.raises(OptionError, match="`onward` moved other weights"):
        tune(base, task, RECIPE, device="cpu", where="random:0.2", onward=run.trajectory)
    with pytest.raises(OptionError, match="`to` 7 isn't one of the trajectory's 6 steps"):
        run.trajectory.cut(7)


def test_dev_examples_choose_the_step(task, tiny):
    with_dev = replace(task, dev=task.test)
    run = tune(tiny("bert"), with_dev, replace(RECIPE, evaluations=3), device="cpu")
    values = {entry["step"]: entry["value"] for entry in run.report["dev"]}
    assert sorted(values) == [2, 4, 6]
    best = max(values, key=lambda step: values[step])
    assert run.trajectory.steps == run.report["stopped_at"] == best


def file(tmp_path, task, steps=3, **more):
    about = {"task": task.spec()}
    walked = Trajectory("f" * 64, training_noise(), ("a",), np.ones((steps, 1), np.float32), about=about, **more)
    return walked, walked.save(tmp_path / "t.safetensors")


def training_noise():
    from surgery.mezo.noise import Noise

    return Noise("gaussian", (1 << 63) + 5)


def test_a_file_holds_all_of_it_in_four_bytes_a_step(task, tmp_path):
    walked, path = file(tmp_path, task, momentum=0.5, region={"a": torch.tensor([1, 5])})
    loaded = Trajectory.load(path)
    for name in ("base", "noise", "tensors", "precision", "momentum", "rank"):
        assert getattr(loaded, name) == getattr(walked, name)
    assert Task.from_spec(loaded.about["task"]) == Task.from_spec(task.spec())
    assert np.array_equal(loaded.coefficients, walked.coefficients)
    assert torch.equal(loaded.region["a"], walked.region["a"])
    long = replace(walked, coefficients=np.ones((1003, 1), np.float32))
    assert len(long.to_bytes()) - len(walked.to_bytes()) <= 4 * 1000 + 8


def test_files_that_are_damaged_or_of_another_base_are_refused(task, tiny, tmp_path):
    path = file(tmp_path, task)[1]
    whole = path.read_bytes()
    with pytest.raises(CheckpointError, match="isn't what the trajectory began at"):
        Trajectory.load(path).replay(tiny("bert"))
    for content in (whole[:-3], whole[:-1] + b"\1", whole[:40], b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read as a trajectory"):
            Trajectory.load(path)
    with pytest.raises(CheckpointError, match="is missing"):
        Trajectory.load(tmp_path / "none.safetensors")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers deprecates
@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_low_rank_factors(name, task, tiny, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra lora: pip install 'surgery[lora]'")
    from transformers import AutoModelForCausalLM

    base = tiny(name)
    run = tune(base, task, replace(RECIPE, rate=0.1), lora=2, device="cpu", dtype="bfloat16")
    folder = run.save(tmp_path / "tuned")
    assert Trajectory.load(folder / "trajectory.safetensors").rank == 2
    plain = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(plain, folder / "adapter").eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        torch.testing.assert_close(adapted(ids).logits, wanted, rtol=0, atol=1e-5)
        assert (wanted - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max() > 1e-4
