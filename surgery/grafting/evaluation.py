"""Evaluation of a graft on the test examples: scores, agreement with the tuned model, the gain recovered and its interval."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgery.checkpoints.models import Model
from surgery.progress import Progress
from surgery.tasks.readout import Readout
from surgery.tasks.scoring import Score, predict
from surgery.tasks.task import Task


class Evaluator:
    """Scores a model on the test examples as it is at the moment, and sets one score against another.

    Attributes:
        base, tuned: the scores that a graft's are held against, set by who calls it.
    """

    base: Score
    tuned: Score

    def __init__(self, model: Model, readout: Readout, task: Task, batch_size: int, progress: Progress) -> None:
        self._model, self._readout, self._task = model, readout, task
        self._rows, self._targets = readout.encode(task.test), np.array(task.targets(task.test))
        self._batch_size, self._progress = batch_size, progress

    def score(self, line: str) -> Score:
        """The model's score as it stands; `line` says in the progress what is scored."""

        def progress(done: int, total: int, _: str) -> None:
            self._progress(done, total, f"scoring {line}")

        logits = predict(self._model, self._readout, self._rows, self._batch_size, progress)
        return Score(self._task.labels, self._task.metric, logits, self._targets)

    def gain(self, score: Score) -> float | None:
        """(score - base) / (tuned - base) in the task's metric; None unless tuning gained."""
        gained = self.tuned.value - self.base.value
        return (score.value - self.base.value) / gained if gained > 0 else None

    def against(self, score: Score) -> dict[str, Any]:
        """Set a score against the tuned model's and the base's, as a report holds it."""
        return {
            "agreement": score.agreement_with(self.tuned),
            "gain_recovered": self.gain(score),
            "gain_interval": gain_interval(self.base, self.tuned, score),
        }

    def point(self, method: str, weights: int, movable: int, score: Score) -> dict[str, Any]:
        """A method's figures at a number of weights, a row of a report's `points`."""
        return {
            "method": method,
            "weights": weights,
            "sparsity": weights / movable,
            "accuracy": score.accuracy,
            "f1": score.f1,
            "ece": score.ece,
            **self.against(score),
        }

    def accuracy_with(self, bias: NDArray) -> float:
        """The base's accuracy once a constant per label, fitted on training examples, is added to its scores."""
        return float(((self.base.logits + bias).argmax(1) == self._targets).mean())

    def summary(self, graft: Score) -> dict[str, dict[str, Any]]:
        """The figures of base, tuned and graft, with their reliability bins."""
        scores = {"base": self.base, "tuned": self.tuned, "graft": graft}
        figures = {
            name: {**score.figures(), "reliability": asdict(score.reliability)} for name, score in scores.items()
        }
        figures["graft"] |= self.against(graft)
        return figures


def gain_interval(base: Score, tuned: Score, other: Score) -> tuple[float, float] | None:
    """A 95% bootstrap interval of (other - base) / (tuned - base) over test examples, paired; None where tuned - base may be 0."""
    random, parts = np.random.default_rng(0), []
    for _ in range(10):  # in parts, for memory
        rows = random.integers(len(base.targets), size=(100, len(base.targets)))
        parts.append([score.resampled(rows) for score in (base, other, tuned)])
    low, middle, high = np.concatenate(parts, axis=1)
    gained = high - low
    if (gained <= 0).mean() > 0.025:
        return None
    kept = gained > 0
    bounds = np.percentile((middle - low)[kept] / gained[kept], [2.5, 97.5])
    return float(bounds[0]), float(bounds[1])
