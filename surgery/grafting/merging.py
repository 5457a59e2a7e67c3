"""Skills made of skills: several in one by a rule, one without what another touches. The result is a skill like any other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgery.checkpoints.delta import SparseDelta
from surgery.errors import OptionError, SkillError
from surgery.grafting.algebra import check_one_base, difference, merge
from surgery.grafting.card import base_of
from surgery.grafting.skill import FURTHER_TASKS, Carried, Skill
from surgery.provenance import provenance
from surgery.tasks.readout import readout_file
from surgery.tasks.task import Task


def merge_skills(skills: Mapping[str, Skill], rule: str = "mean") -> Skill:
    """One skill that carries the tasks of several: the union of their weights.

    Args:
        skills: two or more, by what to call them in errors and in the report, such as their folders.
        rule: what stands where several touch one weight, as `algebra.merge` takes it.

    Raises:
        SkillError: skills of different bases, tasks of one name with other labels or phrases, a sentence encoder's skill
            without its phrases, and what the rule refuses.
        OptionError: fewer than two skills, the same one twice, an unknown rule.
    """
    if len(skills) < 2:
        raise OptionError("one skill is given: name two or more to merge")
    check_comparable(skills)
    deltas = [skill.delta for skill in skills.values()]
    merged = merge(deltas, rule, list(skills))
    asked = {"skills": list(skills), "rule": rule}
    return _made_of(skills, merged, _carried_by_all(skills), "merge", asked, f"union by {rule}")


def subtract_skill(skills: Mapping[str, Skill]) -> Skill:
    """The first skill without the weights that any of the others touches; it carries the first one's tasks.

    Raises SkillError for skills of different bases or where nothing is left, OptionError for fewer than two skills.
    """
    if len(skills) < 2:
        raise OptionError("one skill is given: name the skill, then what to take from it")
    check_comparable(skills)
    (name, first), *others = skills.items()
    left = first.delta
    for _, other in others:
        left = difference(left, other.delta)
    if not left.weights:
        raise SkillError(f"nothing is left of {name}: {', '.join(skills)[len(name) + 2 :]} touch all its weights")
    asked = {"skills": list(skills)}
    return _made_of(skills, left, first.carried, "subtract", asked, f"{name} without what others touch")


def check_comparable(skills: Mapping[str, Skill]) -> None:
    """Raise unless skills are of one base, each given once, and tasks of one name have the same labels."""
    seen: dict[str, str] = {}
    labels: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, skill in skills.items():
        if (other := seen.setdefault(skill.layer.id, name)) != name:
            raise OptionError(f"{other} and {name} are the same skill: name each skill once")
        for task in skill.tasks:
            whose, held = labels.setdefault(task.name, (name, task.labels))
            if held != task.labels:
                raise SkillError(
                    f"{whose} and {name} are of two tasks called {task.name}, with the labels {', '.join(held)} and "
                    f"{', '.join(task.labels)}: make one of them again under another name"
                )
    check_one_base([skill.delta for skill in skills.values()], list(skills))


def _carried_by_all(skills: Mapping[str, Skill]) -> tuple[Carried, ...]:
    """Each task once, with its phrases' embeddings where the skills are a sentence encoder's."""
    by_name: dict[str, tuple[str, Carried]] = {}
    encoder = any(readout for skill in skills.values() for _, readout in skill.carried)
    for name, skill in skills.items():
        for carried in skill.carried:
            task, readout = carried
            if encoder and not readout and not _in_base(skill, readout_file(task)):
                raise SkillError(
                    f"{name} has no {readout_file(task)}, the embeddings of its task's phrases, as the other skills have: "
                    "make or fetch it again"
                )
            whose, held = by_name.setdefault(task.name, (name, carried))
            if _read_by(held.task) != _read_by(task) or (held.readout and readout and held.readout != readout):
                raise SkillError(
                    f"{whose} and {name} read the task {task.name} by different prompts, label words or phrases: merge one of them"
                )
            if readout and not held.readout:
                by_name[task.name] = (name, carried)
    return tuple(carried for _, carried in by_name.values())


def _read_by(task: Task) -> tuple[object, ...]:
    return task.prompt, task.causal_prompt, task.words, task.phrases


def _in_base(skill: Skill, file: str) -> bool:
    """Whether the skill's base, if it is still there, has the file itself."""
    return bool(base := base_of(skill.report)) and (Path(base) / file).exists()


def _made_of(
    skills: Mapping[str, Skill],
    delta: SparseDelta,
    carried: Sequence[Carried],
    verb: str,
    asked: Mapping[str, Any],
    method: str,
) -> Skill:
    specs = [json.dumps(task.spec()) for task, _ in carried]
    further = {FURTHER_TASKS: json.dumps(specs[1:])} if len(specs) > 1 else {}
    delta = replace(delta, metadata={"task": specs[0], **further})
    base = next((base_of(skill.report) for skill in skills.values() if base_of(skill.report)), "")
    inputs = {"base": delta.base_fingerprint, **{name: skill.layer.id for name, skill in skills.items()}}
    report = {
        **provenance(call={verb: {**asked, **({"base": base} if base else {})}}, inputs=inputs),
        "task": carried[0].task.spec(),
        "tasks": [task.spec() for task, _ in carried],
        "method": method,
        "made_of": [
            {"skill": name, "tasks": [task.name for task in skill.tasks], "weights": skill.delta.weights}
            for name, skill in skills.items()
        ],
        "weights": delta.weights,
        "sparsity": delta.sparsity,
        "movable": delta.movable,
        "bytes": len(delta.to_bytes()),
    }
    return Skill(delta, carried[0].task, report, carried[0].readout, tuple(carried[1:]))
