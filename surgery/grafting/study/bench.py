"""The model of a study, scored with deltas in it, and the tasks of each seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgery.checkpoints.checkpoint import Checkpoint, rewrite
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.models import Model, load_model
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.grafting.study.settings import Settings
from surgery.progress import Progress
from surgery.tasks.collection import load_tasks
from surgery.tasks.examples import Example
from surgery.tasks.readout import PhraseReadout, Readout, pick_readout, readout_file
from surgery.tasks.scoring import predict
from surgery.tasks.task import Task
from surgery.tuning.recipe import Recipe

_DIGITS = 5  # of logits that are kept


class Bench:
    """What all stages of a study work with.

    Attributes:
        folder: the study's. `start`: the base that tuning starts from, with all tasks' phrase embeddings beside it.
    """

    def __init__(
        self, base: Checkpoint, root: Path, settings: Settings, folder: Path, device: torch.device, progress: Progress
    ) -> None:
        self.base, self.settings, self.folder, self.device, self.progress = base, settings, folder, device, progress
        self._root = root
        self._seeds: dict[int, dict[str, tuple[Task, tuple[Example, ...]]]] = {}

    @cached_property
    def model(self) -> Model:
        """The base in memory."""
        return load_model(self.base, device=self.device)

    @cached_property
    def readouts(self) -> dict[str, Readout]:
        """How the base is read for each task; every other model is read so too."""
        return {name: pick_readout(self.model, self.task(0, name)) for name in self.settings.tasks}

    @cached_property
    def start(self) -> Checkpoint:
        """The base, or for a sentence encoder a copy with the base's embeddings of all tasks' phrases beside it."""
        files = {}
        for name, readout in self.readouts.items():
            if isinstance(readout, PhraseReadout):
                files[readout_file(self.task(0, name))] = readout.to_bytes()
        if all((self.base.folder / name).exists() for name in files):
            return self.base
        folder = self.folder / "base"
        if not folder.exists():
            with new_folder(folder) as staged:
                rewrite(self.base, {}, staged)
                for name, content in files.items():
                    replace_bytes(staged / name, content)
                replace_json(staged / "report.json", {"base": self.base.fingerprint})
        return Checkpoint(folder)

    @property
    def recipe(self) -> Recipe:
        """How tasks are tuned on."""
        return Recipe(steps=self.settings.steps)

    def task(self, seed: int, name: str) -> Task:
        """A task with the seed's training examples and its test examples."""
        return self._of_seed(seed)[name][0]

    def held(self, seed: int, name: str) -> tuple[Example, ...]:
        """Training examples that the seed's shots left; the shots where they left none."""
        return self._of_seed(seed)[name][1]

    def group(self, name: str) -> list[str]:
        """The tasks with the same labels, itself among them."""
        labels = self.task(0, name).labels
        return [other for other in self.settings.tasks if self.task(0, other).labels == labels]

    def _of_seed(self, seed: int) -> dict[str, tuple[Task, tuple[Example, ...]]]:
        if seed not in self._seeds:
            options: dict[str, Any] = {"seed": seed, "max_length": self.settings.max_length}
            own = load_tasks(self.settings.tasks, self._root, ("train", "test"), shots=self.settings.shots, **options)
            whole = load_tasks(self.settings.tasks, self._root, ("train",), **options)
            self._seeds[seed] = {
                task.name: self._cut(task, every.train, seed) for task, every in zip(own, whole, strict=True)
            }
        return self._seeds[seed]

    def _cut(self, task: Task, every: Sequence[Example], seed: int) -> tuple[Task, tuple[Example, ...]]:
        used, random = set(task.train), np.random.default_rng(0)
        left = [example for example in every if example not in used] or list(task.train)
        order = np.random.default_rng(seed).permutation(len(left))[: self.settings.held]
        test = random.permutation(len(task.need("test")))[: self.settings.test]
        kept = tuple(task.test[number] for number in sorted(test))
        return replace(task, test=kept), tuple(left[number] for number in order)

    def logits(self, delta: SparseDelta | None, name: str, examples: Sequence[Example] | None = None) -> NDArray:
        """Label scores of the base with a delta in it, on a task's test examples or on others: [examples, labels]."""
        readout = self.readouts[name]
        rows = readout.encode(self.task(0, name).test if examples is None else examples)
        if delta is not None:
            delta.write_into(self.model.parameters)
        try:
            return predict(self.model, readout, rows)
        finally:
            if delta is not None:
                delta.write_into(self.model.parameters, restore=True)

    def scores(self, delta: SparseDelta | None, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Label scores on tasks' test examples as JSON holds them, by task."""
        return {name: kept(self.logits(delta, name)) for name in (self.settings.tasks if names is None else names)}

    def accuracies(self, delta: SparseDelta | None, seed: int) -> Mapping[str, float]:
        """Accuracy on the examples that are held out from training, by task."""
        found = {}
        for name in self.settings.tasks:
            examples = self.held(seed, name)
            right = self.logits(delta, name, examples).argmax(1) == np.array(self.task(seed, name).targets(examples))
            found[name] = float(right.mean())
        return found

    # -- what stages leave -----------------------------------------------------------------------------------------

    def keep(self, name: str, delta: SparseDelta) -> None:
        """Keep a delta for later stages."""
        replace_bytes(self.folder / "deltas" / f"{name}.safetensors", delta.to_bytes())

    def kept(self, name: str) -> SparseDelta:
        """A delta that an earlier stage kept."""
        return SparseDelta.load(self.folder / "deltas" / f"{name}.safetensors")


def kept(logits: NDArray) -> list[list[float]]:
    """Logits as JSON holds them."""
    return [[round(float(value), _DIGITS) for value in row] for row in logits]
