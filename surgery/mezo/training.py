"""The loop: central differences along noise, and what they add to the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgery.errors import CheckpointError
from surgery.files import replace_json
from surgery.mezo.beginning import Tuned
from surgery.mezo.log import StepLog
from surgery.mezo.objectives import Measure, probe_step
from surgery.mezo.recipe import MezoRecipe, Pace
from surgery.mezo.trajectory import Trajectory
from surgery.mezo.walk import coefficients_of
from surgery.progress import Progress
from surgery.resuming import read_state
from surgery.tasks.scoring import score_model
from surgery.tuning.training import Scored, batches

_APART = 1e-3  # of what a movement does, by which two passes over the same halves may differ


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
    """Try out that each half of a batch is read at its own weights: halves exchanged, with signs exchanged, must give the same.

    Raises CheckpointError where one half's rows change the other's, as where tokens are routed to experts, and, naming
    it, for a module that holds tuned weights and isn't called.
    """
    shifted, lengths = measure.shifted, [len(row.ids) for row in measure.rows]
    one, two = int(np.argmax(lengths)), int(np.argmin(lengths))
    eps = 1e-2
    if measure.model.padding_matters or callable(measure.objective):
        measure.values([one], (eps, -eps), probe_step(0))
        _check_used(shifted.unused)
        return
    rows = [measure.rows[one], measure.rows[two]]
    found = []
    from surgery.checkpoints.models import steady_attention
    from surgery.tasks.readout import collate

    for given, scales in ((rows, (eps, -eps)), (rows[::-1], (-eps, eps)), (rows[::-1], (eps, -eps))):
        with shifted.at(scales, 2, probe_step(0)), steady_attention(), torch.no_grad():
            found.append(measure.readout.logits(measure.model.module, *collate(measure.model, given)).float())
    _check_used(shifted.unused)
    apart = float((found[0] - found[1].flip(0)).abs().max())
    if not apart <= _APART * float((found[0] - found[2].flip(0)).abs().max()) + 1e-5 * float(found[0].abs().max()):
        raise CheckpointError(
            f"a {type(measure.model.module).__name__} mixes the halves of a batch (by {apart:g}), so both signs can't be read in one pass: "
            "tune a region of other modules (`include`)"
        )


def _check_used(unused: Sequence[str]) -> None:
    if unused:
        raise CheckpointError(
            f"module {unused[0]} holds tuned weights and is never called, so they can't be moved for it: leave it out (`exclude`)"
        )
