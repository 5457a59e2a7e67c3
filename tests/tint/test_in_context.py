"""run_task: prompts, demonstrations and answers against the model asked one prompt at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.errors import OptionError, TaskError, TintError
from surgery.tasks.readout import WordReadout
from surgery.tasks.task import Task
from surgery.tint import TinT, run_task, run_text
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.evaluation.in_context import Prompting, _Examples, _wilson, draw_demonstrations
from tests.support.tint import ROWS


def one_by_one(plain, prompts, words):
    found = []
    for prompt in prompts:
        with torch.no_grad():
            found.append(plain(torch.tensor([prompt])).logits[0, -1, words])
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_a_task_packed_in_rows_is_the_model_asked_one_by_one(tiny, kind):
    task = Task.load("sst2", train=ROWS[::2], test=ROWS[1::2])
    plain = AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny(kind))
    words = [tokenizer.convert_tokens_to_ids(word) for word in task.words.values()]

    def prompt(example):
        ids = tokenizer(f"{example.text} It was")["input_ids"]
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids

    found = run_task(tiny(kind), task, shots=4, lr=0.02, modes=("exact",), seed=3)
    assert [point["method"] for point in found.points] == [
        "zero-shot", "zero-shot, TinT exact", "few-shot", "few-shot, TinT exact",
    ]  # fmt: skip
    targets = torch.tensor(task.targets(task.test))
    zero = one_by_one(plain, [prompt(example) for example in task.test], words)
    assert found.value("zero-shot") == pytest.approx(float((zero.argmax(1) == targets).float().mean()))
    assert found.content["shots"] == 4 and found.content["tests"] == 12

    loaded = load_model(Checkpoint(tiny(kind)))
    demonstrations, spare = draw_demonstrations(task, 4, 3)
    assert sorted(e.label for e in demonstrations) == ["negative"] * 2 + ["positive"] * 2
    assert not set(demonstrations) & set(spare)
    place = Prompting(Auxiliary.of(loaded), WordReadout.of(loaded, task), task, demonstrations, "label")
    logits = torch.from_numpy(place.logits(place.auxiliary.blocks, task.test, False))
    assert torch.allclose(logits, zero, atol=1e-5)
    # Few-shot: all demonstrations with their label words, then the prompt.
    start = tokenizer.bos_token_id
    context = []
    for example in demonstrations:
        ids = prompt(example)
        context += ids[1:] if context and ids[0] == start else ids
        context += [words[task.labels.index(example.label)], *tokenizer("\n", add_special_tokens=False)["input_ids"]]
    asked = [context + (ids[1:] if ids[0] == start else ids) for ids in map(prompt, task.test)]
    logits = torch.from_numpy(place.logits(place.auxiliary.blocks, task.test, True))
    assert torch.allclose(logits, one_by_one(plain, asked, words), atol=1e-5)
    # Learning from each alone: plain gradient descent on the sum of their labels' losses.
    blocks = place.update(TinT.build(place.auxiliary, mode="exact"), 0.02, False)
    moved = [p for name, p in plain.named_parameters() if ".h." in name or ".layers." in name]
    descent = torch.optim.SGD(moved, lr=0.02)
    for example in demonstrations:
        logits = plain(torch.tensor([prompt(example)])).logits[:, -1]
        F.cross_entropy(logits, torch.tensor([words[task.labels.index(example.label)]])).backward()
    descent.step()
    ours = torch.from_numpy(place.logits(blocks, task.test, False))
    after = one_by_one(plain, [prompt(example) for example in task.test], words)
    assert float((after - zero).abs().max()) > 1e-3
    assert torch.allclose(ours, after, atol=1e-4)


def test_the_rate_of_a_task_is_chosen_without_its_test_examples(tiny):
    task = Task.load("sst2", train=ROWS, test=ROWS[:3])
    other = Task.load("sst2", train=ROWS, test=ROWS[-3:])
    rates = (1e-3, 1e-1)
    first, second = (run_task(tiny("gpt2"), t, shots=4, lr=rates, modes=("exact",)) for t in (task, other))
    assert [point["lr"] for point in first.points] == [point["lr"] for point in second.points]
    assert first.content["dev_examples"] == 20
    alone = run_task(tiny("gpt2"), Task.load("sst2", train=ROWS), shots=4, lr=rates, modes=("exact",), dev_examples=8)
    assert alone.content["tests"] == 12 and alone.content["tested_on"] == "training examples left over"


def test_bad_tasks_are_refused(tiny, model, text):
    task = Task.load("sst2", train=ROWS, test=ROWS)
    with pytest.raises(OptionError, match="give one of each"):
        run_task(tiny("gpt2"), task, shots=1)
    with pytest.raises(OptionError, match="isn't one of label, all"):
        run_task(tiny("gpt2"), task, loss="words")
    with pytest.raises(TaskError, match="no test examples"):
        run_task(tiny("gpt2"), Task.load("sst2", train=ROWS))
    with pytest.raises(TintError, match="longer than the model's 64 positions"):
        run_task(tiny("gpt2"), task, shots=24, lr=0.1)
    few = Task.load("sst2", train=[*ROWS[:12], ROWS[-1]], test=ROWS)
    with pytest.raises(TaskError, match="label 'negative' of task sst2 has 1 training examples, fewer than the 4"):
        run_task(tiny("gpt2"), few, shots=8)
    with pytest.raises(OptionError, match="isn't one of exact, paper, published"):
        run_task(tiny("gpt2"), task, modes=("best",), progress=lambda *_: pytest.fail("work was spent"))
    for given in (model("gpt2"), Auxiliary.of(model("gpt2"))):
        with pytest.raises(TintError, match="needs a tokenizer"):
            run_text(given, text)


def test_a_task_whose_descent_becomes_nan_has_no_accuracy(tiny):
    task = Task.load("sst2", train=ROWS, test=ROWS)
    with pytest.raises(TintError, match="logits are NaN or infinite: lower the learning rate"):
        run_task(tiny("gpt2"), task, shots=4, lr=1e30, modes=("exact",))
    found = run_task(tiny("gpt2"), task, shots=4, lr=(1e-3, 1e30), modes=("exact",))  # too high a rate loses the choice
    assert [point["lr"] for point in found.points] == [None, 1e-3, None, 1e-3]


def test_everything_is_learnt_where_the_loss_is_all(tiny):
    """Each demonstration alone: every token of it that follows another."""
    task = Task.load("sst2", train=ROWS, test=ROWS)
    loaded = load_model(Checkpoint(tiny("gpt2")))
    demonstrations, _ = draw_demonstrations(task, 4, 0)
    place = Prompting(Auxiliary.of(loaded), WordReadout.of(loaded, task), task, demonstrations, "all")
    ours = place.update(TinT.build(place.auxiliary, mode="exact"), 0.5, False)
    plain = AutoModelForCausalLM.from_pretrained(tiny("gpt2"), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    for example in demonstrations:
        ids = tokenizer(f"{example.text} It was {task.words[example.label]}", return_tensors="pt")["input_ids"]
        F.cross_entropy(plain(ids).logits[0, :-1], ids[0, 1:], reduction="sum").backward()
    weight = plain.transformer.h[0].attn.c_proj.weight
    moved = ours[0]["o.weight"][0] - place.auxiliary.blocks[0]["o.weight"]
    assert torch.allclose(moved, -0.5 * weight.grad.T, rtol=1e-3, atol=1e-5)


def test_examples_are_drawn_by_seed_and_used_for_one_thing(tiny):
    task = Task.load("sst2", train=ROWS)
    given = Task.load("sst2", train=ROWS[::2], dev=ROWS[1:9:2], test=ROWS[9::2])
    picked = [_Examples.pick(task, 4, 8, 6, seed) for seed in (0, 0, 1)]
    assert picked[0] == picked[1]
    assert set(picked[0].demonstrations) != set(picked[2].demonstrations)
    for demonstrations, dev, test in picked:
        assert (len(demonstrations), len(dev), len(test)) == (4, 8, 6)
        assert len({*demonstrations, *dev, *test}) == 18
    # The test examples alone: their order is the file's, whatever the seed.
    first, other = (_Examples.pick(given, 4, 8, 4, seed).test for seed in (0, 1))
    assert first != other and all(t == [row for row in given.test if row in t] for t in (first, other))
    assert _Examples.pick(given, 4, 3, None, 0)[1:] == (list(given.dev)[:3], list(given.test))
    undeveloped = Task.load("sst2", train=ROWS[::2], test=ROWS[1::2])
    demonstrations, dev, test = _Examples.pick(undeveloped, 4, 5, None, 0)
    assert test == ROWS[1::2] and len(dev) == 5 and set(dev) <= set(ROWS[::2]) - set(demonstrations)
    for seed in (0, 1):
        spec = run_task(tiny("gpt2"), given, shots=4, lr=0.1, modes=("exact",), seed=seed).content
        assert spec["seed"] == seed and spec["shots"] == 4


def test_an_interval_of_accuracy_is_wilsons():
    """Its ends are the shares from which the count seen is 1.96 standard errors away."""
    for right, count in ((0, 5), (7, 12), (190, 200), (9, 9)):
        interval = _wilson(right, count)
        assert interval["value"] == right / count
        for end in (interval["low"], interval["high"]):
            if 0 < end < 1:
                assert (right / count - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / count)


def test_gains_are_against_the_same_prompt(tiny, monkeypatch):
    """Planted answers: right on so many of eight, without and with learning, zero-shot and few-shot."""
    task = Task.load("sst2", train=ROWS, test=[*ROWS[:3], *ROWS[-5:]])
    targets, right = np.array(task.targets(task.test)), iter((3, 5, 7, 4))

    def planted(self, blocks, examples, shown, key=None):
        answers = targets.copy()
        answers[next(right) :] = 1 - answers[-1]
        return np.eye(2, dtype=np.float32)[answers]

    monkeypatch.setattr(Prompting, "logits", planted)
    run = run_task(tiny("gpt2"), task, shots=2, lr=0.1, modes=("exact",))
    assert [point["value"] for point in run.points] == [3 / 8, 5 / 8, 7 / 8, 4 / 8]
    assert [point.get("gain") for point in run.points] == [None, 2 / 8, None, -3 / 8]
    assert run.content["majority"] == 5 / 8
