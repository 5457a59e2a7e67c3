"""Tuning on several tasks: turns, readouts, interruption, and what the folder holds."""

import json

import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import TaskError
from surgery.tasks.examples import Example
from surgery.tasks.scoring import score
from surgery.tasks.task import Task
from surgery.tuning.finetuning import Tuned, tune
from surgery.tuning.memory_need import tune_need
from surgery.tuning.recipe import Recipe
from surgery.tuning.training import batches, turns
from surgery.tuning.training_sets import LabelledSet
from tests.tuning.test_tuning import ROWS, task

TOPICS = [
    Example(f"{noun} {verb}", "", label)
    for label, nouns in (("Sports", ("film", "scene")), ("World", ("food", "place")))
    for noun in nouns
    for verb in ("was good", "is bad", "has music", "had acting")
]


def topics(**changes):
    words = {"Sports": "sports", "World": "world"}
    return Task.load("topics", train=TOPICS, test=TOPICS, words=words, **changes)


def test_tasks_take_turns_and_each_goes_through_its_own_passes():
    sets = [LabelledSet(task(), None, range(count), None) for count in (8, 5, 6)]
    whole = list(turns(sets, 4, 7, 0, 11))
    assert [sets.index(each) for each, _ in whole] == [0, 1, 2] * 3 + [0, 1]
    for number, count in enumerate((8, 5, 6)):
        own = [numbers for each, numbers in whole if each is sets[number]]
        assert own == list(batches(count, 4, 7, 0, len(own)))
    for first in range(11):
        assert list(turns(sets, 4, 7, first, 11)) == whole[first:]


def test_one_model_learns_both_tasks(tiny):
    losses = tune(tiny("llama"), [task(), topics()], Recipe("sgd", rate=0.3, steps=200), device="cpu").report["losses"]
    assert all(sum(own[-10:]) < 0.8 * sum(own[:10]) for own in (losses[0::2], losses[1::2]))


def test_a_sentence_encoder_carries_both_readouts(tiny, tmp_path):
    recipe = Recipe("sgd", rate=0.2, steps=6, batch_size=8)
    tuned = tune(tiny("bert-encoder"), [task(), topics()], recipe, device="cpu")
    folder = tuned.save(tmp_path / "multi")
    assert {file.name for file in folder.glob("readout-*")} == {
        "readout-sst2.safetensors",
        "readout-topics.safetensors",
    }
    for each in (task(), topics()):
        # The embeddings are the base's, not those that the tuned model would give.
        scores = [score(folder, each, base=base, device="cpu").logits for base in (None, tiny("bert-encoder"))]
        assert (scores[0] == scores[1]).all()
    loaded = Tuned.load(folder)
    assert loaded.tasks == tuple(Task.from_spec(each.spec()) for each in (task(), topics()))
    for (_, readout), (_, again) in zip(tuned.further, loaded.further, strict=True):
        assert torch.equal(readout.anchors, again.anchors)
    report = json.loads((folder / "report.json").read_text())
    assert report["examples"]["train"] == len(ROWS) + len(TOPICS)


def test_one_task_in_a_list_is_one_task(tiny):
    recipe = Recipe(rate=0.05, steps=4)
    one, same = (tune(tiny("llama"), each, recipe, device="cpu") for each in (task(), [task()]))
    assert all(torch.equal(same.tensors[name], tensor) for name, tensor in one.tensors.items())
    steps = tune_need(tiny("llama"), [task(), topics()], recipe, device="cpu")
    assert steps.total == max(tune_need(tiny("llama"), each, recipe, device="cpu").total for each in (task(), topics()))


def test_an_interrupted_run_goes_on_to_the_same_bits(tiny, tmp_path):
    recipe, tasks = Recipe(rate=0.05, l1=0.001, steps=11, patience=20), [task(dev=ROWS[:6]), topics(dev=TOPICS[:6])]

    def interrupt(done, total, line):
        if done == 6:
            raise KeyboardInterrupt

    whole = tune(tiny("bert"), tasks, recipe, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        tune(tiny("bert"), tasks, recipe, device="cpu", resume=tmp_path / "state", progress=interrupt)
    again = tune(tiny("bert"), tasks, recipe, device="cpu", resume=tmp_path / "state")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert again.report["dev"] == whole.report["dev"] and again.report["losses"] == whole.report["losses"]


@pytest.mark.parametrize("tasks", [[], "twice"], ids=["none", "twice"])
def test_no_task_or_one_twice_is_refused(tiny, tasks):
    with pytest.raises(TaskError, match="each once"):
        tune(Checkpoint(tiny("bert")), [task(), task()] if tasks else [], device="cpu")
