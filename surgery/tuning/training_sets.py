"""Training sets: encoded examples, the loss of some of them, and how the dev examples beside them are scored."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.checkpoints.models import Model, steady_attention
from surgery.errors import TaskError
from surgery.tasks.objectives import Lesson, Objective, pick_objective
from surgery.tasks.readout import Encoded, PhraseReadout, Readout, alike, collate, pick_readout
from surgery.tasks.scoring import score_model
from surgery.tasks.task import Task
from surgery.tasks.texts import Texts

_SCORED = 32  # rows at once


class Figures(TypedDict):
    """The dev examples' score: `value` in the metric of the task, the higher the better, and a task's calibration error."""

    value: float
    ece: NotRequired[float]


@runtime_checkable
class TrainingSet(Protocol):
    """What steps are made on.

    Attributes:
        rows: the encoded training examples. `evaluated`: whether there are dev examples.
    """

    @property
    def rows(self) -> Sequence[Encoded]: ...  # noqa: D102
    @property
    def evaluated(self) -> bool: ...  # noqa: D102

    def loss(self, model: Model, numbers: Sequence[int], *, precision: Any = ..., reduction: str = ...) -> Tensor:
        """The loss of some of the examples, their `mean` or `sum`; they share a batch. `precision`: the context that the model runs in."""

    def score(self, model: Model) -> Figures:
        """Score the dev examples."""


class LabelledSet(NamedTuple):
    """A task's training examples as its readout takes them, and their labels, [examples]."""

    task: Task
    readout: Readout
    rows: Sequence[Encoded]
    targets: Tensor

    @classmethod
    def of(cls, model: Model, task: Task) -> "LabelledSet":
        """A task's training examples for a model; raises TaskError for none."""
        readout, examples = pick_readout(model, task), task.need("train")
        return cls(task, readout, readout.encode(examples), torch.tensor(task.targets(examples)))

    @property
    def evaluated(self) -> bool:
        """Whether there are dev examples."""
        return bool(self.task.dev)

    @property
    def anchors(self) -> PhraseReadout | None:
        """The phrases' embeddings, which a tuned sentence encoder keeps."""
        return self.readout if isinstance(self.readout, PhraseReadout) else None

    def loss(self, model: Model, numbers: Sequence[int], *, precision: Any = None, reduction: str = "mean") -> Tensor:
        """Cross-entropy to the labels."""
        batch, positions = collate(model, [self.rows[number] for number in numbers])
        with precision or nullcontext(), steady_attention():
            scores = self.readout.logits(model.module, batch, positions)
        return F.cross_entropy(scores, self.targets[numbers].to(model.device), reduction=reduction)

    def score(self, model: Model) -> Figures:
        """The task's metric, and the calibration error."""
        scored = score_model(model, self.readout, self.task, self.task.dev)
        return {"value": scored.value, "ece": scored.ece}


class TextSet(NamedTuple):
    """Rows of text as a language model's objective takes them."""

    task: Texts
    objective: Objective
    lessons: Sequence[Lesson]
    dev: Sequence[Lesson]
    rows: Sequence[Encoded]

    @classmethod
    def of(cls, model: Model, texts: Texts, *, tried: bool = True) -> "TextSet":
        """Rows for a model, by an objective that is tried out on it unless that is to be left out; raises TaskError for one that isn't a language model, SelectionError for a row without anything to learn."""
        if model.kind not in ("causal", "masked"):
            raise TaskError(
                f"{model.checkpoint} isn't a language model, and texts are learnt word by word: give a task with phrases or labels instead"
            )
        objective = pick_objective(model, texts.loss, texts.max_length, (), tried=tried)
        lessons, dev = (
            [objective.encode(row, f"row {number} of {split}") for number, row in enumerate(rows, 1)]
            for split, rows in (("train", texts.need("train")), ("dev", texts.dev))
        )
        return cls(texts, objective, lessons, dev, [lesson.tokens for lesson in lessons])

    @property
    def evaluated(self) -> bool:
        """Whether there are dev rows."""
        return bool(self.dev)

    @property
    def anchors(self) -> None:
        """None: answers are words."""

    def longest(self, count: int) -> "TextSet":
        """As many rows, each as long as the longest."""
        row = max(self.lessons, key=lambda lesson: len(lesson.tokens.ids))
        count = min(count, len(self.lessons))
        return self._replace(lessons=[row] * count, rows=[row.tokens] * count)

    @property
    def cut(self) -> int:
        """How many training rows lost a part of their answer at `max_length`."""
        return sum(left < whole for left, whole in (lesson.answered for lesson in self.lessons))

    def loss(self, model: Model, numbers: Sequence[int], *, precision: Any = None, reduction: str = "mean") -> Tensor:
        """Each row's mean cross-entropy of the tokens that are to be learnt, so that rows count alike."""
        with precision or nullcontext(), steady_attention():
            losses = self.objective.losses(model, [self.lessons[number] for number in numbers])
        return losses.mean() if reduction == "mean" else losses.sum()

    def score(self, model: Model) -> Figures:
        """The geometric mean of the learnt tokens' probabilities, over rows that count alike."""
        total = 0.0
        rows = [lesson.tokens for lesson in self.dev]
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        with torch.inference_mode(), steady_attention():
            for start in range(0, len(order), _SCORED):
                for piece in alike(model, rows, order[start : start + _SCORED]):
                    total += float(self.objective.losses(model, [self.dev[number] for number in piece]).sum())
        return {"value": math.exp(-total / len(rows))}


def training_set(model: Model, task: Task | Texts) -> LabelledSet | TextSet:
    """What a model is tuned on, encoded."""
    return TextSet.of(model, task) if isinstance(task, Texts) else LabelledSet.of(model, task)
