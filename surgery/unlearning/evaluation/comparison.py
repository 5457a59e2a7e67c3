"""The bottlenecks that a report compares: before and after the edits, refitted without the rows, and the baselines."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64

from surgery.progress import Progress
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.evaluation.baselines import BASELINES, Baseline
from surgery.unlearning.evaluation.student import Student

_RARE = 200  # an unbounded baseline stops when one forget row in so many is answered right,
_MOST = 5  # or after so many times the recipe's epochs: a few classes at once take more than one

Models = dict[str, Bottleneck]


def compared(
    before: Bottleneck | None,
    after: Bottleneck,
    positions: Int64[np.ndarray, " R"],
    classes: Sequence[int],
    *,
    baselines: bool,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> tuple[Models, dict[str, float]]:
    """Bottlenecks by name, in the order of the report, and the seconds that refitting and each baseline took.

    Args:
        before: None where it isn't at hand; there is nothing for a baseline to start from then.
        positions, classes: numbers of the forgotten training rows of `before`, and of forgotten classes.
    """
    models: Models = {"after": after} if before is None else {"before": before, "after": after}
    seconds = {}
    timed = time.perf_counter()
    models["refitted"] = after.refitted(np.arange(len(after.need_training())), device=device)
    seconds["refitted"] = time.perf_counter() - timed
    if before is None or not baselines:
        return models, seconds
    for baseline in BASELINES:
        progress(len(models), len(BASELINES) + 3, f"baseline {baseline.name}")
        timed = time.perf_counter()
        taught = run_baseline(baseline, before, positions, np.array(classes, np.int64), seed, device)
        if taught is not None:
            models[baseline.name], seconds[baseline.name] = taught, time.perf_counter() - timed
    return models, seconds


def run_baseline(
    baseline: Baseline,
    bottleneck: Bottleneck,
    positions: Int64[np.ndarray, " R"],
    classes: Int64[np.ndarray, " F"],
    seed: int,
    device: torch.device,
) -> Bottleneck | None:
    """The bottleneck after a baseline made it forget. Its values are no longer counted, if they were.

    Unbounded baselines stop after the first epoch that leaves at most one forget row in 200 answered right (of single rows:
    no more than refitting does), or rewind to the best.

    Args:
        positions: numbers of the training rows to forget.
        classes: numbers of the classes that they are all the rows of; empty when they are single rows.

    Returns:
        None where single rows are to be forgotten by a baseline for classes only.
    """
    if baseline.classes_only and not len(classes):
        return None
    student = Student(bottleneck, positions, classes, seed, device)
    usual = bottleneck.recipe.epochs
    if not baseline.unbounded:
        return student.learn(baseline.lesson, baseline.epochs or usual)
    enough = len(positions) // _RARE if len(classes) else _right_after_refit(bottleneck, positions, device)
    return student.learn_until(baseline.lesson, enough, _MOST * usual)


def _right_after_refit(bottleneck: Bottleneck, positions: Int64[np.ndarray, " R"], device: torch.device) -> int:
    training = bottleneck.need_training()
    refitted = bottleneck.refitted(np.delete(np.arange(len(training)), positions), device=device)
    targets = refitted.answer_ids(training.ids[positions], device=str(device)).targets
    return int((targets == training.targets[positions]).sum())
