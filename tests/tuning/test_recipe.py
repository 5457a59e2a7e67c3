"""The numbers a recipe comes to, which examples a step sees, and what makes a stopped tuning another one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.tasks.readout import pick_readout
from surgery.tuning.finetuning import _identity
from surgery.tuning.recipe import Pace, Recipe
from surgery.tuning.training import batches, gradient_norm_at_base
from surgery.tuning.training_sets import LabelledSet
from tests.tuning.test_tuning import ROWS, task


def test_what_a_recipe_leaves_open_follows_from_model_examples_and_gradient():
    for kind, rate in (("encoder", 0.05), ("masked", 0.004), ("causal", 0.004), ("classifier", 0.004)):
        assert Recipe().pace(kind, 100, 4000, 2.0) == Pace(rate, 11 * 2.0 / 10, 250, 0.1)
    assert Recipe(clip=3.0).pace("encoder", 400, 1, 50.0) == Pace(
        0.05, 11 * 6.0 / 20, 150, 0.1
    )  # the norm counts to 2 clip
    assert Recipe("adamw").pace("encoder", 100, 10**6, 2.0) == Pace(1e-4, 0.0, 1000, 0.1)
    assert Recipe("sgd", rate=0.3, l1=0.7, steps=9).pace("encoder", 100, 4000, 2.0) == Pace(0.3, 0.0, 9, 0.1)
    assert Recipe(rate=0.3, l1=0.7, steps=9, warmup=0.5).pace("encoder", 100, 4000, 2.0) == Pace(0.3, 0.7, 9, 0.5)
    looks = {name: Recipe(name).needs_gradient_norm for name in ("sgd-l1", "sgd", "adamw", "adamw-l1")}
    assert looks == {"sgd-l1": True, "sgd": False, "adamw": False, "adamw-l1": True}
    assert not Recipe(l1=0.0).needs_gradient_norm


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    rates = [Pace(2.0, 0.0, 10, 0.4).rate_at(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, *(2.0 * (10 - step) / 6 for step in range(4, 10))])


def test_each_pass_sees_all_examples_once_in_an_order_of_its_own():
    steps = list(batches(10, 3, 7, 0, 9))
    assert all(len(numbers) == 3 for numbers in steps)
    passes = [[n for step in steps[start : start + 3] for n in step] for start in (0, 3, 6)]
    assert all(len(set(numbers)) == 9 and set(numbers) <= set(range(10)) for numbers in passes)
    assert passes[0] != passes[1] != passes[2]
    assert steps[4:] == list(batches(10, 3, 7, 4, 9)) and steps != list(batches(10, 3, 8, 0, 9))
    assert sorted(next(batches(4, 16, 0, 0, 1))) == [0, 1, 2, 3]


def test_the_gradient_norm_is_that_of_the_mean_loss(tiny):
    model = load_model(Checkpoint(tiny("bert")), device="cpu")
    readout, names = pick_readout(model, task()), model.checkpoint.block_weights()
    rows, targets = readout.encode(ROWS), torch.tensor(task().targets(ROWS))
    found = gradient_norm_at_base(model, LabelledSet(task(), readout, rows, targets), names, 0)
    losses = []
    for row, target in zip(rows, targets, strict=True):
        states = model.module(input_ids=torch.tensor([row.ids])).logits[0, row.position, list(readout.word_ids)]
        losses.append(F.cross_entropy(states[None], target[None]))
    gradients = torch.autograd.grad(
        torch.stack(losses).mean(), [model.parameters[name] for name in names], allow_unused=True
    )
    assert found == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None)), rel=1e-4)
    assert all(model.parameters[name].grad is None for name in names)


def test_of_many_examples_64_are_drawn_by_seed_for_the_gradient_norm(tiny):
    model = load_model(Checkpoint(tiny("bert")), device="cpu")
    readout, names = pick_readout(model, task()), model.checkpoint.block_weights(include=["*layer.0.output.dense.bias"])
    rows, targets = readout.encode(ROWS * 5), torch.from_numpy(np.random.default_rng(0).integers(2, size=len(ROWS) * 5))
    norms = [
        gradient_norm_at_base(model, LabelledSet(task(), readout, rows, targets), names, seed) for seed in (0, 0, 1)
    ]
    assert norms[0] == norms[1] != norms[2]


def test_whatever_decides_the_weights_makes_another_run(tiny):
    base, recipe = Checkpoint(tiny("bert")), Recipe()
    given = (base, [task()], recipe, 0, ("a", "b"))
    changes = [
        (0, Checkpoint(tiny("roberta"))),
        (1, [task(train=ROWS[1:])]),
        (1, [task(dev=ROWS[:2])]),
        (1, [task(max_length=64)]),
        (1, [task(prompt="{text} All in all {mask}.")]),
        (2, replace(recipe, rate=0.1)),
        (2, replace(recipe, patience=4)),
        (3, 1),
        (4, ("a",)),
    ]
    for place, value in changes:
        other = [*given[:place], value, *given[place + 1 :]]
        assert _identity(*other) != _identity(*given), (place, value)
    assert _identity(*given) == _identity(Checkpoint(tiny("bert")), [task(test=ROWS[:1])], *given[2:])
