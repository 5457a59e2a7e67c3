"""Locating and grafting against brute force and autograd."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from surgery import Checkpoint, Skill, graft, score
from surgery.checkpoints.models import load_model
from surgery.errors import CheckpointError, OptionError, TaskError
from surgery.grafting.baselines import BASELINES, load_baseline
from surgery.grafting.budget import budget, parse_sweep
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.evaluation import Evaluator, gain_interval
from surgery.grafting.methods import Evidence, dual_averaging, movement, sigmoid
from surgery.tasks.readout import Encoded, pick_readout
from surgery.tasks.scoring import Score
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe
from tests.support.tiny import block_names, change, hashes, perturb, raw, weights
from tests.tuning.test_tuning import ROWS, task


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    """A tiny LLaMA and the same after it has learnt the task."""
    folder = tmp_path_factory.mktemp("pair") / "tuned"
    tune(tiny("llama"), task(), Recipe("sgd-l1", rate=0.1, l1=0.003, steps=200), device="cpu").save(folder)
    return Checkpoint(tiny("llama")), Checkpoint(folder)


def grafted_model(base, tuned, limit=10_000):
    model = load_model(base, device="cpu")
    readout = pick_readout(model, task())
    candidates = Candidates.between(base, tuned, base.block_weights(), limit)
    labels = torch.tensor(task().targets(ROWS))
    evidence = Evidence(readout.encode(ROWS), labels, F.one_hot(labels, 2).float())
    return GraftedModel(model, readout, candidates), evidence


@pytest.mark.parametrize("limit", [10_000, 40, 7, 1])
def test_candidates_are_those_that_moved_furthest(tiny, tmp_path, limit):
    touched = perturb(tiny("gpt2"), tmp_path / "tuned", count=50)
    base, tuned = Checkpoint(tiny("gpt2")), Checkpoint(tmp_path / "tuned")
    found = Candidates.between(base, tuned, base.block_weights(), limit)
    before, after = weights(tiny("gpt2")), weights(tmp_path / "tuned")
    every = [
        (abs(float(after[n].view(-1)[i] - before[n].view(-1)[i])), n, i)
        for n, indices in touched.items()
        for i in indices
    ]
    wanted = {(name, index) for _, name, index in sorted(every, reverse=True)[:limit]}
    held = {
        (name, int(i)): (float(b), float(t))
        for name, s in found.stretches()
        for i, b, t in zip(found.indices[s], found.base[s], found.tuned[s], strict=True)
    }
    assert set(held) == wanted and found.moved == 50
    assert found.movable == sum(before[name].numel() for name in block_names(tiny("gpt2")))
    assert all(pair == (float(before[n].view(-1)[i]), float(after[n].view(-1)[i])) for (n, i), pair in held.items())


def test_slope_is_the_derivative_that_autograd_gives(pair):
    base, tuned = pair
    grafted, evidence = grafted_model(base, tuned)
    random = torch.Generator().manual_seed(0)
    gate = torch.rand(len(grafted.candidates), generator=random)
    grafted.set_mask(gate)
    found = grafted.mask_gradient(evidence.rows, evidence.labels)

    model = load_model(base, device="cpu").module
    free = gate.clone().requires_grad_(True)
    before, after = weights(base.folder), weights(tuned.folder)
    worn = dict(before)
    for name, stretch in grafted.candidates.stretches():
        index = grafted.candidates.indices[stretch]
        delta = (after[name] - before[name]).view(-1)[index]
        worn[name] = (
            before[name]
            .view(-1)
            .index_put((index,), before[name].view(-1)[index] + free[stretch] * delta)
            .view_as(before[name])
        )
    words = list(grafted.readout.word_ids)
    losses = []
    for row, label in zip(evidence.rows, evidence.labels, strict=True):
        logits = torch.func.functional_call(model, worn, (torch.tensor([row.ids]),)).logits[0, -1, words]
        losses.append(F.cross_entropy(logits[None], label[None]))
    torch.stack(losses).mean().backward()
    assert torch.allclose(found, free.grad, atol=1e-6, rtol=1e-4)
    assert found.abs().max() > 1e-5


def test_wearing_gives_exact_bits_and_leaves_no_gradients(pair):
    base, tuned = pair
    grafted, evidence = grafted_model(base, tuned)
    before, after = weights(base.folder), weights(tuned.folder)
    everything = torch.arange(len(grafted.candidates))
    for chosen, wanted in ((everything, after), (everything[:0], before)):
        grafted.set_chosen(chosen)
        for name in base.block_weights():
            assert (raw(grafted.model.parameters[name].detach()) == raw(wanted[name])).all()
    grafted.mask_gradient(evidence.rows, evidence.labels)
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in grafted.model.module.parameters()
    )


@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("method", [dual_averaging, sigmoid])
def test_methods_return_the_whole_budget_without_repeats(pair, method, k):
    grafted, evidence = grafted_model(*pair)
    chosen = method(grafted, evidence, k)
    assert len(chosen) == len(set(chosen.tolist())) == k
    assert int(chosen.min()) >= 0 and int(chosen.max()) < len(grafted.candidates)


def test_methods_repeat_themselves_by_seed(pair):
    grafted, evidence = grafted_model(*pair)
    runs = [set(dual_averaging(grafted, evidence, 20, seed=seed).tolist()) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]


def loss_of(grafted, evidence, chosen):
    grafted.set_chosen(chosen)
    return float(F.cross_entropy(grafted.scores(evidence.rows), evidence.labels))


def test_averaging_finds_weights_that_matter_more_than_random_ones(pair):
    grafted, evidence = grafted_model(*pair)
    found = loss_of(grafted, evidence, dual_averaging(grafted, evidence, 40))
    others = [
        loss_of(
            grafted, evidence, torch.from_numpy(np.random.default_rng(seed).permutation(len(grafted.candidates))[:40])
        )
        for seed in range(10)
    ]
    nothing, everything = (
        loss_of(grafted, evidence, torch.arange(0)),
        loss_of(grafted, evidence, torch.arange(len(grafted.candidates))),
    )
    assert everything < found < min(others) and nothing - found > 0.5 * (nothing - everything)


def test_a_skill_does_in_a_folder_what_its_report_says(pair, tmp_path):
    base, tuned = pair
    skill = graft(base, tuned, task(), weights=60, device="cpu")
    assert skill.delta.weights == 60 == skill.report["weights"]
    skill.save(tmp_path / "skill")
    loaded = Skill.load(tmp_path / "skill")
    folder = loaded.apply(base, tmp_path / "grafted")
    result = score(folder, task(), against=tuned, device="cpu")
    assert result.accuracy == skill.report["graft"]["accuracy"]
    assert result.agreement == skill.report["graft"]["agreement"]
    assert result.ece == pytest.approx(skill.report["graft"]["ece"], abs=1e-6)
    gained = skill.report["tuned"]["accuracy"] - skill.report["base"]["accuracy"]
    assert skill.report["graft"]["gain_recovered"] == pytest.approx(
        (result.accuracy - skill.report["base"]["accuracy"]) / gained
    )
    before, after, grafted = weights(base.folder), weights(tuned.folder), weights(folder)
    differ = {n: before[n] != grafted[n] for n in before}
    assert sum(int(mask.sum()) for mask in differ.values()) == 60
    assert all(torch.equal(grafted[n][mask], after[n][mask]) for n, mask in differ.items())
    loaded.revert(folder, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(base.folder)
    report = json.loads((tmp_path / "skill" / "report.json").read_text())
    assert report["inputs"] == {"base": base.fingerprint, "tuned": tuned.fingerprint} and report["schema"] == 1
    assert (tmp_path / "skill" / "where.png").stat().st_size > 1000 and "60 weights" in (
        tmp_path / "skill" / "README.md"
    ).read_text()


def test_an_encoders_readout_travels_with_the_skill(tiny, tmp_path):
    base = Checkpoint(tiny("bert-encoder"))
    tuned = tune(base, task(), Recipe("sgd", rate=0.05, steps=20), device="cpu").save(tmp_path / "tuned")
    skill = graft(base, tuned, task(), sparsity=0.01, device="cpu")
    skill.save(tmp_path / "skill")
    Skill.load(tmp_path / "skill").apply(base, tmp_path / "grafted")
    again = score(tmp_path / "grafted", task(), device="cpu")
    assert again.ece == pytest.approx(skill.report["graft"]["ece"], abs=1e-6)
    Skill.load(tmp_path / "skill").revert(tmp_path / "grafted", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(base.folder)


def test_half_precision_checkpoints_keep_their_bits(tiny, tmp_path):
    half = change(tiny("llama"), tmp_path / "half", lambda name, tensor: tensor.bfloat16())
    tuned = tune(half, task(), Recipe("sgd", rate=0.3, steps=40), device="cpu").save(tmp_path / "tuned")
    skill = graft(half, tuned, task(), weights=50, device="cpu")
    assert skill.delta.values.dtype == torch.bfloat16
    skill.apply(half, tmp_path / "grafted")
    skill.revert(tmp_path / "grafted", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(half)


def test_baselines_hold_what_they_say(pair):
    base, tuned = pair
    grafted, _ = grafted_model(base, tuned)
    model, before, after = grafted.model, weights(base.folder), weights(tuned.folder)
    region = grafted.candidates.subset(movement(grafted, 30))
    for name in BASELINES:
        model.load_weights(base)
        size = load_baseline(name, model, tuned, base.block_weights(), grafted.candidates, 30, region, seed=0)
        now = {tensor: model.parameters[tensor].detach() for tensor in base.block_weights()}
        changed = {tensor: now[tensor] != before[tensor] for tensor in now}
        count = sum(int(mask.sum()) for mask in changed.values())
        if name == "zero outside":
            inside = sum(int(((now[t] != 0) & (after[t] != 0)).sum()) for t in now)
            assert size == 30 and inside <= 30
            continue
        assert all(torch.equal(now[t][mask], after[t][mask]) for t, mask in changed.items())
        if name == "random":
            assert size == 30 and count < 30
        elif name == "biases and norms":
            assert count == size and all(now[t].dim() == 1 for t, mask in changed.items() if mask.any())
        else:
            assert count == size == 30


@pytest.mark.parametrize("name", ["random", "random moved"])
def test_random_baselines_repeat_by_seed_and_by_number(pair, name):
    base, tuned = pair
    grafted, _ = grafted_model(base, tuned)

    def changed(seed, k=30):
        grafted.model.load_weights(base)
        load_baseline(name, grafted.model, tuned, base.block_weights(), grafted.candidates, k, grafted.candidates, seed)
        before = weights(base.folder)
        return {
            (tensor, int(i))
            for tensor in base.block_weights()
            for i in (grafted.model.parameters[tensor].detach() != before[tensor]).view(-1).nonzero()
        }

    assert changed(0) == changed(0) != changed(1)
    assert not changed(0) <= changed(0, 31)  # another number is another draw
    whole = len(grafted.candidates) if name == "random moved" else grafted.candidates.movable
    assert len(changed(0, whole)) == grafted.candidates.moved  # none is drawn twice


def test_a_fitted_bias_is_added_to_the_bases_scores():
    evaluator = object.__new__(Evaluator)
    evaluator._targets = np.array([0, 1, 1, 1])
    evaluator.base = Score(("a", "b"), "accuracy", np.array([[2.0, 0.0]] * 4, np.float32), evaluator._targets)
    assert [evaluator.accuracy_with(np.array(bias)) for bias in ((0.0, 0.0), (0.0, 1.0), (0.0, 3.0))] == [
        0.25,
        0.25,
        0.75,
    ]


def test_sweep_and_baselines_are_reported(pair, tmp_path):
    skill = graft(*pair, task(), weights=20, sweep=[0.001, 0.1], baselines=True, device="cpu")
    points = skill.report["points"]
    assert [point["weights"] for point in points if point["method"] == "dual-averaging"] == [5, 20, 518]
    assert len(points) == 3 * (1 + len(BASELINES))
    chosen = next(point for point in points if point["method"] == "dual-averaging" and point["weights"] == 20)
    assert chosen["accuracy"] == skill.report["graft"]["accuracy"] and skill.delta.weights == 20
    skill.save(tmp_path / "skill")
    assert (tmp_path / "skill" / "sparsity.png").exists() and (tmp_path / "skill" / "reliability.png").exists()


@given(st.integers(1, 10**9), st.floats(1e-9, 1, exclude_min=True))
def test_budget_is_the_share_rounded_down_and_never_nothing(movable, share):
    assert budget(movable, share, None) == max(1, int(share * movable)) <= movable


def test_budget_and_sweep_refusals():
    for sparsity, count in (
        (0.0, None),
        (1.5, None),
        (-1e-4, None),
        (float("nan"), None),
        (None, 0),
        (None, 101),
        (0.5, 5),
    ):
        with pytest.raises(OptionError, match=r"^give `sparsity` or `weights`|^`(sparsity|weights)` "):
            budget(100, sparsity, count)
    for text in ("a:b", "1e-2:1e-5", "0:1", "1:2:3", "x"):
        with pytest.raises(OptionError, match=r"^`sweep` "):
            parse_sweep(text)
    assert np.allclose(parse_sweep("1e-5:1e-2"), 10.0 ** np.arange(-5, -1.9, 0.5)) and parse_sweep("0.1,0.2") == [
        0.1,
        0.2,
    ]


def test_pairs_that_make_no_sense_are_refused(pair, tiny, tmp_path):
    base, tuned = pair
    with pytest.raises(CheckpointError, match="there is no skill to find"):
        graft(base, base, task(), device="cpu")
    with pytest.raises(CheckpointError, match="both must be one architecture"):
        graft(base, Checkpoint(tiny("gpt2")), task(), device="cpu")
    name = block_names(base.folder)[3]
    spoiled = change(
        tuned.folder,
        tmp_path / "nan",
        lambda n, t: t.index_fill(0, torch.tensor([0]), float("nan")) if n == name else None,
    )
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN"):
        graft(base, Checkpoint(spoiled), task(), device="cpu")
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN"):
        score(spoiled, task(), device="cpu")
    with pytest.raises(TaskError, match="has no test examples"):
        graft(base, tuned, task(test=()), device="cpu")
    with pytest.raises(OptionError, match=r"^`method` magic"):
        graft(base, tuned, task(), method="magic", device="cpu")


def test_include_and_exclude_bound_everything(pair):
    base, tuned = pair
    patterns = {"include": ["*mlp*", "*input_layernorm*"], "exclude": ["*.1.*"]}
    skill = graft(base, tuned, task(), weights=20, baselines=True, device="cpu", **patterns)
    assert all(".layers.0." in name and ("mlp" in name or "input_layernorm" in name) for name in skill.delta.tensors)
    assert skill.report["movable"] == 3 * 16 * 32 + 16
    # Every differing block tensor that may not move here is named.
    before, after = weights(base.folder), weights(tuned.folder)
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    assert skill.report["left_out"] == sorted(differ - set(base.block_weights(**patterns))) != []


def test_tied_tensors_count_once(copied):
    folder = copied("llama-tied")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, metadata={"format": "pt"}
    )
    names = Checkpoint(folder).block_weights(include=["*"])
    assert len({"lm_head.weight", "model.embed_tokens.weight"} & set(names)) == 1


def test_no_gain_is_reported_when_tuning_gained_nothing(pair):
    base, tuned = pair
    assert graft(tuned, base, task(), weights=5, device="cpu").report["graft"]["gain_recovered"] is None


class Linear(GraftedModel):
    """Six weights of a logistic model in place of a model: those that moved a little further say nothing, the others all."""

    def __init__(self, seed=0):
        random = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (60,), generator=random)
        signs = 2.0 * self.labels - 1
        noise = torch.randn(60, 3, generator=random)
        self.inputs = torch.cat((noise, signs[:, None] + 0.3 * torch.randn(60, 3, generator=random)), 1)
        self.delta = torch.tensor([1.1, 1.05, 1.02, 1.0, 0.95, 0.9])
        self.weight = torch.zeros(6)
        self.rows = [Encoded([i], [0], 0) for i in range(60)]

    def set_mask(self, weight):
        self.weight = weight * self.delta

    def set_chosen(self, chosen):
        self.weight = torch.zeros(6)
        self.weight[chosen] = self.delta[chosen]

    def scores(self, rows):
        scores = self.inputs[[row.ids[0] for row in rows]] @ self.weight
        return torch.stack((-scores, scores), 1) / 2

    def mask_gradient(self, rows, targets):
        inputs = self.inputs[[row.ids[0] for row in rows]]
        leaf = (self.weight / self.delta).requires_grad_()
        scores = inputs @ (leaf * self.delta)
        F.cross_entropy(torch.stack((-scores, scores), 1) / 2, targets).backward()
        return leaf.grad


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", [dual_averaging, sigmoid])
def test_weights_that_moved_less_and_say_all_are_found(method, seed):
    model = Linear(seed)
    evidence = Evidence(model.rows, model.labels, F.one_hot(model.labels, 2).float())
    assert sorted(movement(model, 3).tolist()) == [0, 1, 2]
    assert sorted(method(model, evidence, 3, seed=seed).tolist()) == [3, 4, 5]


def test_the_gates_rate_and_epochs_are_chosen_on_examples_that_are_held_out(monkeypatch):
    """The rate that only shuffles noise is tried and left; the examples that choose aren't learnt from meanwhile."""
    model = Linear()
    evidence = Evidence(model.rows, model.labels, F.one_hot(model.labels, 2).float())
    train, held = evidence.split(3)
    assert sorted(row.ids[0] for part in (train, held) for row in part.rows) == list(range(60))
    assert len(held.rows) == 12 and torch.equal(held.labels, model.labels[[row.ids[0] for row in held.rows]])
    monkeypatch.setattr("surgery.grafting.methods._RATES", (1e-9, 1e7))
    assert sorted(sigmoid(model, evidence, 3, seed=3).tolist()) == [3, 4, 5]
    monkeypatch.setattr("surgery.grafting.methods._RATES", (1e-9,))
    assert sorted(sigmoid(model, evidence, 3, seed=3).tolist()) == [0, 1, 2]
    seen = []
    slope = Linear.mask_gradient
    monkeypatch.setattr(
        Linear, "mask_gradient", lambda self, rows, t: seen.append({r.ids[0] for r in rows}) or slope(self, rows, t)
    )
    sigmoid(model, evidence, 3, epochs=2, seed=3)
    numbers = {row.ids[0] for row in held.rows}
    assert all(not numbers & rows for rows in seen[:4]) and set.union(*seen[4:]) == set(range(60))


def test_epochs_belong_to_the_published_method(pair):
    base, tuned = pair
    for options in ({"epochs": 3}, {"method": "sigmoid", "epochs": 0}):
        with pytest.raises(OptionError, match="goes with `method` sigmoid"):
            graft(base, tuned, task(), weights=5, device="cpu", **options)
    report = graft(base, tuned, task(), weights=5, method="sigmoid", epochs=1, device="cpu").report
    assert report["call"]["graft"]["epochs"] == 1


def test_the_gains_interval_is_a_paired_bootstraps():
    random = np.random.default_rng(1)
    targets = random.integers(2, size=80)

    def scored(share, metric):
        wrong = random.random(80) > share
        return Score(("a", "b"), metric, np.eye(2)[np.where(wrong, 1 - targets, targets)], targets)

    for metric in ("accuracy", "f1"):
        base, tuned, other = scored(0.5, metric), scored(0.95, metric), scored(0.9, metric)
        draws = np.random.default_rng(7)
        plain = []
        for _ in range(2000):
            rows = draws.integers(80, size=80)
            low, middle, high = (
                Score(s.labels, metric, s.logits[rows], targets[rows]).value for s in (base, other, tuned)
            )
            plain.append((middle - low) / (high - low))
        assert gain_interval(base, tuned, other) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.05)
    assert gain_interval(base, base, other) is None
    assert gain_interval(tuned, base, other) is None
