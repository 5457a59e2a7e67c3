"""Evaluator: one set of test rows, put to any bottleneck with the same keys."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surgery.unlearning.bottleneck import Answer, Bottleneck
from surgery.unlearning.evaluation.suspects import Suspects
from surgery.unlearning.features.reading import targets_of
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.training_rows import TrainingRows
from surgery.unlearning.values import Chosen, Table, batches, toward

RELEARN = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Evaluator:
    """Test rows with the keys they select, and which of them are of forgotten classes.

    Args:
        bottleneck: any with the keys in question.
        classes: numbers of the forgotten classes; empty for single rows.
        removed: the forgotten training rows, where they are known: for single rows they are what is asked about.

    Raises:
        TaskError: no labels, or one that training never saw.
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        rows: Rows,
        classes: Sequence[int],
        removed: TrainingRows | None,
        device: torch.device,
    ) -> None:
        targets = targets_of(bottleneck.classes, rows.labels)
        self.classes = np.array(classes, np.int64)
        self.removed, self._names, self._device = removed, bottleneck.classes, device
        ids = bottleneck.opened.select(bottleneck.checked(rows.features), top=bottleneck.settings["top"], device=device)
        self.rows = TrainingRows(rows.features, ids, targets, rows.digests, np.empty(0, np.uint64))
        self.forgotten = np.isin(targets, self.classes)

    def answer(self, bottleneck: Bottleneck, rows: TrainingRows) -> Answer:
        """What a bottleneck says of rows whose keys are known for when all are open."""
        ids = bottleneck.selector.reselect(rows.features, rows.ids, device=self._device)
        return bottleneck.answer_ids(ids, device=str(self._device))

    def point(self, bottleneck: Bottleneck) -> dict[str, Any]:
        """Accuracy on what was forgotten, on the rest, and of each class; an abstained row counts as wrong."""
        answer = self.answer(bottleneck, self.rows)
        right = answer.targets == self.rows.targets
        if len(self.classes):
            forget = mean(right[self.forgotten])
        else:
            gone = self.removed
            forget = None if gone is None else mean(self.answer(bottleneck, gone).targets == gone.targets)
        per_class = {str(name): mean(right[self.rows.targets == index]) for index, name in enumerate(self._names)}
        return {
            "forget_accuracy": forget,
            "retain_accuracy": mean(right[~self.forgotten]),
            "per_class": per_class,
            "abstained": float(answer.abstained.mean()),
        }

    def suspects(self) -> Suspects | None:
        """The forgotten rows, and test rows of their classes; None where either is missing."""
        if self.removed is None or not len(self.removed):
            return None
        others = np.flatnonzero(np.isin(self.rows.targets, np.unique(self.removed.targets)))
        return Suspects(self.removed, self.rows.take(others)) if len(others) > 1 else None

    def relearn(self, bottleneck: Bottleneck, removed: TrainingRows, before: float, seed: int) -> dict[str, Any]:
        """How fast forgotten classes come back when values are trained on some of their rows, drawn by seed.

        Returns:
            `curve`: accuracy on the classes' test rows by number of rows relearnt; `examples`: the smallest number with
            half of the accuracy `before` forgetting, or None.
        """
        order = np.random.default_rng([seed, 6]).permutation(len(removed))
        test = self.rows.take(np.flatnonzero(self.forgotten))
        select = bottleneck.selector.reselect
        ids = select(test.features, test.ids, device=self._device)
        curve: dict[str, float] = {}
        for number in [n for n in RELEARN if n <= len(order)]:
            again = removed.take(order[:number])
            chosen = Chosen(select(again.features, again.ids, device=self._device), self._device)
            table = Table(bottleneck.values, bottleneck.selector.states, self._device)
            push = toward(again.targets, len(self._names), bottleneck.recipe, self._device)
            for rows in batches(number, bottleneck.recipe, seed, self._device):
                table.step(chosen, rows, push)
            logits, abstained = table.answer(ids)
            curve[str(number)] = mean((logits.argmax(1) == test.targets) & ~abstained) or 0.0
        enough = [int(number) for number, accuracy in curve.items() if accuracy >= before / 2]
        return {"curve": curve, "examples": min(enough, default=None)}

    def probe(self, seed: int) -> dict[str, float | None]:
        """Accuracy of a linear probe on the frozen encoder's features, by five-fold cross-validation on the test rows."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import KFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        targets = self.rows.targets
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        folds = KFold(5, shuffle=True, random_state=seed)
        if len(targets) < 20 or any(len(np.unique(targets[rest])) < 2 for rest, _ in folds.split(targets)):
            return {"forgotten": None, "retained": None}  # too few rows, or of one class
        right = cross_val_predict(probe, self.rows.features, targets, cv=folds) == targets
        return {"forgotten": mean(right[self.forgotten]), "retained": mean(right[~self.forgotten])}


def mean(right: NDArray) -> float | None:
    """The share of rows that are right; None of no rows."""
    return float(right.mean()) if len(right) else None
