"""What is measured at moved weights: a number from label scores, or from anything that a function makes of the model."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from surgery.checkpoints.models import Model, steady_attention
from surgery.errors import OptionError, SurgeryError
from surgery.mezo.forward import ShiftedModel
from surgery.mezo.recipe import OBJECTIVES, Objective
from surgery.tasks.examples import Example
from surgery.tasks.readout import Encoded, Readout, alike, collate
from surgery.tasks.scoring import Score
from surgery.tasks.task import Task


class Measure:
    """The objective of a task's examples at moved weights; smaller is better.

    Args:
        objective: `loss` (cross-entropy), `accuracy` or `f1`, which are taken negative, or a function of the model and
            a batch of examples.
        accumulate: pieces that a batch goes through the model in.

    Raises:
        OptionError: another objective.
    """

    def __init__(
        self,
        shifted: ShiftedModel,
        model: Model,
        readout: Readout,
        task: Task,
        objective: str | Objective = "loss",
        accumulate: int = 1,
    ) -> None:
        if isinstance(objective, str) and objective not in OBJECTIVES:
            raise OptionError(f"`objective` {objective} isn't one of {', '.join(OBJECTIVES)}")
        self.shifted, self.model, self.readout, self.task = shifted, model, readout, task
        self.objective, self.accumulate = objective, accumulate
        self.examples: Sequence[Example] = task.need("train")
        self.rows: Sequence[Encoded] = readout.encode(self.examples)
        self.targets = torch.tensor(task.targets(self.examples))

    @property
    def smooth(self) -> bool:
        """Whether small movements change it by little."""
        return self.objective not in ("accuracy", "f1")

    def values(self, numbers: Sequence[int], scales: Sequence[float], step: int = 0, direction: int = 0) -> list[float]:
        """The objective on the examples of these numbers at the weights moved by each scale.

        Raises SurgeryError where one of them is NaN or infinite.
        """
        rank, ranks = _ranks()
        own = list(numbers)[rank::ranks] or list(numbers)[:1]
        if callable(self.objective):
            found = [self._call(self.objective, own, scale, step, direction) for scale in scales]
        else:
            own_objective = self._of_loss if self.objective == "loss" else self._of_score
            found = [own_objective(scores, own) for scores in self.scores(own, scales, step, direction)]
        if ranks > 1:
            found = _mean_over_ranks(found, len(own))
        if not np.isfinite(found).all():
            where = (
                f"at step {step + 1}: lower `rate`" if step < _PROBES else "at the base: no weights can be tuned by it"
            )
            raise SurgeryError(f"the objective became {found[0]} {where}")
        return found

    def both(
        self, numbers: Sequence[int], scales: Sequence[float], step: int, direction: int = 0
    ) -> tuple[list[float], list[float]]:
        """The objective, and the loss from the same passes, which is the objective's own for one that is a function."""
        if callable(self.objective) or self.objective == "loss":
            found = self.values(numbers, scales, step, direction)
            return found, found
        scores = self.scores(numbers, scales, step, direction)
        return [self._of_score(one, numbers) for one in scores], [self._of_loss(one, numbers) for one in scores]

    def scores(self, numbers: Sequence[int], scales: Sequence[float], step: int, direction: int) -> Tensor:
        """Label scores [scales, examples, labels] at the weights moved by each scale, on the CPU."""
        found = torch.empty(len(scales), len(numbers), len(self.task.labels), dtype=torch.float64)
        place = {number: at for at, number in enumerate(numbers)}
        pieces = np.array_split(np.asarray(numbers), min(self.accumulate, len(numbers)))
        for piece in (part for numbered in pieces for part in alike(self.model, self.rows, numbered.tolist())):
            rows = [self.rows[number] for number in piece] * len(scales)
            batch, positions = collate(self.model, rows)
            with self.shifted.at(scales, len(rows), step, direction), steady_attention(), torch.no_grad():
                logits = self.readout.logits(self.model.module, batch, positions)
            found[:, [place[number] for number in piece]] = logits.view(len(scales), len(piece), -1).double().cpu()
        return found

    def _of_loss(self, scores: Tensor, numbers: Sequence[int]) -> float:
        return float(F.cross_entropy(scores, self.targets[list(numbers)]))

    def _of_score(self, scores: Tensor, numbers: Sequence[int]) -> float:
        targets: NDArray = self.targets[list(numbers)].numpy()
        score = Score(self.task.labels, self.task.metric, scores.numpy(), targets)
        return -(score.accuracy if self.objective == "accuracy" else score.f1)

    def _call(
        self, objective: Callable[[Any, Any], float], numbers: Sequence[int], scale: float, step: int, direction: int
    ) -> float:
        with self.shifted.at((scale,), 1, step, direction), torch.no_grad():
            return float(objective(self.model, [self.examples[number] for number in numbers]))


_PROBES = 0xF0000000  # steps from here on are those of probes


def probe_step(number: int) -> int:
    """The step whose noise a probe uses, which no step of the tuning has."""
    return _PROBES + number


def _ranks() -> tuple[int, int]:
    import torch.distributed as ranks

    return (ranks.get_rank(), ranks.get_world_size()) if ranks.is_available() and ranks.is_initialized() else (0, 1)


def _mean_over_ranks(values: Sequence[float], count: int) -> list[float]:
    import torch.distributed as ranks

    total = torch.tensor([*(value * count for value in values), count], dtype=torch.float64)
    ranks.all_reduce(total)
    return (total[:-1] / total[-1]).tolist()
