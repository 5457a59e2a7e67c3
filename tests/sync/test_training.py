"""Tuning and pretraining by several workers: data parallel as one process, the rounds of a plan, and resuming mid-round."""

import os
import signal

import pytest
import torch

from pcfg import Grammar
from pcfg.learning.pretraining import pretrain
from pcfg.learning.pretraining_recipe import PretrainRecipe
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.region import Region
from surgery.errors import OptionError
from surgery.sync import together
from surgery.sync.together import SyncRecipe, Together
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


def tuned(rank, folder, sync, state=None, stops=(), recipe=None, **more):
    """The tensors, the report and the first step made; killed after the steps of `stops` (rank, step)."""
    steps = []

    def progress(done, total, line):
        steps.append(done)
        if (rank, done) in stops:
            os.kill(os.getpid(), signal.SIGKILL)

    task = Task.load("sst2", train=ROWS, dev=ROWS[:4])
    recipe = recipe or Recipe(rate=0.05, l1=0.02, steps=12, batch_size=4, patience=99)
    given = {"device": "cpu", "resume": state, "sync": sync, "progress": progress, **more}
    found = tune(folder, task, recipe, workers=None if rank is None else Workers.launched(timeout=20.0), **given)
    return found.tensors, {**found.report, "seconds": 0}, steps[0]


def pretrained(rank, sync, state=None, stop=None, sentences=640, keep=0):
    """The weights, the report and the weights on the way."""

    def progress(done, total, line):
        if stop and (rank, done) == stop and line.startswith("pretraining"):
            os.kill(os.getpid(), signal.SIGKILL)

    sizes = {"layers": 1, "heads": 2, "width": 16, "max_length": 6, "batch_size": 16, "evaluation": 10}
    workers = None if rank is None else Workers.launched(timeout=20.0)
    given = {"device": "cpu", "resume": state, "workers": workers, "sync": sync, "progress": progress, "keep": keep}
    found = pretrain(Grammar.from_text(RULES), PretrainRecipe(sentences=sentences, **sizes), **given)
    return {name: tensor.clone() for name, tensor in found.module.state_dict().items()}, found.report, found.kept


def killed(folder, count, work, *given):
    """Run workers until all are killed."""
    folder.mkdir()
    with fleet(folder, count) as made:
        for rank in range(count):
            made.start(rank, work, *given)
        for process in made.processes.values():
            process.join()


def equal(one, other, atol=0.0):
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], rtol=0, atol=atol) for k in one)


def test_tuning_data_parallel_is_tuning_by_one(tiny, tmp_path):
    found = run_all(tmp_path, 2, tuned, tiny("bert"), None)
    alone, report, _ = tuned(None, tiny("bert"), None)
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
    found = run_all(tmp_path, 2, tuned, tiny("bert"), SyncRecipe("constant", h_base=1), None, (), plain)
    alone, report, _ = tuned(None, tiny("bert"), None, recipe=plain)
    assert equal(found[0][0], alone, atol=1e-6)
    assert losses(found) == pytest.approx(report["losses"], abs=2e-5)


def test_few_weights_are_averaged_into_the_model(tiny, tmp_path):
    """Each step begins where the others' steps came to."""
    base = Checkpoint(tiny("bert"))
    few = Region({name: torch.arange(0, base.entries[name].size, 3) for name in base.block_weights()[:6]})
    plain = Recipe(optimizer="sgd", rate=100.0, steps=4, batch_size=4, clip=1e6, momentum=0.0)
    found = run_all(tmp_path, 2, only_few, tiny("bert"), plain, few)
    alone, report, _ = only_few(None, tiny("bert"), plain, few)
    assert equal(found[0][0], alone, atol=1e-3)
    assert losses(found) == pytest.approx(report["losses"], abs=1e-4)


def losses(found):
    """Of each round's last step, the mean over workers."""
    return [loss for _, _, loss, _ in found[0][1]["sync"]["rounds"]]


def only_few(rank, folder, recipe, region):
    return tuned(rank, folder, None if rank is None else SyncRecipe("constant", h_base=1), recipe=recipe, only=region)


def gradients(rank):
    weights = [torch.nn.Parameter(torch.ones(size)) for size in (2, 3)]
    joined = Together(Workers.launched(), SyncRecipe(), torch.optim.SGD(weights), [0.1, 0.1], warmup=0)
    weights[0].grad = torch.full((2,), 1.0 + rank)
    if rank:
        weights[1].grad = torch.full((3,), 5.0)
    return joined.add_gradients(2.0), [weight.grad.tolist() for weight in weights]


def test_a_weight_that_a_part_of_a_batch_does_not_reach(tmp_path):
    assert run_all(tmp_path, 2, gradients) == dict.fromkeys(range(2), (4.0, [[3.0] * 2, [5.0] * 3]))


@pytest.mark.parametrize("sync", [None, QSR_OF_TWO])
def test_tuning_goes_on_in_the_middle_of_a_round(tiny, tmp_path, sync):
    for name in "ac":
        (tmp_path / name).mkdir()
    whole = run_all(tmp_path / "a", 2, tuned, tiny("bert"), sync)
    killed(tmp_path / "b", 2, tuned, tiny("bert"), sync, tmp_path / "state", [(0, 9), (1, 9)])
    assert len(list((tmp_path / "state").glob("worker-*.safetensors"))) == 4
    again = run_all(tmp_path / "c", 2, tuned, tiny("bert"), sync, tmp_path / "state")
    assert equal(whole[0][0], again[0][0])
    assert whole[0][1]["losses"] == again[0][1]["losses"]
    assert whole[0][1]["sync"]["rounds"] == again[0][1]["sync"]["rounds"]
    assert again[0][2] > 7


def test_a_worker_that_died_goes_on_from_the_others_state(tiny, tmp_path):
    (tmp_path / "c").mkdir()
    killed(tmp_path / "b", 3, tuned, tiny("bert"), None, tmp_path / "state", [(0, 9), (1, 9), (2, 3)])
    left = {path.name for path in (tmp_path / "state").glob("worker-*")}
    assert max(steps_of(left, 2)) < 4 < max(steps_of(left, 0))
    again = run_all(tmp_path / "c", 3, tuned, tiny("bert"), None, tmp_path / "state")
    assert {rank: each[2] for rank, each in again.items()} == dict.fromkeys(range(3), max(steps_of(left, 0)) + 1)
    assert len(again[2][1]["losses"]) == 12
    assert equal(again[0][0], again[2][0])


def steps_of(names, worker):
    return [int(name.split(".")[1]) for name in names if name.startswith(f"worker-{worker}.")]


@pytest.mark.parametrize(
    ("states", "step"),
    [
        ({}, 0),
        ({0: [6, 7], 1: [6, 7]}, 7),
        ({0: [6, 7], 1: [5, 6]}, 6),
        ({0: [6, 7], 1: [2, 3]}, 7),  # it was dead by then
        ({0: [6, 7], 1: [5, 6], 2: [2, 3]}, 6),
        ({0: [1], 1: [1, 2]}, 1),
        ({0: [1]}, 1),
        ({0: [1], 1: []}, 0),  # killed as it saved for the first time
        ({0: [1, 2], 1: []}, 2),
    ],
)
def test_the_step_that_all_who_were_there_have(states, step):
    assert together._step_of_all(states) == step


def test_states_of_later_steps_are_gone_before_a_step_is_made(tiny, tmp_path):
    """Else they could be taken, after a second kill, for those of the run under way."""
    state = tmp_path / "state"
    killed(tmp_path / "a", 2, tuned, tiny("bert"), None, state, [(0, 9), (1, 9)])
    last = max(steps_of([path.name for path in state.iterdir()], 0))
    (state / f"worker-1.{last}.safetensors").unlink()
    killed(tmp_path / "b", 2, tuned, tiny("bert"), None, state, [(0, last), (1, last)])  # before that is saved
    assert not (state / f"worker-0.{last}.safetensors").exists()
    assert (state / f"worker-0.{last - 1}.safetensors").exists()


def test_pretraining_data_parallel_is_pretraining_by_one(tmp_path):
    alone, *_ = pretrained(None, None)  # first: what is compiled here is there in the others
    found = run_all(tmp_path, 2, pretrained, None)
    assert equal(found[0][0], found[1][0])
    assert equal(found[0][0], alone, atol=2e-5)


def test_pretraining_goes_on_in_the_middle_of_a_round(tmp_path):
    sync = SyncRecipe("qsr", budget=0.3)
    for name in "ac":
        (tmp_path / name).mkdir()
    whole = run_all(tmp_path / "a", 2, pretrained, sync, None, None, 640, 4)
    assert equal(whole[0][0], whole[1][0])
    assert len(whole[0][1]["sync"]["rounds"]) <= 0.3 * 40
    with fleet(tmp_path / "b", 2) as made:
        for rank in range(2):
            made.start(rank, pretrained, sync, tmp_path / "state", (rank, 27), 640, 4)
        for process in made.processes.values():
            process.join()
    again = run_all(tmp_path / "c", 2, pretrained, sync, tmp_path / "state", None, 640, 4)
    assert equal(whole[0][0], again[0][0])
    ends = [step for step, *_ in whole[0][1]["sync"]["rounds"]]
    kept = whole[0][2]
    assert kept
    assert set(kept) | {entry["step"] for entry in whole[0][1]["history"]} <= set(ends)
    for step in kept:  # the weights of all, not each worker's own
        assert equal(kept[step], whole[1][2][step])
        assert equal(kept[step], again[0][2][step])


def test_a_last_batch_that_is_too_small_is_refused_before_the_first_step(tmp_path):
    for error in run_all(tmp_path, 2, pretrained, None, None, None, 641).values():
        assert isinstance(error, OptionError)
        assert "the last batch of 1 has nothing for some of 2 workers: make `sentences` a multiple" in str(error)


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
        ({"h_base": 8}, "go with `sync`"),
        ({"kind": "constant", "alpha": 1.0}, "`alpha` goes with qsr and cubic"),
    ],
)
def test_recipes_that_say_nothing(given, said):
    with pytest.raises(OptionError, match=said):
        SyncRecipe(**given)
