"""The loop: central differences along noise, and what they add to the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgery.checkpoints.models import steady_attention
from surgery.errors import CheckpointError, OptionError
from surgery.files import replace_json
from surgery.mezo.beginning import Tuned
from surgery.mezo.log import StepLog
from surgery.mezo.objectives import Measure, probe_step
from surgery.mezo.recipe import MezoRecipe, Pace
from surgery.mezo.trajectory import Trajectory
from surgery.mezo.walk import coefficients_of
from surgery.progress import Progress
from surgery.resuming import read_state
from surgery.tasks.readout import Encoded, collate
from surgery.tasks.scoring import score_model
from surgery.tuning.training import Scored, batches

_SILENT = 100  # steps without any slope, after which an objective is taken to be constant
_EPS = 0.05  # by which weights are moved to try out whether halves mix
_APART, _APART_IN_16_BITS = 1e-4, 0.05  # of the scores, by which they may differ then


class MezoLoop:
    """Tuned tensors on their way along a trajectory.

    Args:
        tensors: at the trajectory's end.
        trajectory: that goes on; its steps so far count from 0 on.
        state: a folder for the log, from which a stopped loop goes on; None to keep nothing.
    """

    def __init__(
        self,
        measure: Measure,
        tensors: Sequence[Tuned],
        trajectory: Trajectory,
        recipe: MezoRecipe,
        pace: Pace,
        seed: int,
        state: Path | None,
    ) -> None:
        self.measure, self.tensors, self.recipe, self.pace, self.seed = measure, tensors, recipe, pace, seed
        self.first = trajectory.steps
        whole = np.zeros((self.first + pace.steps, recipe.directions), np.float32)
        whole[: self.first] = trajectory.coefficients
        self._coefficients = whole
        self._trajectory = Trajectory(**{**vars(trajectory), "coefficients": whole})
        self.log = StepLog(state, recipe.directions)
        self.dev: list[Scored] = []
        self._dev_file = state / "dev.json" if state else None
        if self.log.coefficients:
            done = self.first + len(self.log.coefficients)
            whole[self.first : done] = self.log.coefficients
            self._walk(self.first, done)
        if self._dev_file and self._dev_file.exists():
            self.dev = read_state(self._dev_file, list[Scored])

    def run(self, progress: Progress) -> dict[str, Any]:
        """Go on to the last step; the values of the objective, and the dev examples' scores."""
        task, steps = self.measure.task, self.pace.steps
        every = max(1, steps // self.recipe.evaluations)
        done = len(self.log.coefficients)
        try:
            for step, numbers in enumerate(
                batches(len(self.measure.rows), self.recipe.batch_size, self.seed, done, steps), done
            ):
                self._step(step, numbers)
                if step + 1 == min(_SILENT, steps) and not self._coefficients[self.first : self.first + step + 1].any():
                    raise OptionError(
                        f"the `objective` was the same on both sides in all of {step + 1} steps: give one that changes, a larger `eps` or a larger `batch_size`"
                    )
                if task.dev and ((step + 1) % every == 0 or step + 1 == steps):
                    self._evaluate(step + 1)
                dev = f", dev {self.dev[-1]['value']:.3f}" if self.dev else ""
                progress(step + 1, steps, f"tuning: objective {np.mean(self.log.values[-20:]):.3f}{dev}")
        finally:
            self.log.close()
        return {"losses": [round(value, 5) for value in self.log.values], "dev": self.dev}

    @property
    def coefficients(self) -> NDArray[np.float32]:
        """Of all steps, those that the trajectory had before too."""
        return self._coefficients

    def _step(self, step: int, numbers: Sequence[int]) -> None:
        at, eps = self.first + step, self.pace.eps
        pairs = [self.measure.values(numbers, (eps, -eps), at, d) for d in range(self.recipe.directions)]
        found = coefficients_of(self.pace.rate_at(step), [(plus - minus) / (2 * eps) for plus, minus in pairs])
        self._coefficients[at] = found
        self.log.append(found, float(np.mean(pairs)))
        self._walk(at, at + 1)

    def _walk(self, first: int, stop: int) -> None:
        terms = self._trajectory.terms(first, stop)
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.walk(terms)

    def _evaluate(self, step: int) -> None:
        measure = self.measure
        if any(entry["step"] == step for entry in self.dev):
            return
        with measure.shifted.at((0.0,), 1):
            result = score_model(measure.model, measure.readout, measure.task, measure.task.dev)
        self.dev.append({"step": step, "value": result.value, "ece": result.ece})
        if self._dev_file:
            replace_json(self._dev_file, self.dev)


def check_halves(measure: Measure) -> None:
    """Try out that each half of a batch is read at its own weights, as it is when it is alone.

    Raises CheckpointError where the other half changes it, as where tokens are routed to experts, and, naming it, for a
    module that holds tuned weights and isn't called.
    """
    shifted, model, lengths = measure.shifted, measure.model, [len(row.ids) for row in measure.rows]
    pair = [int(np.argmax(lengths)), int(np.argmin(lengths))]
    if callable(measure.objective):
        measure.values(pair[:1], (_EPS,), probe_step(0))
    else:
        rows = [measure.rows[number] for number in pair]
        if model.padding_matters:
            rows[1] = rows[0]
        together = _scores(measure, rows, (_EPS, -_EPS))
        alone = torch.cat([_scores(measure, [row], (scale,)) for row, scale in zip(rows, (_EPS, -_EPS), strict=True)])
        exact = model.module.dtype in (torch.float32, torch.float64)
        apart, size = float((together - alone).abs().max()), float(alone.abs().max())
        if not apart <= (_APART if exact else _APART_IN_16_BITS) * size:
            raise CheckpointError(
                f"a {type(model.module).__name__} mixes the halves of a batch (scores of {size:.2g} differ by {apart:.1g}), so both "
                "signs can't be read in one pass: take another architecture"
            )
    if shifted.unused:
        raise CheckpointError(
            f"module {shifted.unused[0]} holds tuned weights and is never called, so they can't be moved for it: leave it out (`exclude`)"
        )


def _scores(measure: Measure, rows: Sequence[Encoded], scales: Sequence[float]) -> Tensor:
    batch, positions = collate(measure.model, rows)
    with measure.shifted.at(scales, len(rows), probe_step(0)), steady_attention(), torch.no_grad():
        return measure.readout.logits(measure.model.module, batch, positions).float()
