"""What masking is measured against, on the same bottleneck: keys and cached ids stay as they are, only values change."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.values import Chosen, Push, Table, batches, toward

# One choice for all data, by held-out training rows of digits and of Fashion-MNIST.
_BETA = 0.87  # NegGrad+: the weight of retained rows; forget rows have 1 - beta
_KEEP = 0.5  # SCRUB: the weight of what the teacher says of retained rows, next to 1 for their labels
_LEAVE = 3  # SCRUB: batches of forget rows in a max-step
_RARE = 200  # NegGrad+ and SCRUB stop when one forget row in so many is answered right,
_MOST = 5  # or after so many times the recipe's epochs: a few classes at once take more than one


class Student:
    """A bottleneck whose values go on learning, at the rate, batch size and smoothing of its recipe.

    Args:
        forget: numbers of the training rows to forget.
    """

    def __init__(
        self, bottleneck: Bottleneck, forget: Int64[np.ndarray, " R"], seed: int, device: torch.device
    ) -> None:
        self._ids = bottleneck.current_ids(device=device)
        self._targets = bottleneck.need_training().targets
        self.forget, self._retained = forget, np.delete(np.arange(len(self._targets)), forget)
        self._table = Table(bottleneck.values, bottleneck.selector.states, device)
        self._chosen = Chosen(self._ids, device)
        self._classes, self._recipe = len(bottleneck.classes), bottleneck.recipe
        self._device = device
        self._random = np.random.default_rng([seed, 6])

    @property
    def values(self) -> Float32[np.ndarray, "C K Y"]:
        """What it has learnt so far."""
        return self._table.values

    @property
    def right(self) -> int:
        """How many forget rows it answers right."""
        logits, abstained = self._table.answer(self._ids[self.forget])
        return int(((logits.argmax(1) == self._targets[self.forget]) & ~abstained).sum())

    def fine_tune(self) -> None:
        """One epoch of the published objective on retained rows alone."""
        self._epoch(self._retained, self._toward(self._targets))

    def follow_random_labels(self) -> None:
        """One epoch of the published objective on all rows, each forget row with a wrong label."""
        self._epoch(np.arange(len(self._targets)), self._toward(self._disguised))

    def neggrad(self) -> None:
        """One epoch in whose batches retained rows' cross-entropy goes down, and that of as many forget rows up."""
        forget = torch.zeros(len(self._targets), 1, dtype=torch.bool, device=self._device)
        forget[torch.from_numpy(self.forget).to(self._device)] = True
        down = self._toward(self._targets)
        # Without smoothing: where a row has reached its smoothed target there is no way up.
        up = toward(self._targets, self._classes, replace(self._recipe, smoothing=0.0), self._device)

        def contrast(rows: Tensor, logits: Tensor) -> Tensor:
            return torch.where(forget[rows], (_BETA - 1) * up(rows, logits), _BETA * down(rows, logits))

        self._epoch(self._retained, contrast, beside=self.forget)

    def scrub(self) -> None:
        """A max-step and a min-step. The first max-step does nothing: as long as both agree there is no way up.

        Max-steps are as long for few rows as for many: what they move apart grows with each batch.
        """
        label, keep = self._toward(self._targets), distil(self._teacher, _KEEP * self._recipe.rate)
        leave = self._random.choice(self.forget, _LEAVE * self._recipe.batch)
        self._epoch(leave, distil(self._teacher, -self._recipe.rate))
        self._epoch(self._retained, lambda rows, logits: label(rows, logits) + keep(rows, logits))

    @cached_property
    def _teacher(self) -> Tensor:
        """Probabilities [N, classes] as they were at first."""
        return torch.from_numpy(self._table.answer(self._ids)[0]).to(self._device).softmax(1)

    @cached_property
    def _disguised(self) -> Int64[np.ndarray, " N"]:
        """Targets, but for each forget row another class, drawn among those that retained rows have."""
        targets = self._targets.copy()
        draw = self._random.random((len(self.forget), self._classes))
        draw[:, np.bincount(targets[self._retained], minlength=self._classes) == 0] -= 1
        draw[np.arange(len(draw)), targets[self.forget]] -= 2
        targets[self.forget] = draw.argmax(1)
        return targets

    def _toward(self, targets: Int64[np.ndarray, " N"]) -> Push:
        return toward(targets, self._classes, self._recipe, self._device)

    def _epoch(self, rows: Int64[np.ndarray, " M"], push: Push, beside: Int64[np.ndarray, " R"] | None = None) -> None:
        """Go through these training rows once, mixed anew; with `beside`, each batch has as many of those, drawn anew."""
        there, seed = torch.from_numpy(rows).to(self._device), int(self._random.integers(1 << 32))
        for batch in batches(len(rows), replace(self._recipe, epochs=1), seed, self._device):
            asked = there[batch]
            if beside is not None:
                drawn = torch.from_numpy(self._random.choice(beside, len(batch)))
                asked = torch.cat([asked, drawn.to(self._device)])
            self._table.step(self._chosen, asked, push)


def distil(teacher: Tensor, rate: float) -> Push:
    """Down KL(teacher || student), from the teacher's probabilities [N, classes]; up at a negative rate."""

    def push(rows: Tensor, logits: Tensor) -> Tensor:
        return rate * (teacher[rows] - logits.softmax(1))

    return push


_LESSONS: dict[str, Callable[[Student], None]] = {
    "fine-tune": Student.fine_tune,
    "random labels": Student.follow_random_labels,
    "NegGrad+": Student.neggrad,
    "SCRUB": Student.scrub,
}
_UNBOUNDED = ("NegGrad+", "SCRUB")
RIVALS = (*_LESSONS, "logit masking")


def rival(
    name: str,
    bottleneck: Bottleneck,
    positions: Int64[np.ndarray, " R"],
    classes: Int64[np.ndarray, " F"],
    seed: int,
    device: torch.device,
) -> Bottleneck | None:
    """The bottleneck after one of `RIVALS` made it forget. Its values are no longer counted, if they were.

    Fine-tuning and random labels take as many epochs as the recipe. NegGrad+ and SCRUB (both: Kurmanji et al., Towards
    Unbounded Machine Unlearning, NeurIPS 2023) would go up without end: they stop after the first epoch that leaves at
    most one forget row in 200 answered right (of single rows: no more than refitting does), or rewind to the best.

    Args:
        positions: numbers of the training rows to forget.
        classes: numbers of the classes that they are all the rows of; empty when they are single rows.

    Returns:
        None for logit masking of single rows, whose classes must stay.
    """
    if name == "logit masking":
        return _with(bottleneck, _columns_shut(bottleneck.values, classes)) if len(classes) else None
    student, lesson = Student(bottleneck, positions, seed, device), _LESSONS[name]
    if name in _UNBOUNDED:
        enough = len(positions) // _RARE if len(classes) else _right_after_refit(bottleneck, positions, device)
        return _with(bottleneck, _rewound(student, lesson, enough, _MOST * bottleneck.recipe.epochs))
    for _ in range(bottleneck.recipe.epochs):
        lesson(student)
    return _with(bottleneck, student.values)


def _rewound(
    student: Student, lesson: Callable[[Student], None], enough: int, most: int
) -> Float32[np.ndarray, "C K Y"]:
    """Values after the first epoch that leaves no more than `enough` answered right; if none does, after the best."""
    fewest, values = len(student.forget) + 1, student.values
    for _ in range(most):
        lesson(student)
        if (right := student.right) < fewest:
            fewest, values = right, student.values.copy()
        if fewest <= enough:
            break
    return values


def _columns_shut(
    values: Float32[np.ndarray, "C K Y"], classes: Int64[np.ndarray, " F"]
) -> Float32[np.ndarray, "C K Y"]:
    """These classes' values below every mean of the others', yet finite, so that probabilities stay defined."""
    shut = values.copy()
    shut[:, :, classes] = values.min() - np.ptp(values) - 1
    return shut


def _right_after_refit(bottleneck: Bottleneck, positions: Int64[np.ndarray, " R"], device: torch.device) -> int:
    training = bottleneck.need_training()
    refitted = bottleneck.refitted(np.delete(np.arange(len(training)), positions), device=device)
    found = refitted.answer_ids(training.ids[positions], device=str(device)).targets
    return int((found == training.targets[positions]).sum())


def _with(bottleneck: Bottleneck, values: Float32[np.ndarray, "C K Y"]) -> Bottleneck:
    learnt = {"values": "sgd", "sgd": asdict(bottleneck.recipe), "class_rows": None}
    return replace(bottleneck, table=values, settings={**bottleneck.settings, **learnt})
