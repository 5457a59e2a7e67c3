"""Tuning and pretraining by several workers: data parallel as one process, the rounds of a plan, and resuming mid-round."""

import os
import signal

import pytest
import torch

from pcfg import Grammar
from pcfg.learning.pretraining import pretrain
from pcfg.learning.pretraining_recipe import PretrainRecipe
from surgery.errors import OptionError
from surgery.sync.together import SyncRecipe
from surgery.sync.workers import Workers
from surgery.tasks.examples import Example
from surgery.tasks.task import Task
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe
from tests.support.fleet import fleet, run_all

ROWS = [
    Example(f"the {noun} was {word}", "", label)
    for noun in ("film", "food", "book")
    for words, label in ((("great", "fun"), "positive"), (("awful", "bad"), "negative"))
    for word in words
]
QSR_OF_TWO = SyncRecipe("qsr", alpha=0.06, h_base=2)
RULES = "S -> A B [0.6] | B A [0.4]\nA -> 'a' [0.5] | 'b' [0.3] | 'c' [0.2]\nB -> 'd' [0.7] | A A [0.3]"


def tuned(rank, folder, sync, state=None, stop=None, recipe=None):
    def progress(done, total, line):
        if stop and (rank, done) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    task = Task.load("sst2", train=ROWS, dev=ROWS[:4])
    recipe = recipe or Recipe(rate=0.05, l1=0.02, steps=12, batch_size=4)
    workers = None if rank is None else Workers.launched(timeout=20.0)
    found = tune(folder, task, recipe, device="cpu", resume=state, workers=workers, sync=sync, progress=progress)
    return found.tensors, {**found.report, "seconds": 0}


def pretrained(rank, sync, state=None, stop=None):
    def progress(done, total, line):
        if stop and (rank, done) == stop and line.startswith("pretraining"):
            os.kill(os.getpid(), signal.SIGKILL)

    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=640, max_length=6, batch_size=16, evaluation=10)
    workers = None if rank is None else Workers.launched(timeout=20.0)
    found = pretrain(
        Grammar.from_text(RULES), recipe, device="cpu", resume=state, workers=workers, sync=sync, progress=progress
    )
    return {name: tensor.clone() for name, tensor in found.module.state_dict().items()}, found.report


def equal(one, other, atol=0.0):
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=0, atol=atol) for k in one)


def test_tuning_data_parallel_is_tuning_by_one(tiny, tmp_path):
    found = run_all(tmp_path, 2, tuned, tiny("bert"), None)
    alone, report = tuned(None, tiny("bert"), None)
    assert equal(found[0][0], found[1][0])
    assert equal(found[0][0], alone, atol=1e-6)
    assert found[0][1]["losses"] == pytest.approx(report["losses"], abs=1e-4)
    assert found[0][1]["sync"]["recipe"]["kind"] == "data-parallel"


def test_tuning_by_rounds_gives_all_workers_the_same(tiny, tmp_path):
    found = run_all(tmp_path, 2, tuned, tiny("bert"), QSR_OF_TWO)
    assert equal(found[0][0], found[1][0])
    report = found[0][1]
    ends = [step for step, *_ in report["sync"]["rounds"]]
    assert ends[-1] == report["stopped_at"]
    assert len(ends) < 7
    assert {entry["step"] for entry in report["dev"]} <= set(ends)
    assert 0 < report["moved"] < report["movable"]  # what moved on no worker is the base's


def test_averaging_after_every_step_of_plain_sgd_is_tuning_by_one(tiny, tmp_path):
    """Each worker's step is by the mean over its own part of a batch."""
    plain = Recipe(optimizer="sgd", rate=0.05, steps=4, batch_size=4, clip=1e6, momentum=0.0)
    found = run_all(tmp_path, 2, tuned, tiny("bert"), SyncRecipe("constant", h_base=1), None, None, plain)
    alone, _ = tuned(None, tiny("bert"), None, recipe=plain)
    assert equal(found[0][0], alone, atol=1e-6)


@pytest.mark.parametrize("sync", [None, QSR_OF_TWO])
def test_tuning_goes_on_in_the_middle_of_a_round(tiny, tmp_path, sync):
    for name in "abc":
        (tmp_path / name).mkdir()
    whole = run_all(tmp_path / "a", 2, tuned, tiny("bert"), sync)
    with fleet(tmp_path / "b", 2) as made:
        for rank in range(2):
            made.start(rank, tuned, tiny("bert"), sync, tmp_path / "state", (rank, 9))
        for process in made.processes.values():
            process.join()
    assert len(list((tmp_path / "state").glob("worker-*.safetensors"))) == 4
    again = run_all(tmp_path / "c", 2, tuned, tiny("bert"), sync, tmp_path / "state")
    assert equal(whole[0][0], again[0][0])
    assert whole[0][1]["losses"] == again[0][1]["losses"]
    assert whole[0][1]["sync"]["rounds"] == again[0][1]["sync"]["rounds"]


def test_pretraining_data_parallel_is_pretraining_by_one(tmp_path):
    alone, _ = pretrained(None, None)  # first: what is compiled here is there in the others
    found = run_all(tmp_path, 2, pretrained, None)
    assert equal(found[0][0], found[1][0])
    assert equal(found[0][0], alone, atol=2e-5)


def test_pretraining_goes_on_in_the_middle_of_a_round(tmp_path):
    sync = SyncRecipe("qsr", budget=0.3)
    for name in "abc":
        (tmp_path / name).mkdir()
    whole = run_all(tmp_path / "a", 2, pretrained, sync)
    assert equal(whole[0][0], whole[1][0])
    assert len(whole[0][1]["sync"]["rounds"]) <= 0.3 * 40
    with fleet(tmp_path / "b", 2) as made:
        for rank in range(2):
            made.start(rank, pretrained, sync, tmp_path / "state", (rank, 27))
        for process in made.processes.values():
            process.join()
    again = run_all(tmp_path / "c", 2, pretrained, sync, tmp_path / "state")
    assert equal(whole[0][0], again[0][0])


def test_a_batch_has_something_for_every_worker(tiny, tmp_path):
    recipe = Recipe(rate=0.05, steps=2, batch_size=1)
    for error in run_all(tmp_path, 2, tuned, tiny("bert"), None, None, None, recipe).values():
        assert isinstance(error, OptionError)
        assert "a batch of 1 has nothing for some of 2 workers" in str(error)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "never"}, "`sync` never isn't one of"),
        ({"kind": "qsr"}, "`alpha` is missing"),
        ({"kind": "qsr", "alpha": 0.0}, "`alpha` must be above 0"),
        ({"kind": "qsr", "alpha": 1.0, "budget": 0.1}, "two ways to say one thing"),
        ({"kind": "qsr", "budget": 0.0}, "`budget` 0.0 isn't a share"),
        ({"budget": 0.1}, "go with `sync`"),
    ],
)
def test_recipes_that_say_nothing(given, said):
    with pytest.raises(OptionError, match=said):
        SyncRecipe(**given)
