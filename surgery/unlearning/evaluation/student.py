"""Student: a bottleneck whose values go on learning, for baselines to teach."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.values import Chosen, Push, Table, batches, toward


class Student:
    """A bottleneck whose values go on learning, at the rate, batch size and smoothing of its recipe.

    Args:
        forget: numbers of the training rows to forget.
        forget_classes: numbers of the classes that they are all the rows of; empty when they are single rows.

    Attributes:
        targets: class numbers of all training rows.
        retained, everything: numbers of the other training rows, and of all.
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        forget: Int64[np.ndarray, " R"],
        forget_classes: Int64[np.ndarray, " F"],
        seed: int,
        device: torch.device,
    ) -> None:
        self._bottleneck, self._device = bottleneck, device
        self._ids = bottleneck.current_ids(device=device)
        self.targets = bottleneck.need_training().targets
        self.forget, self.forget_classes = forget, forget_classes
        self.everything = np.arange(len(self.targets))
        self.retained = np.delete(self.everything, forget)
        self._table = Table(bottleneck.values, bottleneck.selector.states, device)
        self._chosen = Chosen(self._ids, device)
        self._classes, self.recipe = len(bottleneck.classes), bottleneck.recipe
        self._random = np.random.default_rng([seed, 6])

    @property
    def values(self) -> Float32[np.ndarray, "C K Y"]:
        """What it has learnt so far."""
        return self._table.values

    @values.setter
    def values(self, values: Float32[np.ndarray, "C K Y"]) -> None:
        self._table = Table(values, self._bottleneck.selector.states, self._device)

    @property
    def right(self) -> int:
        """How many forget rows it answers right."""
        logits, abstained = self._table.answer(self._ids[self.forget])
        return int(((logits.argmax(1) == self.targets[self.forget]) & ~abstained).sum())

    def learn(self, lesson: Callable[["Student"], None], epochs: int) -> Bottleneck:
        """The bottleneck after so many epochs of a lesson. Its values are no longer counted, if they were."""
        for _ in range(epochs):
            lesson(self)
        return self._graduate(self.values)

    def learn_until(self, lesson: Callable[["Student"], None], enough: int, most: int) -> Bottleneck:
        """The bottleneck after the first epoch that leaves no more than `enough` forget rows answered right.

        If none of `most` epochs does, after the best.
        """
        fewest, values = len(self.forget) + 1, self.values
        for _ in range(most):
            lesson(self)
            if (right := self.right) < fewest:
                fewest, values = right, self.values.copy()
            if fewest <= enough:
                break
        return self._graduate(values)

    def epoch(self, rows: Int64[np.ndarray, " M"], push: Push, beside: Int64[np.ndarray, " R"] | None = None) -> None:
        """Go through these training rows once, mixed anew; with `beside`, each batch has as many of those, drawn anew."""
        there, seed = torch.from_numpy(rows).to(self._device), int(self._random.integers(1 << 32))
        for batch in batches(len(rows), replace(self.recipe, epochs=1), seed, self._device):
            asked = there[batch]
            if beside is not None:
                drawn = torch.from_numpy(self._random.choice(beside, len(batch)))
                asked = torch.cat([asked, drawn.to(self._device)])
            self._table.step(self._chosen, asked, push)

    def draw(self, rows: Int64[np.ndarray, " R"], batches: int) -> Int64[np.ndarray, " M"]:
        """So many batches of these rows, drawn with replacement."""
        return self._random.choice(rows, batches * self.recipe.batch)

    def toward(self, targets: Int64[np.ndarray, " N"], smoothing: float | None = None) -> Push:
        """The published objective for these targets, with its own smoothing unless another is given."""
        recipe = self.recipe if smoothing is None else replace(self.recipe, smoothing=smoothing)
        return toward(targets, self._classes, recipe, self._device)

    def like_teacher(self, weight: float) -> Push:
        """Toward what it answered at first, by so many times the recipe's rate; away from it at a negative weight."""
        return distil(self._teacher, weight * self.recipe.rate)

    def is_forgotten(self, rows: Int64[Tensor, " B"]) -> Bool[Tensor, "B 1"]:
        """Which of these training rows are to be forgotten."""
        return self._forgotten[rows]

    @cached_property
    def disguised(self) -> Int64[np.ndarray, " N"]:
        """Targets, but for each forget row another class, drawn among those that retained rows have."""
        targets = self.targets.copy()
        draw = self._random.random((len(self.forget), self._classes))
        draw[:, np.bincount(targets[self.retained], minlength=self._classes) == 0] -= 1
        draw[np.arange(len(draw)), targets[self.forget]] -= 2
        targets[self.forget] = draw.argmax(1)
        return targets

    @cached_property
    def _forgotten(self) -> Bool[Tensor, "N 1"]:
        forgotten = torch.zeros(len(self.targets), 1, dtype=torch.bool, device=self._device)
        forgotten[torch.from_numpy(self.forget).to(self._device)] = True
        return forgotten

    @cached_property
    def _teacher(self) -> Float32[Tensor, "N Y"]:
        """Probabilities as they were at first."""
        return torch.from_numpy(self._table.answer(self._ids)[0]).to(self._device).softmax(1)

    def _graduate(self, values: Float32[np.ndarray, "C K Y"]) -> Bottleneck:
        learnt = {"values": "sgd", "sgd": asdict(self.recipe), "class_rows": None}
        return replace(self._bottleneck, entries=values, settings={**self._bottleneck.settings, **learnt})


def distil(teacher: Float32[Tensor, "N Y"], rate: float) -> Push:
    """Down KL(teacher || student), from the teacher's probabilities; up at a negative rate."""

    def push(rows: Tensor, logits: Tensor) -> Tensor:
        return rate * (teacher[rows] - logits.softmax(1))

    return push
