"""Skills made of skills: tasks, phrases and reports of the result; the commands that make them; every bad input."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.models import load_model
from surgery.errors import OptionError, SkillError
from surgery.grafting.algebra import merge
from surgery.grafting.merging import merge_skills, subtract_skill
from surgery.grafting.remarks import remarks
from surgery.grafting.skill import Skill
from surgery.grafting.stack import restack
from surgery.tasks.examples import Example
from surgery.tasks.readout import PhraseReadout, pick_readout, readout_file
from surgery.tasks.scoring import score
from surgery.tasks.task import Task
from tests.support.deltas import equal
from tests.support.tiny import block_names, build, hashes

ROWS = {
    "sst2": [("It was great .", "positive"), ("It was terrible .", "negative"), ("so boring", "negative")],
    "subj": [("I loved it", "subjective"), ("a film", "objective")],
}


def task_of(name, **options):
    rows = [Example(text, "", label) for text, label in ROWS.get(name, ROWS["sst2"])]
    return Task.load(name, test=rows, **options)


def skill_on(base, task, places, value=2.0, readout=True):
    """A skill that gives weights of one tensor another value; with a sentence encoder's phrases."""
    checkpoint = Checkpoint(base)
    name = next(name for name in block_names(base) if name.endswith("dense.weight"))
    index = torch.tensor(sorted(places))
    delta = SparseDelta.from_parts(
        checkpoint,
        {name: (index, value + index.float())},
        movable=sum(checkpoint.entries[n].size for n in block_names(base)),
        metadata={"task": json.dumps(task.spec())},
    )
    model = load_model(checkpoint, device="cpu")
    found = pick_readout(model, task) if readout else None
    report = {"call": {"graft": {"base": str(base), "weights": len(index)}}, "task": task.spec(), "weights": len(index)}
    return Skill(delta, task, report, found.to_bytes() if isinstance(found, PhraseReadout) else None)


@pytest.fixture(scope="module")
def base(tiny):
    return tiny("bert-encoder")


@pytest.fixture(scope="module")
def skills(base):
    return {
        "one": skill_on(base, task_of("sst2"), range(8)),
        "two": skill_on(base, task_of("subj"), range(6, 10), value=5.0),
    }


# -- merged and subtracted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["mean", "sum", "first", "last"])
def test_a_merged_skill_is_a_skill(base, skills, tmp_path, rule):
    merged = merge_skills(skills, rule)
    assert equal(merged.delta, merge([skill.delta for skill in skills.values()], rule))
    merged.save(tmp_path / "both")
    loaded = Skill.load(tmp_path / "both")
    assert equal(loaded.delta, merged.delta) and loaded.delta.weights == 10
    assert [task.name for task, _ in loaded.carried] == ["sst2", "subj"] and loaded.name == "sst2 + subj"
    assert [c.readout for c in loaded.carried] == [skill.readout for skill in skills.values()]
    assert loaded.further[0].task == replace(skills["two"].task, test=())
    report = loaded.report
    assert [spec["name"] for spec in report["tasks"]] == ["sst2", "subj"]
    assert report["call"]["merge"] == {"skills": ["one", "two"], "rule": rule, "base": str(base)}
    assert report["method"] == f"union by {rule}"
    assert [(part["skill"], part["tasks"], part["weights"]) for part in report["made_of"]] == [
        ("one", ["sst2"], 8),
        ("two", ["subj"], 4),
    ]
    card = (tmp_path / "both" / "README.md").read_text()
    assert "# Skill: sst2 + subj" in card and "labels: subjective, objective" in card and f"union by {rule}" in card
    merged.apply(base, tmp_path / "grafted")
    for name in ROWS:
        assert score(tmp_path / "grafted", task_of(name), device="cpu").logits.shape == (len(ROWS[name]), 2)
    loaded.revert(tmp_path / "grafted", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(base)


def test_a_merged_encoder_is_read_by_the_bases_phrases(base, skills, tmp_path):
    grafted = merge_skills(skills).apply(base, tmp_path / "grafted")
    for name, skill in zip(ROWS, skills.values(), strict=True):
        task = task_of(name)
        kept = score(grafted, task, device="cpu").logits
        assert (grafted / readout_file(task)).read_bytes() == skill.readout
        (grafted / readout_file(task)).unlink()
        assert abs(score(grafted, task, device="cpu").logits - kept).max() > 1e-3
        assert abs(score(grafted, task, base=base, device="cpu").logits - kept).max() == 0


def test_a_merged_skill_can_be_merged_and_stacked_again(base, skills, tmp_path):
    three = skill_on(base, task_of("mr"), range(20, 22))
    once = merge_skills(skills | {"three": three})
    twice = merge_skills({"both": merge_skills(skills), "three": three})
    assert equal(once.delta, twice.delta) and once.carried == twice.carried
    restack("apply", [merge_skills(skills).layer, three.layer], base, tmp_path / "stack")
    assert {readout_file(task_of(name)) for name in (*ROWS, "mr")} <= hashes(tmp_path / "stack").keys()
    merge_skills(skills).revert(tmp_path / "stack", in_place=True)  # a skill knows a stack
    three.revert(tmp_path / "stack", in_place=True)
    assert hashes(tmp_path / "stack") == hashes(base)


def test_a_skill_whose_base_is_what_a_stack_made(base, skills, tmp_path):
    restack("apply", [skill.layer for skill in skills.values()], base, tmp_path / "stack")
    later = skill_on(tmp_path / "stack", task_of("mr"), range(7, 9), value=9.0)
    later.apply(tmp_path / "stack", tmp_path / "grafted")
    assert not (tmp_path / "grafted" / "surgery-stack").exists()
    later.revert(tmp_path / "grafted", tmp_path / "again")
    before = hashes(tmp_path / "stack")
    own = {name: digest for name, digest in before.items() if not name.startswith("surgery-stack")}
    assert hashes(tmp_path / "again") == own
    with pytest.raises(SkillError, match="holds a stack on another base than the skill's: write into a new folder"):
        later.apply(tmp_path / "stack", in_place=True)
    assert hashes(tmp_path / "stack") == before


def test_two_skills_of_one_task_carry_it_once(base, skills):
    again = skill_on(base, task_of("sst2"), range(30, 33))
    assert [task.name for task, _ in merge_skills({"one": skills["one"], "again": again}).carried] == ["sst2"]


def test_subtracted(base, skills, tmp_path):
    left = subtract_skill(skills)
    assert left.delta.indices.tolist() == list(range(6)) and left.carried == skills["one"].carried
    assert left.report["call"]["subtract"] == {"skills": ["one", "two"], "base": str(base)}
    assert not left.further and "graft" not in left.report
    left.save(tmp_path / "left")
    Skill.load(tmp_path / "left").apply(base, tmp_path / "grafted")
    assert (tmp_path / "grafted" / "readout-sst2.safetensors").exists()
    assert not (tmp_path / "grafted" / "readout-subj.safetensors").exists()
    more = skills | {"three": skill_on(base, task_of("mr"), range(3))}
    assert subtract_skill(more).delta.indices.tolist() == [3, 4, 5]
    whole = skill_on(base, task_of("mr"), range(20))
    with pytest.raises(SkillError, match="nothing is left of one: three, two touch all its weights"):
        subtract_skill({"one": skills["one"], "three": whole, "two": skills["two"]})


# -- refusals --------------------------------------------------------------------------------------------------------


def test_refusals(base, skills, tmp_path):
    one, two = skills.values()
    other = build("bert-encoder", tmp_path / "other", seed=1)
    labels = {"words": {"yes": "good", "no": "bad"}, "phrases": {"yes": "It is.", "no": "It is not."}}
    plain = Task.load("sst2", test=[], **labels)
    phrases = task_of("sst2", phrases={"positive": "so great", "negative": "so bad"})
    cases = {
        r"the skills \(one and b\) start from different bases": skill_on(other, task_of("subj"), range(3)),
        "one and b are of two tasks called sst2, with the labels negative, positive and ": skill_on(
            base, plain, range(3)
        ),
        "one and b are the same skill: name each": one,
    }
    for match, wrong in cases.items():
        for make in (merge_skills, subtract_skill):
            with pytest.raises((SkillError, OptionError), match=match):
                make({"one": one, "b": wrong})
    for make in (merge_skills, subtract_skill):
        with pytest.raises(OptionError, match="one skill is given"):
            make({"one": one})
    with pytest.raises(SkillError, match="one and b read the task sst2 by different prompts, label words or phrases"):
        merge_skills({"one": one, "b": skill_on(base, phrases, range(3))})
    for lost in ({"one": one, "two": replace(two, readout=None)}, {"two": replace(two, readout=None), "one": one}):
        with pytest.raises(
            SkillError, match=r"^two has no readout-subj\.safetensors, the embeddings of its task's phrases"
        ):
            merge_skills(lost)
    with pytest.raises(OptionError, match="`rule` 'best' isn't one of"):
        merge_skills(skills, "best")
    with pytest.raises(SkillError, match=r"one and two disagree on tensor .*, weight 6 "):
        merge_skills(skills, "error")


@pytest.mark.parametrize(
    "change",
    [
        {"words": {"negative": "bad", "positive": "good"}},
        {"prompt": "{text} so {mask}"},
        {"causal_prompt": "{text} so"},
    ],
)
def test_a_task_that_a_masked_model_reads_otherwise_is_another(tiny, change):
    one = skill_on(tiny("bert"), task_of("sst2"), range(3), readout=False)
    two = skill_on(tiny("bert"), task_of("sst2", **change), range(2, 5), readout=False)
    with pytest.raises(SkillError, match="one and two read the task sst2 by different prompts"):
        merge_skills({"one": one, "two": two})
    assert not subtract_skill({"one": one, "two": two}).layer.readouts


def test_phrases_that_the_base_has_itself_are_not_missed(base, tmp_path):
    """As where a base was made from an encoder that was tuned on the task before."""
    own = shutil.copytree(base, tmp_path / "own")
    (own / "readout-subj.safetensors").write_bytes(skill_on(base, task_of("subj"), [1]).readout)
    inherited = replace(skill_on(own, task_of("subj"), range(3)), readout=None)
    merged = merge_skills({"one": skill_on(own, task_of("sst2"), range(9, 11)), "two": inherited})
    assert [carried.readout is None for carried in merged.carried] == [False, True]
    own_phrases = skill_on(base, task_of("subj"), range(5, 7)).readout
    again = replace(skill_on(own, task_of("subj"), range(5, 7)), readout=own_phrases)
    for skills in ({"a": inherited, "b": again}, {"b": again, "a": inherited}):  # whichever comes first
        assert merge_skills(skills).carried == (again.carried[0],)


def test_a_skill_with_fewer_weights_than_asked_says_so():
    report = {"weights": 90, "call": {"graft": {"weights": 100}}}
    assert remarks(report) == ["It holds 90 weights and not the 100 that were asked for: no more moved in tuning."]
    assert not remarks({"weights": 100, "call": {"graft": {"weights": 100}}}) and not remarks({"weights": 100})


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(skills, tmp_path):
    return [str(skill.save(tmp_path / name)) for name, skill in skills.items()]


def test_commands(base, folders, run, tmp_path):
    one, two = folders
    both = tmp_path / "both"
    status, out, _ = run("skill", "merge", *folders, "-o", both, "--rule", "sum")
    assert status == 0 and "union by sum" in out and "sst2 + subj" in out
    status, out, _ = run("skill", "show", both)
    assert status == 0 and "sst2 + subj: 10 of" in out and "union by sum, of one, two" in out
    assert json.loads(run("skill", "show", both, "--json")[1])["tasks"] == ["sst2", "subj"]
    assert run("skill", "merge", *folders, "-o", both, "--overwrite", "--json")[0] == 0
    assert Skill.load(both).report["method"] == "union by mean"
    found = json.loads(run("skill", "subtract", *folders, "-o", tmp_path / "left", "--json")[1])
    assert (found["weights"], found["tasks"]) == (6, ["sst2"])

    status, out, _ = run("skill", "apply", one, two, base, "-o", tmp_path / "stack")
    assert status == 0 and "no skill -> one, two, 10 weights" in out and "the rule is last" in out
    found = json.loads(run("skill", "apply", one, tmp_path / "stack", "--in-place", "--json")[1])
    assert (found["changed"], found["stack"]) == (0, ["one", "two"])
    status, out, _ = run("skill", "revert", one, tmp_path / "stack", "--in-place")
    assert status == 0 and "one, two -> two" in out
    assert run("skill", "revert", two, tmp_path / "stack", "--in-place")[0] == 0
    assert hashes(tmp_path / "stack") == hashes(base)
    assert run("skill", "apply", one, two, base, "--rule", "mean", "-o", tmp_path / "mean")[0] == 0
    assert run("skill", "apply", both, base, "-o", tmp_path / "merged")[0] == 0
    name = "model.safetensors"
    assert hashes(tmp_path / "mean")[name] == hashes(tmp_path / "merged")[name]


def test_bad_input_is_one_sentence_status_2_and_nothing_written(base, folders, run, tmp_path):
    one, two = folders
    shutil.copytree(two, tmp_path / "lost")
    (tmp_path / "lost" / "readout-subj.safetensors").unlink()
    shutil.copytree(one, tmp_path / "same")
    other = skill_on(build("bert-encoder", tmp_path / "other", seed=1), task_of("mr"), range(3)).save(tmp_path / "mr")
    third = skill_on(base, task_of("mr"), range(3)).save(tmp_path / "third")
    labels = {"words": {"yes": "good", "no": "bad"}, "phrases": {"yes": "It is.", "no": "It is not."}}
    alike = skill_on(base, Task.load("sst2", **labels), range(3)).save(tmp_path / "alike")
    assert run("skill", "apply", one, two, base, "-o", tmp_path / "stack")[0] == 0
    out = ("-o", tmp_path / "out")
    cases = {
        "start from different bases": [("merge", one, other), ("subtract", one, other), ("apply", one, other, base)],
        "are of two tasks called sst2": [("merge", one, alike), ("subtract", one, alike)],
        "is given twice": [("merge", one, one), ("subtract", one, one), ("apply", one, one, base)],
        "are the same skill": [("merge", one, tmp_path / "same")],
        "the skill one is given twice": [("apply", one, tmp_path / "same", base)],
        "one skill is given": [("merge", one), ("subtract", one)],
        "has no readout-subj.safetensors": [("merge", one, tmp_path / "lost")],
        "--rule 'max' isn't one of mean, sum": [
            ("merge", one, two, "--rule", "max"),
            ("apply", one, two, base, "--rule", "max"),
        ],
        "disagree on tensor": [("merge", one, two, "--rule", "error"), ("apply", one, two, base, "--rule", "error")],
        "doesn't hold the skill third": [
            ("revert", third, tmp_path / "stack"),
            ("revert", one, third, tmp_path / "stack"),
        ],
        "is not the skill's base": [(verb, other, tmp_path / "stack") for verb in ("apply", "revert")],
        "skill.safetensors is missing": [("merge", one, tmp_path / "nowhere")],
    }
    cases = [(match, ("skill", *call, *out)) for match, calls in cases.items() for call in calls]
    cases += [
        ("same or lie one inside", ("skill", "merge", one, two, "-o", one, "--overwrite")),
        ("same or lie one inside", ("skill", "apply", one, two, base, "-o", base)),
        ("exists already", ("skill", "merge", one, two, "-o", tmp_path / "lost")),
        ("-o is missing", ("skill", "merge", one, two)),
        ("one of the two", ("skill", "apply", one, two, base)),
    ]
    before = hashes(tmp_path)
    for match, call in cases:
        status, _, error = run(*call)
        assert (status, error.count("\n")) == (2, 1) and match in error, (call, error)
    assert hashes(tmp_path) == before
