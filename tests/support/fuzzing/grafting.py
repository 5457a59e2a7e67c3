"""Skills, and what a stopped tuning leaves."""

import contextlib
import json

import numpy as np
from safetensors.numpy import load, save

from tests.support.fuzzing.formats import Format


class Skills(Format):
    low_rank = False

    def make(self):
        from surgery import graft
        from surgery.tasks.examples import Example
        from surgery.tasks.task import Task
        from tests.support.tiny import build, change, perturb

        base, tuned = (
            build("bert", self.folder.parent / f"{self.folder.name}-base"),
            self.folder.parent / f"{self.folder.name}-tuned",
        )
        if self.low_rank:
            change(base, tuned, lambda name, tensor: tensor + 0.01 * tensor.sign())
        else:
            perturb(base, tuned)
        rows = [
            Example(f"the film was {word}", "", label) for word, label in (("good", "positive"), ("bad", "negative"))
        ]
        task = Task.load("sst2", train=rows * 4, test=rows * 4)
        more = {"weights": 300, "low_rank": True, "control": False} if self.low_rank else {"weights": 20}
        graft(base, tuned, task, device="cpu", **more).save(self.folder, figures=False)

    def mutate(self, rng):
        found = super().mutate(rng)
        name = "skill.safetensors"
        if name in found and rng.random() < 0.7:
            with contextlib.suppress(Exception):
                found[name] = self.summed(found[name])
        return found

    @staticmethod
    def summed(raw):
        """With the checksum of what is in it."""
        import xxhash

        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        arrays, total = load(raw), xxhash.xxh3_128()
        for key in ("indices", "values", "base_values"):
            array = arrays[key].astype(np.int64) if key == "indices" else arrays[key]
            total.update(np.ascontiguousarray(array).tobytes())
        return save(arrays, {**header, "checksum": total.hexdigest()})

    def use(self):
        from cli.skill import show
        from surgery.grafting.card import skill_page
        from surgery.grafting.skill import Skill

        skill = Skill.load(self.folder)
        skill_page(skill.held, skill.tasks, skill.report, []).html()
        show(self.folder, json=False)
        show(self.folder, json=True)


class LowRankSkills(Skills):
    low_rank = True

    def mutate(self, rng):
        found = Format.mutate(self, rng)
        if (name := "low-rank.safetensors") in found and rng.random() < 0.7:
            with contextlib.suppress(Exception):
                found[name] = self.summed(found[name])
        return found

    @staticmethod
    def summed(raw):
        """With the checksum of what is in it."""
        import xxhash

        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        arrays, total = load(raw), xxhash.xxh3_128()
        for name in sorted({key.partition("/")[2] for key in arrays}):
            for side in ("left", "right"):
                total.update(np.ascontiguousarray(arrays[f"{side}/{name}"]).tobytes())
        return save(arrays, {**header, "checksum": total.hexdigest()})


class TuneStates(Format):
    def make(self):
        from surgery.tasks.examples import Example
        from surgery.tasks.task import Task
        from surgery.tuning.finetuning import tune
        from surgery.tuning.recipe import Recipe
        from tests.support.tiny import build

        self.base = build("bert", self.folder.parent / "tune-base")
        rows = [
            Example(f"the film was {word}", "", label) for word, label in (("good", "positive"), ("bad", "negative"))
        ]
        self.task, self.recipe = Task.load("sst2", train=rows * 4, dev=rows), Recipe("adamw", steps=4, batch_size=4)

        def stop(done, total, text):
            if done == 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            tune(self.base, self.task, self.recipe, device="cpu", resume=self.folder, progress=stop)

    def use(self):
        from surgery.tuning.finetuning import tune

        tune(self.base, self.task, self.recipe, device="cpu", resume=self.folder)
