"""A model in memory read for a task: label scores, losses, and gradients handed over tensor by tensor."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoints.models import Model, steady_attention
from surgery.tasks.readout import Encoded, Readout, alike, collate

_PIECE = 16  # rows that go through the model at once while gradients are taken
_STEP = 16  # examples of a tuning step, the unit that work is counted in
_FORWARD, _BACKWARD = 1, 2  # what each costs, in forward passes


def steps_of(work: int) -> int:
    """Work in tuning steps of 16 examples."""
    return round(work / (_STEP * (_FORWARD + _BACKWARD)))


class TaskModel:
    """A model with its readout.

    Attributes:
        work: forward passes of one example so far; a backward pass counts as two.
    """

    work: int = 0

    def __init__(self, model: Model, readout: Readout) -> None:
        self.model, self.readout = model, readout

    def scores(self, rows: Sequence[Encoded]) -> Float[Tensor, "rows labels"]:
        """Label scores as the model stands."""
        self.work += _FORWARD * len(rows)
        parts = alike(self.model, rows, range(len(rows)))
        with torch.inference_mode():
            scores = torch.cat([self._logits(rows, part) for part in parts])
        return scores[torch.tensor([number for part in parts for number in part], device=scores.device).argsort()]

    def loss(self, rows: Sequence[Encoded], targets: Tensor) -> float:
        """Mean cross-entropy to label numbers [rows] or to probabilities [rows, labels]; rows of like length share a batch."""
        numbers = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        total = 0.0
        for start in range(0, len(numbers), 32):
            piece = numbers[start : start + 32]
            scores = self.scores([rows[i] for i in piece]).cpu()
            wanted = targets[piece] if targets.dim() == 1 else targets[piece].to(scores.dtype)
            total += float(F.cross_entropy(scores, wanted, reduction="sum"))
        return total / len(numbers)

    def gradients(
        self, names: Sequence[str], rows: Sequence[Encoded], targets: Tensor, take: Callable[[str, Tensor], None]
    ) -> None:
        """Give `take` each tensor's name and the gradient of the mean cross-entropy, piece by piece of the rows, to be summed.

        Rows go through the model in pieces of like length, so that a large batch costs the memory of a small one, and a
        tensor's gradient is dropped once it is taken.
        """
        self.work += (_FORWARD + _BACKWARD) * len(rows)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
        with self.model.taking(names, take) as backward:
            for start in range(0, len(order), _PIECE):
                for piece in alike(self.model, rows, order[start : start + _PIECE]):
                    scores = self._logits(rows, piece)
                    loss = F.cross_entropy(scores, targets[piece].to(self.model.device), reduction="sum") / len(rows)
                    backward(loss)

    def _logits(self, rows: Sequence[Encoded], numbers: Sequence[int]) -> Float[Tensor, "numbers labels"]:
        with steady_attention():
            return self.readout.logits(self.model.module, *collate(self.model, [rows[number] for number in numbers]))
