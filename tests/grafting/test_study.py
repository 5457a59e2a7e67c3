"""A tiny study, all the way: it stops, goes on, refuses other options, and its figures follow from what stages kept."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import OptionError, SkillError, TaskError
from surgery.grafting.skill import Skill
from surgery.grafting.study import Settings, Study, run_study
from surgery.grafting.study.measures import brier
from surgery.grafting.study.rivals import combined, scaled
from surgery.grafting.study.settings import ROWS, alike, stages
from surgery.tasks.scoring import score
from surgery.tasks.task import Task
from tests.support.tiny import hashes, perturb
from tests.tuning.test_several_tasks import TOPICS
from tests.tuning.test_tuning import ROWS as REVIEWS

SETTINGS = Settings(("sst2", "mr", "topics"), shots=4, sparsity=0.02, steps=4, test=10, held=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two tasks of the same labels and one of others."""
    root = tmp_path_factory.mktemp("data")
    for name, rows in (("sst2", REVIEWS), ("mr", REVIEWS[::-1]), ("topics", TOPICS)):
        (root / name).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps({"text": row.text, "label": row.label.lower()}) + "\n" for row in rows]
            (root / name / f"{split}.jsonl").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def made(tiny, data, tmp_path_factory):
    """A finished study of an encoder, interrupted once on the way, and the folder as it was then."""
    folder, told = tmp_path_factory.mktemp("study") / "study", []

    def interrupt(done, total, line):
        told.append(line)
        if "seed0-fresh-mr" in line and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(tiny("bert-encoder"), data, SETTINGS, folder, device="cpu", progress=interrupt)
    before = hashes(folder / "stages")
    later = []
    found = run_study(
        tiny("bert-encoder"), data, SETTINGS, folder, device="cpu", progress=lambda *a: later.append(a[2])
    )
    return folder, found, before, told, later


def test_it_goes_on_with_the_stage_that_was_stopped(made):
    folder, found, before, _, later = made
    done = {name for name in before if name.endswith(".json") and "partial" not in name}
    assert done and all(hashes(folder / "stages")[name] == before[name] for name in done)
    assert "seed0-fresh-mr" in later[0] and not any("seed0-skill" in line for line in later)
    assert found.done == found.planned == len(stages(SETTINGS, [["sst2", "mr"], ["topics"]]))
    assert not list((folder / "stages").glob("*.partial"))


def test_a_finished_study_does_nothing_again(made, tiny, data):
    folder, found, *_ = made
    lines = []
    again = run_study(tiny("bert-encoder"), data, SETTINGS, folder, device="cpu", progress=lambda *a: lines.append(a))
    assert lines == [] and again.seeds == found.seeds


def test_other_options_are_refused_with_what_differs(made, tiny, data, tmp_path):
    folder = made[0]
    (tmp_path / "file").touch()
    before = hashes(folder)
    for settings, what in ((replace(SETTINGS, shots=3), "shots"), (replace(SETTINGS, seeds=2), "seeds")):
        with pytest.raises(OptionError, match=f"other options: {what} .* there, .* now"):
            run_study(tiny("bert-encoder"), data, settings, folder, device="cpu")
    with pytest.raises(OptionError, match="base"):
        run_study(tiny("bert"), data, SETTINGS, folder, device="cpu")
    with pytest.raises(OptionError, match="is no study"):
        run_study(tiny("bert-encoder"), data, SETTINGS, tmp_path, device="cpu")
    assert hashes(folder) == before


def test_figures_are_those_of_the_skills_it_keeps(made, tiny, data, tmp_path):
    folder, found, *_ = made
    tests = {}
    for row in found.seeds[0]["alone"]:
        task = Task.load(row["task"], train=data / row["task"] / "train.jsonl", test=data / row["task"] / "test.jsonl")
        order = np.sort(np.random.default_rng(0).permutation(len(task.test))[:10])
        tests[row["task"]] = replace(task, test=tuple(task.test[number] for number in order))
        skill = Skill.load(folder / "skills" / f"seed0-{row['task']}")
        grafted = skill.apply(tiny("bert-encoder"), tmp_path / row["task"])
        assert score(grafted, tests[row["task"]], device="cpu").accuracy == row["graft"]
        assert score(tiny("bert-encoder"), tests[row["task"]], device="cpu").accuracy == row["base"]
    crossed = [(row["from"], row["on"]) for row in found.seeds[0]["transfer"] if row["model"] == "graft"]
    assert sorted(crossed) == [("mr", "mr"), ("mr", "sst2"), ("sst2", "mr"), ("sst2", "sst2"), ("topics", "topics")]


def test_regions_are_kept_to_while_learning_in_a_row(made, tiny):
    folder, found, *_ = made
    skills = {name: Skill.load(folder / "skills" / f"seed0-{name}").delta for name in SETTINGS.tasks}
    places = {name: {(n, i) for n in d.tensors for i in d.part(n)[0].tolist()} for name, d in skills.items()}
    last = SparseDelta.load(folder / "deltas" / "seed0-fresh-topics.safetensors")
    assert {(n, i) for n in last.tensors for i in last.part(n)[0].tolist()} <= set().union(*places.values())
    ways = {row["way"] for row in found.seeds[0]["in_a_row"]}
    assert ways == {*ROWS, "union of separate skills"}
    for row in found.seeds[0]["in_a_row"][:3]:
        lost = [row["learnt"][name] - row["after"][-1][name] for name in SETTINGS.tasks[:-1]]
        assert row["forgotten"] == pytest.approx(np.mean(lost))


def test_the_page_has_all_sections_and_the_report_loads(made, tmp_path):
    folder, found, *_ = made
    page = (folder / "README.md").read_text()
    for words in ("own skill", "One task after another", "without training", "same labels", "union, ten more steps"):
        assert words in page
    assert {"regions.png", "forgotten.png", "reliability.png"} <= {file.name for file in folder.iterdir()}
    loaded = Study.load(found.save(tmp_path / "copy"))
    assert loaded.summary == found.summary and json.dumps(loaded.seeds) == json.dumps(found.seeds)
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(SkillError, match="no report of a study"):
        Study.load(tmp_path)


def test_bad_options_are_refused_before_anything_is_written(tiny, data, tmp_path):
    for given, message in (
        ({"tasks": ("sst2",)}, "two or more"),
        ({"tasks": ("sst2", "sst2")}, "twice"),
        ({"shots": 0}, "`shots`"),
        ({"sparsity": 0.0}, "`sparsity`"),
    ):
        with pytest.raises(OptionError, match=message):
            replace(SETTINGS, **given)
    with pytest.raises(TaskError, match="cr isn't there"):
        run_study(tiny("bert-encoder"), data, replace(SETTINGS, tasks=("sst2", "cr")), tmp_path / "s", device="cpu")
    assert not (tmp_path / "s").exists()


def test_combined_by_sum_is_the_algebra_of_moves(tiny, tmp_path):
    deltas = []
    for seed in (0, 1):
        perturb(tiny("bert"), tmp_path / str(seed), 200, seed)
        deltas.append(SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(tmp_path / str(seed))))
    both = combined(deltas, lambda moves, weights: (torch.stack(moves) * weights[:, None]).sum(0), 0.5)
    dense = {}
    for delta in deltas:
        for name, extent in delta.tensors.items():
            index, tuned, base = delta.part(name)
            dense.setdefault(name, torch.zeros(extent.size))[index] += 0.5 * (tuned - base)
    for name in both.tensors:
        index, tuned, base = both.part(name)
        assert torch.allclose(tuned - base, dense[name][index], atol=1e-6)
    assert torch.allclose(scaled(deltas[0], 2.0).values, 2 * deltas[0].values - deltas[0].base_values)


def test_brier_and_groups_of_labels():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    assert brier(logits, np.array([0, 2])) == pytest.approx((0.25 + 0.0625 * 2 + 0.01 + 0.64 + 0.81) / 2)
    assert alike({"a": "xy", "b": "yx", "c": "xy"}) == [["a", "c"], ["b"]]
