"""A model whose weights are split over workers is tuned, and grafted, as in one process."""

import shutil

import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint, rewrite
from surgery.checkpoints.region import Region
from surgery.errors import OptionError
from surgery.grafting.localization import graft
from surgery.grafting.task_model import TaskModel
from surgery.sync.errors import WorkerEndedError
from surgery.sync.sharding import Sharded, loaded
from surgery.sync.together import SyncRecipe
from surgery.sync.workers import Workers
from surgery.tasks.examples import Example
from surgery.tasks.readout import pick_readout
from surgery.tasks.task import Task
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe
from tests.support import architectures
from tests.support.fleet import fleet, run_all
from tests.support.tiny import perturb
from tests.sync.test_training import ROWS, equal, killed, tuned

SPLIT = SyncRecipe("sharded")


def recipe(**more):
    return Recipe("sgd", 0.05, steps=6, batch_size=6, patience=99, **more)


def run(folder, count, work, *given):
    folder.mkdir()
    return run_all(folder, count, work, *given)


def tuned_with(rank, folder, sync, more):
    return tuned(rank, folder, sync, **more)


def both(tmp_path, folder, count=2, **more):
    """What tuning gave with the model split, by rank, and the tensors and report of a whole model on each worker."""
    split = run(tmp_path / "split", count, tuned_with, folder, SPLIT, more)
    return split, run(tmp_path / "whole", count, tuned_with, folder, None, more)[0]


def test_tuning_is_data_parallel_tuning(tiny, tmp_path, kind):
    is_data_parallel(tmp_path, tiny(kind), 2)


@pytest.mark.parametrize("kind", ["bert", "llama-tied"])
def test_three_workers_and_pieces_of_a_batch(tiny, tmp_path, kind):
    is_data_parallel(tmp_path, tiny(kind), 3, accumulate=2)


def is_data_parallel(tmp_path, folder, count, **more):
    split, (tensors, report, _) = both(tmp_path, folder, count, recipe=recipe(**more))
    assert equal(split[0][0], tensors, atol=2e-6)
    assert split[0][1]["moved"] > 0.5 * split[0][1]["movable"]
    assert [each[0] for each in list(split.values())[1:]] == [{}] * (count - 1)  # the first alone makes the folder
    assert split[0][1]["losses"] == pytest.approx(report["losses"], abs=2e-5)
    assert split[0][1]["sync"] == {"recipe": {**report["sync"]["recipe"], "kind": "sharded"}, "workers": count}


@pytest.mark.parametrize("more", [{"rate": 0.05, "l1": 0.02}, {}, {"rate": 5.0, "l1": 1e-5, "clip": 1e-3}], ids=str)
def test_the_norm_of_all_workers_gradients(tiny, tmp_path, more):
    """It sets the strength of the pull, where that isn't given, and limits steps."""
    split, (tensors, report, _) = both(
        tmp_path, tiny("bert"), recipe=Recipe(steps=12, batch_size=4, patience=99, **more)
    )
    assert equal(split[0][0], tensors, atol=1e-6)
    assert 0 < split[0][1]["moved"] < report["movable"]
    assert split[0][1]["moved"] == pytest.approx(report["moved"], abs=2)
    paces = [
        {key: value for key, value in each["recipe"].items() if key in ("rate", "l1")} for each in (split[0][1], report)
    ]
    assert paces[0] == pytest.approx(paces[1], rel=1e-5)


def tuned_on_uneven(rank, folder, sync):
    words = ["the film was great", "great", "awful", "the food was bad and the book was bad", "fun", "bad"]
    labels = ["positive", "positive", "negative", "negative", "positive", "negative"]
    task = Task.load("sst2", train=[Example(text, "", label) for text, label in zip(words, labels, strict=True)])
    return tune(folder, task, recipe(), workers=Workers.launched(timeout=20.0), sync=sync, device="cpu").tensors


def test_workers_with_unlike_numbers_of_batches_wait_for_each_other(tmp_path):
    """Padding matters to FNet: rows of one length share a batch, and a worker's part may have one length or three."""
    folder = architectures.build(architectures.classes("masked")["fnet"], tmp_path / "fnet", "masked")
    split = run(tmp_path / "split", 2, tuned_on_uneven, folder, SPLIT)
    assert equal(split[0], run(tmp_path / "whole", 2, tuned_on_uneven, folder, None)[0], atol=2e-6)


@pytest.mark.parametrize("limit", ["only", "outside"])
def test_a_region(tiny, tmp_path, limit):
    base = Checkpoint(tiny("gpt2"))
    names = base.block_weights()
    # Of one tensor the last weights alone, which one worker has.
    few = {name: torch.arange(0, base.entries[name].size, 3) for name in names[:4]}
    few[names[5]] = torch.arange(base.entries[names[5]].size - 3, base.entries[names[5]].size)
    split, (tensors, report, _) = both(tmp_path, tiny("gpt2"), recipe=recipe(), **{limit: Region(few)})
    assert equal(split[0][0], tensors, atol=2e-6)
    assert split[0][1]["moved"] == report["moved"] > 0
    for name, index in few.items():
        same = split[0][0][name].reshape(-1) == base.tensor(name).reshape(-1)
        inside = torch.zeros(len(same), dtype=torch.bool)
        inside[index] = True
        assert bool(same[~inside if limit == "only" else inside].all())


def test_a_region_of_one_worker(tiny, tmp_path):
    """The other has nothing to move."""
    base = Checkpoint(tiny("gpt2"))
    few = Region({base.block_weights()[0]: torch.tensor([0])})
    split, (tensors, _, _) = both(tmp_path, tiny("gpt2"), recipe=recipe(), only=few)
    assert equal(split[0][0], tensors, atol=2e-6)


def test_it_goes_on_after_a_kill(tiny, tmp_path):
    whole = run(tmp_path / "a", 2, tuned, tiny("bert"), SPLIT)
    killed(tmp_path / "b", 2, tuned, tiny("bert"), SPLIT, tmp_path / "state", [(0, 9), (1, 7)])
    assert len(list((tmp_path / "state").glob("worker-*.safetensors"))) == 4
    again = run(tmp_path / "c", 2, tuned, tiny("bert"), SPLIT, tmp_path / "state")
    assert equal(whole[0][0], again[0][0])
    assert whole[0][1]["losses"] == again[0][1]["losses"]
    assert again[0][2] == again[1][2] > 5


def test_the_state_to_go_on_from_is_the_last_that_all_have(tmp_path):
    for name in ("0.3", "0.4", "1.2", "1.3"):
        (tmp_path / f"worker-{name}.safetensors").touch()
    workers = object.__new__(Workers)
    workers.members, workers.me, workers.meet = (0, 1), 0, lambda: None
    assert Sharded(workers, SPLIT, [0.1] * 9).to_go_on_from(tmp_path) == tmp_path / "worker-0.3.safetensors"
    assert sorted(path.name for path in tmp_path.glob("worker-0.*")) == ["worker-0.3.safetensors"]
    (tmp_path / "worker-1.3.safetensors").unlink()
    assert Sharded(workers, SPLIT, [0.1] * 9).to_go_on_from(tmp_path) is None


def test_nobody_goes_on_without_a_worker(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    with fleet(tmp_path / "run", 2) as made:
        for rank in range(2):
            made.start(rank, tuned, tiny("bert"), SPLIT, None, [(1, 4)])
        made.processes[1].join()
        found = made.results(0)[0]
    assert isinstance(found, WorkerEndedError)
    assert str(found) == "a worker ended before its part was done: start all of them again"


def move_everything(folder):
    """Embeddings, head and last norm too, so that it matters when they are read."""
    checkpoint = Checkpoint(folder)
    draw = torch.Generator().manual_seed(1)
    held = {name: checkpoint.tensor(name) for name in checkpoint.entries}
    moved = {name: value + 0.05 * torch.randn(value.shape, generator=draw) for name, value in held.items()}
    folder.with_name("moved").mkdir()
    rewrite(checkpoint, moved, folder.with_name("moved"))
    return folder.with_name("moved")


def grafted(rank, base, tuned_at, more):
    task = Task.load("sst2", train=ROWS, test=ROWS)
    workers = None if rank is None else Workers.launched(timeout=20.0)
    skill = graft(base, tuned_at, task, device="cpu", workers=workers, **more)
    points = [{key: value for key, value in point.items() if key != "seconds"} for point in skill.report["points"]]
    return (skill.factors or skill.delta).to_bytes(), points


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("bert", {"weights": 40, "baselines": True}),
        ("llama", {"weights": 40}),
        ("gpt2", {"weights": 40, "method": "sigmoid", "epochs": 10}),
        ("bert-encoder", {"weights": 40, "values": "rescaled"}),
        ("llama-tied", {"weights": 400, "low_rank": True}),
    ],
    ids=str,
)
def test_a_skill_is_the_same_to_the_byte(tiny, tmp_path, kind, more):
    perturb(tiny(kind), tmp_path / "tuned", count=300)
    count = 4 if kind == "llama" else 2
    split = run(tmp_path / "split", count, grafted, tiny(kind), tmp_path / "tuned", more)
    assert [*split.values()] == count * [grafted(None, tiny(kind), tmp_path / "tuned", more)]


@pytest.mark.parametrize(("kind", "more"), [("llama-tied", {}), ("bert", {"include": ("*",)})], ids=str)
def test_weights_outside_of_blocks_are_read_as_they_are_now(tiny, tmp_path, kind, more, monkeypatch):
    """Nearly all weights moved, so the graft grows over tensors that hold no candidate."""
    monkeypatch.setattr("surgery.grafting.budget._FEWEST_CANDIDATES", 64)
    folder = shutil.copytree(tiny(kind), tmp_path / "base")
    tuned_at = move_everything(folder)
    given = {"weights": 40, "control": False, **more}
    split = run(tmp_path / "split", 2, grafted, folder, tuned_at, given)
    assert [*split.values()] == 2 * [grafted(None, folder, tuned_at, given)]


def gradients_in_turn(rank, folder):
    """Of the first tensor, again, and then of the last ones."""
    checkpoint, found = Checkpoint(folder), []
    names = checkpoint.block_weights()
    workers = None if rank is None else Workers.launched(timeout=20.0)
    with loaded(checkpoint, names, workers, device=torch.device("cpu")) as model:
        read = TaskModel(model, pick_readout(model, Task.load("sst2", train=ROWS)))
        rows = read.readout.encode(ROWS[:4])
        for asked in (names[:1], names[:1], names[-2:]):
            read.gradients(
                asked, rows, torch.tensor([0, 1, 0, 1]), lambda name, whole: found.append((name, whole.clone()))
            )
    return found


def test_gradients_that_nobody_asked_for_are_dropped(tiny, tmp_path):
    found, wanted = run(tmp_path / "run", 2, gradients_in_turn, tiny("gpt2"))[1], gradients_in_turn(None, tiny("gpt2"))
    assert sorted(name for name, _ in found) == sorted(name for name, _ in wanted)
    assert all(torch.equal(dict(found)[name], whole) for name, whole in wanted)


def test_half_precision_is_a_blocks(tiny, tmp_path):
    """A split model computes in bfloat16 by whole blocks of it, where autocast would keep a copy of every weight."""
    split, (tensors, report, _) = both(tmp_path, tiny("llama"), recipe=recipe(), dtype="bfloat16")
    assert split[0][1]["losses"] == pytest.approx(report["losses"], abs=0.02)
    full = run(tmp_path / "full", 2, tuned_with, tiny("llama"), SPLIT, {"recipe": recipe()})
    assert split[0][1]["losses"] != pytest.approx(full[0][1]["losses"], abs=1e-6)
    assert all(tensor.dtype == torch.float32 for tensor in split[0][0].values())
    assert equal(split[0][0], tensors, atol=0.02)


@pytest.mark.parametrize("name", ["funnel", "albert"])
def test_piles_of_other_kinds(tmp_path, name):
    """Funnel has lists in a list, ALBERT runs one layer again and again."""
    folder = architectures.build(architectures.classes("masked")[name], tmp_path / name, "masked")
    split, (tensors, *_) = both(tmp_path, folder, recipe=recipe())
    assert equal(split[0][0], tensors, atol=2e-6)
    assert not any(tensor.requires_grad for tensor in split[0][0].values())


def test_a_control_is_for_one_process(tiny, tmp_path):
    perturb(tiny("bert"), tmp_path / "tuned", count=300)
    found = run(tmp_path / "run", 2, grafted_or_refused, tiny("bert"), tmp_path / "tuned", {"control": True})
    assert set(found.values()) == {"a `control` is tuned by one process: leave it out where several share the model"}


def grafted_or_refused(*given):
    try:
        return grafted(*given)
    except OptionError as error:
        return str(error)
