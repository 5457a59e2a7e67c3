"""What is made of several skills: a merged skill, a comparison, a stack in a checkpoint."""

import json
from itertools import count

import torch

from tests.support.fuzzing.formats import Format
from tests.support.fuzzing.grafting import Skills

_NAMES = ("sst2", "subj")


def two_skills(folder):
    """A base and two skills of it that share weights, by the task's name."""
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.checkpoints.delta import SparseDelta
    from surgery.grafting.skill import Skill
    from surgery.tasks.task import Task
    from tests.support.tiny import block_names, build

    base = Checkpoint(build("bert", folder))
    name = next(name for name in block_names(base.folder) if name.endswith("dense.weight"))
    found = {}
    for start, task in zip(count(), map(Task.load, _NAMES), strict=False):
        index = torch.arange(4 * start, 4 * start + 8)
        delta = SparseDelta.from_parts(
            base, {name: (index, index + 1.0)}, movable=5000, metadata={"task": json.dumps(task.spec())}
        )
        found[task.name] = Skill(delta, task, {"task": task.spec(), "weights": 8, "moved": 100})
    return base, found


class MergedSkills(Skills):
    def make(self):
        from surgery.grafting.merging import merge_skills

        _, skills = two_skills(self.folder.parent / "merged-base")
        merge_skills(skills).save(self.folder, figures=False)


class Comparisons(Format):
    def make(self):
        from surgery.grafting.comparison import compare

        _, skills = two_skills(self.folder.parent / "compared-base")
        compare(skills).save(self.folder)

    def mutable(self, name):
        return name == "report.json"

    def use(self):
        from surgery.grafting.comparison import Comparison

        found = Comparison.load(self.folder)
        repr(found), found.table(), found.short_table(), found.matrix()
        found.page(2).html()


class Stacks(Format):
    def make(self):
        from surgery.grafting.stack import restack

        self.base, self.skills = two_skills(self.folder.parent / "stack-base")
        made = restack("apply", [skill.layer for skill in self.skills.values()], self.base, self.folder / "stack")
        self.stack = made.folder

    def mutable(self, name):
        return "surgery-stack/" in name

    def use(self):
        from surgery.checkpoints.checkpoint import Checkpoint
        from surgery.grafting.stack import _Plan

        layer = self.skills["sst2"].layer
        _Plan.of("revert", [layer], Checkpoint(self.stack), None)
