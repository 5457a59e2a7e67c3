"""Tuning within a region and outside of one: what may not move keeps its bits, and what moves does as in a plain loop."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.region import Region
from surgery.errors import OptionError, SkillError
from surgery.grafting.skill import Skill
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe
from surgery.tuning.training import batches
from tests.support.tiny import block_names, build, change, perturb, raw, weights
from tests.tuning.test_tuning import ROWS, task

RECIPE = Recipe("sgd", rate=0.3, steps=6, batch_size=4, clip=0.5)


def skill(base, folder, count=40, seed=0):
    """A skill of so many weights in a folder, and their places."""
    places = perturb(base, folder / f"moved-{seed}", count, seed)
    delta = SparseDelta.between(Checkpoint(base), Checkpoint(folder / f"moved-{seed}"))
    delta = replace(delta, metadata={"task": json.dumps(task().spec())})
    return Skill(delta, task(), {}).save(folder / f"skill-{seed}", figures=False), places


def changed(before, after):
    """Places of the flattened tensors whose bits differ, by tensor."""
    found = {name: (raw(before[name]) != raw(after[name])).nonzero()[0].tolist() for name in before}
    return {name: places for name, places in found.items() if places}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_skills_weights_move(tmp_path, dtype):
    base = build("llama", tmp_path / "base", dtype=dtype)
    folder, places = skill(base, tmp_path)
    tuned = tune(base, task(), RECIPE, only=folder, device="cpu")
    moved = changed(weights(base), weights(tuned.save(tmp_path / "tuned")))
    assert moved and all(set(found) <= set(places[name]) for name, found in moved.items())
    assert tuned.report["moved"] == sum(map(len, moved.values())) <= 40 == tuned.report["movable"]
    loaded = tune(base, task(), RECIPE, only=[Skill.load(folder)], device="cpu")
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tuned.tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_but_the_skills_weights_move(tmp_path, dtype):
    base = build("llama", tmp_path / "base", dtype=dtype)
    # Minus zero: adding nothing to it would change its bit.
    base = change(base, tmp_path / "zeros", lambda name, tensor: tensor.index_fill(0, torch.tensor([0]), -0.0))
    (one, at), (two, more) = skill(base, tmp_path, 300), skill(base, tmp_path, 300, 1)
    tuned = tune(base, task(), RECIPE, outside=[one, Skill.load(two)], device="cpu")
    before, after = weights(base), weights(tuned.save(tmp_path / "tuned"))
    moved, kept = changed(before, after), {name: {*at.get(name, ()), *more.get(name, ())} for name in before}
    assert not any(kept[name] & set(found) for name, found in moved.items())
    assert tuned.report["movable"] == sum(before[n].numel() - len(kept[n]) for n in block_names(base))
    assert tuned.report["moved"] == sum(map(len, moved.values())) > 300


def test_a_region_is_trained_as_by_a_plain_loop(tiny, tmp_path):
    folder, places = skill(tiny("gpt2"), tmp_path)
    tuned = tune(tiny("gpt2"), task(), RECIPE, only=folder, seed=3, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("gpt2"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("gpt2")).eval()
    named = {name: parameter for name, parameter in model.named_parameters() if name in places}
    masks = {name: torch.zeros(p.numel()).index_fill(0, torch.tensor(places[name]), 1) for name, p in named.items()}
    speed = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("terrible", "great")]
    for step, numbers in enumerate(batches(len(ROWS), 4, 3, 0, 6)):
        model.zero_grad()
        loss = 0.0
        for number in numbers:
            scores = model(**tokenizer(f"{ROWS[number].text} It was", return_tensors="pt")).logits[0, -1, words]
            loss += (
                F.cross_entropy(scores[None], torch.tensor([["negative", "positive"].index(ROWS[number].label)])) / 4
            )
        loss.backward()
        gradients = {name: parameter.grad * masks[name].view_as(parameter) for name, parameter in named.items()}
        norm = float(torch.sqrt(sum((gradient**2).sum() for gradient in gradients.values())))
        for name, parameter in named.items():
            speed[name] = 0.9 * speed[name] + gradients[name] * min(1.0, 0.5 / norm)
            parameter.data -= 0.3 * min(1.0, (6 - step) / 5) * speed[name]
    for name, parameter in named.items():
        assert torch.allclose(tuned.tensors[name], parameter, atol=1e-5), name


@pytest.mark.parametrize("which", ["only", "outside"])
@pytest.mark.parametrize("optimizer", ["sgd-l1", "adamw"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tiny, tmp_path, which, optimizer):
    folder, _ = skill(tiny("bert"), tmp_path)
    recipe = Recipe(optimizer, rate=0.01, l1=0.001, steps=12, patience=20)
    options = {which: folder, "device": "cpu"}

    def interrupt(done, total, line):
        if done == 7:
            raise KeyboardInterrupt

    whole = tune(tiny("bert"), task(dev=ROWS[:6]), recipe, **options)
    with pytest.raises(KeyboardInterrupt):
        tune(tiny("bert"), task(dev=ROWS[:6]), recipe, **options, resume=tmp_path / "state", progress=interrupt)
    steps = []
    again = tune(
        tiny("bert"),
        task(dev=ROWS[:6]),
        recipe,
        **options,
        resume=tmp_path / "state",
        progress=lambda done, *_: steps.append(done),
    )
    assert steps[0] == 8
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())
    with pytest.raises(OptionError, match="state of another run"):
        tune(tiny("bert"), task(dev=ROWS[:6]), recipe, device="cpu", resume=tmp_path / "state")


def test_skills_of_other_bases_are_refused(tiny, tmp_path):
    folder, _ = skill(tiny("bert"), tmp_path)
    other = build("bert", tmp_path / "other", seed=1)
    for source, message in (("gpt2", "has no such tensor"), ("roberta", "has no such tensor")):
        with pytest.raises(SkillError, match=message):
            tune(tiny(source), task(), RECIPE, only=folder, device="cpu")
    with pytest.raises(SkillError, match="take a skill of this base"):
        tune(other, task(), RECIPE, only=folder, device="cpu")
    # A checkpoint that holds the skill is one of its base's.
    held = Skill.load(folder).apply(tiny("bert"), tmp_path / "held")
    assert tune(held, task(), RECIPE, only=folder, device="cpu").report["movable"] == 40


def test_a_skills_places_in_a_checkpoint_that_moved_elsewhere(tiny, tmp_path):
    """Each holds its base value or its tuned one: both are the skill's."""
    base = tiny("bert")
    folder, places = skill(base, tmp_path)
    inside = next(iter(places))
    elsewhere = next(name for name in Checkpoint(base).block_weights() if name not in places)

    def moved(at, by):
        return lambda name, tensor: tensor + by if name == at else tensor

    for held in (base, tmp_path / "moved-0"):  # all base values, all tuned ones
        other = change(held, tmp_path / f"{held.name}-other", moved(elsewhere, 1.0))
        Region.of(folder).check_fits(Checkpoint(other))
        spoilt = change(held, tmp_path / f"{held.name}-spoilt", moved(inside, 1.0))
        with pytest.raises(SkillError, match=f"other values than its base or tuned ones in tensor {inside}"):
            Region.of(folder).check_fits(Checkpoint(spoilt))


def test_limits_that_leave_nothing_or_say_two_things_are_refused(tiny, tmp_path):
    folder, _ = skill(tiny("bert"), tmp_path)
    whole = Region({n: torch.arange(weights(tiny("bert"))[n].numel()) for n in block_names(tiny("bert"))})
    for options, message in (
        ({"outside": whole}, "nothing is left"),
        ({"only": folder, "outside": folder}, "`only` or `outside`"),
        ({"only": folder, "include": ["*"]}, "`only` or `include`"),
        ({"only": []}, "empty list"),
    ):
        with pytest.raises(OptionError, match=message):
            tune(tiny("bert"), task(), RECIPE, device="cpu", **options)
    with pytest.raises(SkillError, match="is missing"):
        tune(tiny("bert"), task(), RECIPE, only=tmp_path / "nowhere", device="cpu")


def test_places_end_to_end_are_places_by_tensor(tiny):
    checkpoint = Checkpoint(tiny("bert"))
    names = checkpoint.block_weights()
    flat = torch.cat([checkpoint.tensor(name).reshape(-1) for name in names])
    places = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:50]
    region = Region.of_places(checkpoint, names, places)
    values = region.gather(dict(checkpoint))
    assert torch.equal(torch.cat([values[n] for n in names if n in values]), flat[places.sort().values])
    assert region.weights == 50 and Region.union([region, region]).digest == region.digest
    with pytest.raises(SkillError, match="ascend"):
        Region({names[0]: torch.tensor([1, 1])})


def test_whole_tensors_as_regions_are_tensors_by_name(tiny):
    recipe = Recipe("sgd", rate=0.3, steps=4, batch_size=6, accumulate=2, clip=0.2)
    names, held = block_names(tiny("bert")), weights(tiny("bert"))
    some = Region({name: torch.arange(held[name].numel()) for name in names[::2]})
    by_name = tune(tiny("bert"), task(), recipe, exclude=names[::2], device="cpu")
    outside = tune(tiny("bert"), task(), recipe, outside=some, device="cpu")
    rest = Region({name: torch.arange(held[name].numel()) for name in names[1::2]})
    only = tune(tiny("bert"), task(), recipe, only=rest, device="cpu")
    for name, tensor in by_name.tensors.items():
        assert torch.allclose(outside.tensors[name], tensor, atol=1e-6) and not torch.equal(tensor, held[name])
        assert torch.allclose(only.tensors[name], tensor, atol=1e-6)
