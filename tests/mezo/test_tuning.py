"""Tuning: pace, objectives, refusals, and what a kill leaves."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from surgery import mezo
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model, run
from surgery.errors import CheckpointError, OptionError, SurgeryError
from surgery.mezo import training
from surgery.mezo.forward import ShiftedModel
from surgery.mezo.noise import Noise, Place
from surgery.mezo.objectives import Measure
from surgery.mezo.pace import find_pace
from surgery.mezo.recipe import MezoRecipe, Pace
from surgery.mezo.weights import TunedTensor
from surgery.resuming import StateError
from surgery.tasks.readout import pick_readout
from surgery.tasks.scoring import score_model

RECIPE = MezoRecipe(steps=4, rate=1e-2, eps=1e-2, batch_size=4, probes=2)


class Bowl(Measure):
    """A quadratic in place of a model: sum curvature (w - goal)^2 / 2 at w = 0, where each example has a goal of its own."""

    def __init__(self, width, examples, curvature, distance):
        self.rows, self.objective, self.curvature = range(examples), "loss", curvature
        self.goals = distance + 0.1 * distance * torch.randn(
            examples, width, generator=torch.Generator().manual_seed(0)
        )

    def values(self, numbers, scales, step=0, direction=0):
        z = Noise("rademacher", 1).at(torch.arange(self.goals.shape[1]), Place(0, step, direction))
        goal = self.goals[list(numbers)].mean(0).double()
        return [float((self.curvature / 2 * (scale * z - goal) ** 2).sum()) for scale in scales]


def test_the_pace_of_a_quadratic_is_the_best_step():
    width, curvature, distance = 400, 3.0, 0.02
    recipe = MezoRecipe(probes=200, batch_size=8)
    pace, probed = find_pace(Bowl(width, 16, curvature, distance), recipe, seed=0)
    assert probed["curvature"] == pytest.approx(width * curvature, rel=1e-4)  # exact for signs: z'Hz = tr H
    assert probed["size"] == pytest.approx(curvature * distance * width**0.5, rel=0.4)
    assert pace.rate == pytest.approx(probed["signal"] / (width * curvature), rel=1e-3)
    assert pace.rate * probed["size"] <= pace.eps
    given, _ = find_pace(Bowl(width, 16, curvature, distance), replace(recipe, rate=0.5, eps=0.1), seed=0)
    assert (given.rate, given.eps) == (0.5, 0.1)
    several, _ = find_pace(Bowl(width, 16, curvature, distance), replace(recipe, directions=3), seed=0)
    assert several.rate == pytest.approx(3 * pace.rate)


def test_a_first_step_is_no_longer_than_what_was_probed():
    far, probed = find_pace(Bowl(4, 16, 1e-3, 1e4), MezoRecipe(probes=50, batch_size=8), seed=0)
    assert far.rate * probed["size"] == pytest.approx(far.eps)


def test_rates_rise_and_fall():
    pace = Pace(1.0, 0.1, 10, 0.2)
    assert [pace.rate_at(step) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    assert [Pace(1.0, 0.1, 10, falls=False).rate_at(step) for step in (0, 9)] == [1.0, 1.0]


def test_it_learns(task, tiny):
    recipe = MezoRecipe(steps=40, batch_size=40, directions=4, rate=0.03, eps=0.02)
    losses = mezo.tune(tiny("bert"), task, recipe, device="cpu", seed=2).report["losses"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.02


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("objective", ["loss", "accuracy", "f1"])
def test_objectives_are_those_of_moved_weights(objective, accumulate, task, tiny):
    model = load_model(Checkpoint(tiny("bert-encoder")), device="cpu")
    readout = pick_readout(model, task)
    name = "encoder.layer.1.output.dense.weight"
    noise, parameter = Noise("gaussian", 1), model.parameters[name]
    shifted = ShiftedModel(model.module, [TunedTensor(name, 0, parameter, noise)])
    found = Measure(shifted, model, readout, task, objective, accumulate).values(range(40), (1.0, -1.0), 2, 1)
    shifted.close()
    start = parameter.detach().clone()
    for value, scale in zip(found, (1.0, -1.0), strict=True):
        parameter.data = start + scale * noise.at(torch.arange(start.numel()), Place(0, 2, 1)).view(start.shape)
        score = score_model(model, readout, task, task.train)
        loss = torch.nn.functional.cross_entropy(torch.tensor(score.logits).double(), torch.tensor(score.targets))
        wanted = {"loss": float(loss), "accuracy": -score.accuracy, "f1": -score.f1}[objective]
        assert value == pytest.approx(wanted, abs=1e-5)


def test_an_objective_of_ones_own(task, tiny):
    """A function is called at W + eps z and at W - eps z, with the examples of a batch."""
    seen = []

    def objective(model, batch):
        seen.append(len(batch))
        ids = torch.tensor([[5, 6, 7]])
        return float(run(model.module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).square().mean())

    tuned = mezo.tune(tiny("llama"), task, RECIPE, objective=objective, device="cpu")
    assert set(seen) == {1, 4}  # one to try it out
    assert tuned.report["losses"][-1] < tuned.report["losses"][0]


@pytest.mark.parametrize(("given", "error", "said"), [
    ({"objective": "bleu"}, OptionError, "`objective` bleu isn't one of loss, accuracy, f1"),
    ({"dtype": "float16"}, OptionError, "`dtype` float16 isn't for tuning"),
    ({"dtype": "bfloat16", "residual": False}, OptionError, r"a share of \d\.\d\d arrives"),
    ({"where": "gradient"}, OptionError, "`where` gradient must be gradient:SHARE"),
    ({"where": "random:2"}, OptionError, "`where` random:2 must be"),
    ({"where": "random:.1", "lora": 2}, OptionError, "give `where` or `lora`, not both"),
    ({"include": ["*nothing*"]}, OptionError, "no tensor matches"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(given, error, said, task, tiny):
    with pytest.raises(error, match=said):
        mezo.tune(tiny("bert"), task, RECIPE, device="cpu", **given)


@pytest.mark.parametrize(("name", "value"), [
    ("steps", 0), ("rate", -1.0), ("eps", 0.0), ("momentum", 1.0), ("noise", "uniform"), ("schedule", "cosine"), ("accumulate", 17),
])  # fmt: skip
def test_options_out_of_their_range(name, value):
    with pytest.raises(OptionError, match=f"`{name}`"):
        MezoRecipe(**{name: value})


def called(value):
    def objective(model, batch):
        ids = torch.tensor([[5, 6, 7]])
        run(model.module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return value

    return objective


def test_objectives_that_say_nothing_are_refused(task, tiny):
    with pytest.raises(OptionError, match="the `objective` is the same at all"):
        mezo.tune(tiny("bert"), task, replace(RECIPE, rate=None), objective=called(1.0), device="cpu")
    with pytest.raises(OptionError, match="the `objective` was the same on both sides in all of 4 steps"):
        mezo.tune(tiny("bert"), task, RECIPE, objective=called(1.0), device="cpu")
    with pytest.raises(SurgeryError, match="the objective became nan"):
        mezo.tune(tiny("bert"), task, RECIPE, objective=called(float("nan")), device="cpu")
    with pytest.raises(CheckpointError, match="is never called"):
        mezo.tune(tiny("bert"), task, RECIPE, objective=lambda model, batch: 1.0, device="cpu")


def test_a_rate_far_too_high_ends_in_a_sentence(task, tiny):
    with pytest.raises(SurgeryError, match=r"the objective became .* at step \d+: lower `rate`"):
        mezo.tune(tiny("llama"), task, replace(RECIPE, steps=30, rate=1e38), device="cpu")


def test_halves_that_mix_are_refused(task, tiny, monkeypatch):
    """What one row says must not depend on the rows of the other half."""
    from transformers.models.bert.modeling_bert import BertLayer

    plain = BertLayer.forward
    monkeypatch.setattr(
        BertLayer,
        "forward",
        lambda layer, states, *more, **named: plain(layer, states + states.roll(1, 0), *more, **named),
    )
    with pytest.raises(CheckpointError, match="mixes the halves of a batch"):
        mezo.tune(tiny("bert"), task, RECIPE, device="cpu")


def test_the_base_is_never_written(task, tiny):
    """Neither in its files nor, where a region is tuned, in memory; whole tensors in memory change between passes alone."""
    base = Checkpoint(tiny("bert"))
    before = {file: file.read_bytes() for file in base.files}
    held = {}
    begin = training.MezoLoop.__init__

    def remember(loop, measure, *more):
        held.update({name: (own, own.detach().clone()) for name, own in measure.model.parameters.items()})
        begin(loop, measure, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.MezoLoop, "__init__", remember)
        mezo.tune(base, task, RECIPE, where="random:0.1", device="cpu")
    assert held
    for now, then in held.values():
        assert torch.equal(now, then)
    assert {file: file.read_bytes() for file in base.files} == before


SLOW = """
import sys, time
from surgery import mezo
from surgery.mezo import training
from surgery.mezo.forward import ShiftedModel
from tests.mezo.conftest import task
step = training.MezoLoop._step
def slower(loop, number, numbers):
    step(loop, number, numbers)
    print(number, flush=True)
    time.sleep(0.05)
training.MezoLoop._step = slower
recipe = mezo.MezoRecipe(steps=12, rate=1e-2, eps=1e-2, batch_size=4, probes=2, momentum=0.5)
mezo.tune(sys.argv[1], task.__wrapped__(), recipe, device="cpu", resume=sys.argv[2]).trajectory.save(sys.argv[3])
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(task, tiny, tmp_path):
    base, state, end = tiny("bert"), tmp_path / "state", tmp_path / "t.safetensors"
    before = Checkpoint(base).fingerprint
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
    with subprocess.Popen([sys.executable, "-c", SLOW, base, state, end], stdout=subprocess.PIPE, cwd=root) as process:
        while process.stdout.readline().strip() != b"5":
            assert process.poll() is None
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    recipe = replace(RECIPE, steps=12, momentum=0.5)
    with (state / "steps.log").open("ab") as log:
        log.write(b"\1\2")  # as of a step that was cut off
    gone_on = mezo.tune(base, task, recipe, device="cpu", resume=state)
    whole = mezo.tune(base, task, recipe, device="cpu")
    assert np.array_equal(gone_on.trajectory.coefficients, whole.trajectory.coefficients)
    assert gone_on.report["losses"] == whole.report["losses"]
    assert Checkpoint(base).fingerprint == before
    damaged = bytearray((state / "steps.log").read_bytes())
    damaged[2] ^= 1
    (state / "steps.log").write_bytes(damaged)
    with pytest.raises(StateError, match="step 1 doesn't match its check"):
        mezo.tune(base, task, recipe, device="cpu", resume=state)
