"""Grafts of checkpoints in which tuning moved nearly every weight: prospects, growing, drawing, fitting, targets and the control."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from surgery import graft
from surgery.checkpoints.models import load_model
from surgery.errors import OptionError
from surgery.grafting import growing, rescaling, search
from surgery.grafting.control import agreement_above
from surgery.grafting.displacement import Displacement
from surgery.grafting.growing import grown, nearest
from surgery.grafting.methods import Evidence
from surgery.grafting.prospects import ceiling, prospects, told
from surgery.grafting.rescaling import fisher, inclusion, refitted, rescaled, systematic
from surgery.grafting.targets import smallest
from surgery.tasks.readout import pick_readout
from surgery.tasks.scoring import Score
from tests.support.tiny import perturb, weights
from tests.tuning.test_tuning import ROWS, task


def flat(folder, names):
    held = weights(folder)
    return torch.cat([held[name].reshape(-1) for name in sorted(names)])


def plain_gradient(moved, evidence, values):
    """The gradient by a plain backward pass through the library's model, all rows one by one."""
    module = load_model(moved.model.checkpoint, device="cpu").module
    named = dict(module.named_parameters())
    own = moved.model.checkpoint.structure.parameters
    with torch.no_grad():
        for name, stretch in moved.stretches():
            named[own[name]].copy_(values[stretch].view_as(named[own[name]]))
    words, losses = list(moved.readout.word_ids), []
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for row, soft in zip(evidence.rows, evidence.soft, strict=True):
        logits = module(torch.tensor([row.ids])).logits[0, -1, words]
        losses.append(F.cross_entropy(logits[None], soft[None]))
    torch.stack(losses).mean().backward()
    return torch.cat([named[own[name]].grad.reshape(-1) for name in moved.names])


def test_all_weights_are_numbered_tensor_by_tensor_and_put_to_the_bit(spread, moved):
    (base, tuned), (found, _) = spread, moved
    names = base.block_weights()
    assert torch.equal(found.base, flat(base.folder, names)) and torch.equal(found.tuned, flat(tuned.folder, names))
    chosen = torch.tensor([0, 7, found.bounds[1], len(found) - 1])
    found.put_chosen(chosen)
    now = torch.cat([found.model.parameters[name].detach().reshape(-1) for name in found.names])
    wanted = found.base.clone()
    wanted[chosen] = found.tuned[chosen]
    assert torch.equal(now, wanted)
    support = found.support(chosen.flip(0), torch.tensor([4.0, 3.0, 2.0, 1.0]))
    found.put_support(support)
    now = torch.cat([found.model.parameters[name].detach().reshape(-1) for name in found.names])
    assert now[chosen].tolist() == [1.0, 2.0, 3.0, 4.0] and int((now != found.base).sum()) == 4


def test_growing_with_one_round_takes_the_best_by_autograd(moved, monkeypatch):
    found, evidence = moved
    monkeypatch.setattr(growing, "_ROUNDS", 1)
    saliency = (found.base - found.tuned) * plain_gradient(found, evidence, found.base)
    assert set(grown(found, evidence, 50).tolist()) == set(saliency.topk(50).indices.tolist())


def test_growing_ends_nearer_to_tuned_than_movement_and_chance(moved):
    found, evidence = moved
    k = len(found) // 10
    grows = found.support(grown(found, evidence, k))
    others = [found.support(found.delta.abs().topk(k).indices), found.support(torch.randperm(len(found))[:k])]
    assert nearest(found, evidence, [*others, grows]) is grows


def test_the_ceiling_is_the_sum_of_the_best_slopes_over_what_tuning_won(spread):
    """Held against autograd; the report's and the sentence's."""
    told_lines = []
    report = graft(*spread, task(), weights=100, control=False, device="cpu", say=told_lines.append).report
    base = spread[0]
    model = load_model(base, device="cpu")
    readout = pick_readout(model, task())
    found = Displacement(model, readout, *spread, base.block_weights())
    rows = readout.encode(ROWS)
    found.put(found.tuned)
    soft = found.scores(rows).softmax(1)
    after = float(F.cross_entropy(found.scores(rows), soft))
    found.put(found.base)
    won = float(F.cross_entropy(found.scores(rows), soft)) - after
    evidence = Evidence(rows, torch.tensor(task().targets(ROWS)), soft)
    saliency = (found.base - found.tuned) * plain_gradient(found, evidence, found.base)
    wanted = float(saliency.topk(100).values.sum()) / won
    assert report["prospects"]["ceiling"] == pytest.approx(wanted, rel=1e-4)
    assert report["prospects"]["moved"] == report["moved"] == report["movable"]
    assert told_lines[0].startswith("Tuning moved 5,184 of 5,184") and f"gain {wanted:.2f} of" in told_lines[0]
    assert "--low-rank" in told_lines[1]


@pytest.mark.parametrize(
    ("share", "top", "says"),
    [(1e-4, 0.06, "nothing of this checkpoint to find"), (1e-2, 0.7, "likely too few"), (1e-4, 1.6, None)],
)
def test_what_is_proposed_follows_from_the_ceiling(share, top, says):
    asked = int(share * 1_000_000)
    held = prospects({asked: top}, asked, 999_000, 1_000_000)
    assert (says is None and len(told(held)) == 1) or says in told(held)[1]
    assert len(told(held, tuned_values=False)) == 1  # who asks for another product needs no proposal
    assert len(told({**held, "moved": 20_000})) == 1


def test_a_ceiling_needs_a_gain():
    assert ceiling(torch.tensor([3.0, -1.0, 2.0]), 2.0, [1, 2, 5]) == {1: 1.5, 2: 2.5, 5: 2.5}
    assert ceiling(torch.tensor([3.0]), 0.0, [1]) == {1: 0.0}


@given(st.lists(st.just(0.0) | st.floats(2.0**-60, 100, width=32), min_size=1, max_size=40), st.integers(1, 40))
def test_chances_sum_to_the_budget_and_are_in_proportion_below_one(values, k):
    weight = torch.tensor(values)
    chance = inclusion(weight, k)
    possible = int((weight > 0).sum())
    assert float(chance.sum()) == pytest.approx(min(k, possible), rel=1e-4)
    assert bool((chance <= 1).all()) and bool((chance[weight == 0] == 0).all())
    free = (chance > 1e-30) & (chance < 1)
    if int(free.sum()) > 1:
        ratio = chance[free].double() / weight[free].double()
        assert float(ratio.max() / ratio.min()) == pytest.approx(1.0, rel=1e-4)
        assert bool((weight[chance >= 1] >= weight[free].max() * (1 - 1e-4)).all())


@given(st.lists(st.floats(2.0**-10, 5, width=32), min_size=2, max_size=25), st.integers(1, 24))
def test_each_is_drawn_as_often_as_its_chance_says(values, k):
    """All starts on a fine grid: a weight is in as large a share of the draws as its chance, so moves are right on average."""
    chance = inclusion(torch.tensor(values), min(k, len(values)))
    total = torch.zeros(len(values))
    for step in range(400):
        drawn = systematic(chance, (step + 0.5) / 400)
        assert len(drawn) == round(float(chance.sum())) == len(set(drawn.tolist()))
        total[drawn] += 1 / 400
    assert torch.allclose(total, chance, atol=0.012)


def test_fisher_information_is_that_of_every_example_and_label(moved, monkeypatch):
    """Its sum over all weights, against the mean over examples and labels of the squared gradient, at one point of the path."""
    found, evidence = moved
    monkeypatch.setattr(rescaling, "_PATH", 1)
    monkeypatch.setattr(rescaling, "_BATCHES", 40)
    monkeypatch.setattr(rescaling, "_EXAMPLES", 4)
    sampled = float(fisher(found, evidence).sum())
    found.put_share(0.5)
    exact = 0.0
    for row in evidence.rows:
        chance = found.scores([row]).softmax(1)[0]
        for label in range(2):
            exact += float(chance[label]) * float(found.gradient([row], torch.tensor([label])).square().sum())
    assert sampled == pytest.approx(exact / len(evidence.rows), rel=0.35)


def test_rescaled_and_refitted_come_nearer_than_the_same_number_of_tuned_values(moved):
    found, evidence = moved
    k = len(found) // 20
    losses = {}
    for make in (rescaled, refitted):
        support = make(found, evidence, k)
        assert len(support) == k and not bool((support.tuned == support.base).all())
        found.put_support(support)
        losses[make] = found.loss(evidence.rows, evidence.soft)
    found.put_chosen(found.delta.abs().topk(k).indices)
    assert losses[refitted] <= losses[rescaled] < found.loss(evidence.rows, evidence.soft)


def test_a_rescaled_weight_moves_by_the_reciprocal_of_its_chance(moved, monkeypatch):
    found, evidence = moved
    monkeypatch.setattr(rescaling, "_SHRINKS", ())
    information = torch.ones_like(found.base)
    support = rescaled(found, evidence, 300, information=information)
    chance = inclusion(found.delta.abs(), 300)
    assert len(support) == 300
    for name, stretch in support.stretches():
        start = dict(found.stretches())[name].start
        places = support.indices[stretch] + start
        wanted = found.base[places] + found.delta[places] / chance[places]
        assert torch.allclose(support.tuned[stretch], wanted, rtol=1e-5)


def test_where_few_weights_moved_nothing_is_grown_and_no_control_is_made(tiny, tmp_path, monkeypatch):
    perturb(tiny("gpt2"), tmp_path / "tuned", count=200)
    monkeypatch.setattr(search, "grown", None)
    report = graft(tiny("gpt2"), tmp_path / "tuned", task(), weights=40, device="cpu").report
    assert "control" not in report and report["values"] == "tuned"


@given(st.integers(1, 10**7), st.integers(1, 10**7))
@example(10, 2)
@example(10, 3)
@example(10, 4)
@example(1, 1)
def test_bisection_finds_the_smallest_number_within_a_quarter(movable, least):
    least = min(least, movable)
    tried = []

    def gain(k):
        tried.append(k)
        return float(k >= least)

    k, points = smallest(0.9, movable, gain)
    floor = max(1, int(1e-5 * movable))
    assert least <= k <= max(math.ceil(1.25 * least) + 1, floor) and len(tried) <= 10
    assert [point["weights"] for point in points] == sorted({*tried, k})


def test_a_target_is_reached_on_the_examples_it_is_judged_on(spread, tmp_path):
    skill = graft(*spread, task(dev=ROWS[:16]), target_gain=0.8, values="rescaled", control=False, device="cpu")
    target = skill.report["target"]
    reached = {point["weights"]: point["gain"] for point in target["points"]}
    assert target["judged_on"] == "dev" and reached[target["weights"]] >= 0.8
    assert skill.delta.weights == target["weights"] == skill.report["call"]["graft"]["weights"]
    assert all(gain < 0.8 for k, gain in reached.items() if k < target["weights"])
    skill.save(tmp_path / "skill")
    assert (tmp_path / "skill" / "target.png").stat().st_size > 5_000
    assert "smallest number found to recover 0.8" in (tmp_path / "skill" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"values": "moved"}, "`values` moved isn't one of tuned, rescaled, refitted"),
        ({"values": "rescaled", "method": "sigmoid"}, "`method` sigmoid locates tuned values"),
        ({"low_rank": True, "values": "rescaled"}, "leave out `values`"),
        ({"low_rank": True, "baselines": True}, "leave them out with `low_rank`"),
        ({"target_gain": 1.2}, "`target_gain` 1.2 must lie above 0"),
        ({"target_gain": 0.9, "sparsity": 0.1}, "leave out `sparsity`"),
        ({"target_gain": 0.9, "sweep": [0.1]}, "leave out `sweep`"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_read(options, says):
    with pytest.raises(OptionError, match=says):
        graft("missing", "missing", task(), **options)


def test_agreement_above_is_the_paired_difference():
    rows = ([0, 1] * 50, [0, 1] * 50, [0, 0] * 50)
    tuned, same, other = (Score(("a", "b"), "accuracy", np.eye(2)[row], np.zeros(100)) for row in rows)
    assert agreement_above(tuned, same, same) == (0.0, 0.0, 0.0)
    more, low, high = agreement_above(tuned, same, other)
    assert more == 0.5 and 0.35 < low < 0.5 < high < 0.65


@pytest.mark.cuda
@pytest.mark.parametrize(
    "product", [{"values": "tuned"}, {"values": "rescaled"}, {"values": "refitted"}, {"low_rank": True}]
)
def test_products_made_on_a_card_are_as_good(spread, product):
    skills = [
        graft(*spread, task(), sparsity=0.3, control=False, device=device, **product) for device in ("cpu", "cuda")
    ]
    own, other = (skill.report["graft"] for skill in skills)
    assert abs(own["agreement"] - other["agreement"]) <= 0.25
    assert skills[1].delta.values.device.type == "cpu" and len(skills[1].delta_bytes()) > 1000


def test_the_command_says_what_to_expect_first_and_labels_what_it_made(spread, tmp_path, run):
    rows = "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows)
    base, tuned = (str(checkpoint.folder) for checkpoint in spread)
    data = ["--task", "sst2", "--data", str(tmp_path / "rows.jsonl"), "--eval", str(tmp_path / "rows.jsonl")]
    made = ("--sparsity", ".1", "--values", "rescaled", "--device", "cpu", "-o", tmp_path / "skill")
    status, shown, _ = run("graft", base, tuned, *data, *made)
    assert status == 0
    assert shown.startswith("Tuning moved 5,184 of 5,184 block weights (100.00%)")
    assert "control" in shown and "Rescaled: it doesn't hold tuned values" in " ".join(shown.split())
    status, shown, _ = run("skill", "show", tmp_path / "skill")
    assert status == 0 and "Rescaled: it doesn't hold tuned values" in " ".join(shown.split())
    card = (tmp_path / "skill" / "README.md").read_text()
    assert "Rescaled: it doesn't hold tuned values" in card and "| control |" in card
