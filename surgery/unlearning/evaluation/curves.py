"""What `verify` draws: accuracy and membership against the number of keys, keys that classes share, classes in turn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from surgery.progress import Progress, silent
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.evaluation.evaluator import Evaluator, mean
from surgery.unlearning.evaluation.roc_area import RocArea
from surgery.unlearning.evaluation.suspects import confidences
from surgery.unlearning.forget_set import ForgetSet
from surgery.unlearning.values import count

_POINTS = 12


def sweep_keys(
    bottleneck: Bottleneck,
    positions: np.ndarray,
    evaluator: Evaluator,
    *,
    rank: str,
    answer: str,
    seed: int,
    device: torch.device,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Masks of growing size, by one ranking: from no key to every key that the forget rows select."""
    forgotten = ForgetSet(bottleneck, positions, evaluator.classes, device, silent)
    scores, active = forgotten.scores(rank), len(forgotten.active)
    suspects = evaluator.suspects()
    area = RocArea(len(suspects.members), len(suspects.others), seed) if suspects else None
    points = []
    for number in np.unique(np.linspace(0, active, _POINTS).astype(int)).tolist():
        masked = bottleneck.masked(forgotten.best(scores, number) if number else np.empty(0, np.int64), answer)
        whole = evaluator.point(masked)
        point: dict[str, Any] = {key: whole[key] for key in ("forget_accuracy", "retain_accuracy")}
        if suspects and area:
            seen = [confidences(masked, rows, device) for rows in (suspects.members, suspects.others)]
            point["membership"] = area.of(*seen)["auc"]
        points.append({"keys": number, "share": number / active, **point})
        progress(number, active, "masking more and more keys")
    return points


def shared_keys(bottleneck: Bottleneck) -> list[list[float]]:
    """Entry (a, b): the share of class a's selections that fall on pairs which class b selects too. [classes, classes]."""
    training = bottleneck.need_training()
    codebooks, keys, classes = bottleneck.entries.shape
    shared, total = np.zeros((classes, classes)), np.zeros((classes, 1))
    for codebook in range(codebooks):
        ids = training.ids[:, codebook : codebook + 1]
        selections = count(ids, training.targets, keys, classes)[0].T.astype(np.float64)
        shared += selections @ (selections > 0).T
        total += selections.sum(1, keepdims=True)
    return (shared / np.maximum(total, 1)).tolist()


def in_turn(states: Sequence[Bottleneck], evaluator: Evaluator, device: torch.device) -> list[dict[str, Any]]:
    """Bottlenecks after each of several edits, each beside its own refit.

    Accuracy on the classes forgotten so far, and on those that are never forgotten, so that the turns can be compared.
    """
    points = []
    for state in states:
        gone = {name for edit in state.history for name in edit["forget"]}
        so_far = np.isin(evaluator.rows.targets, [i for i, name in enumerate(state.classes) if name in gone])
        refitted = state.refitted(np.arange(len(state.need_training())), device=device)
        point: dict[str, Any] = {"forgotten": [str(edit["forget"]) for edit in state.history], "classes": len(gone)}
        for name, model in (("after", state), ("refitted", refitted)):
            right = evaluator.answer(model, evaluator.rows).targets == evaluator.rows.targets
            point[name] = {
                "forget_accuracy": mean(right[so_far]),
                "retain_accuracy": mean(right[~evaluator.forgotten]),
            }
        points.append(point)
    return points
