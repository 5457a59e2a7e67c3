"""The membership attack by likelihood ratios, for which shadow bottlenecks learn and forget as the one attacked did."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from surgery.progress import Progress
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.evaluation.suspects import Suspects, concatenate, confidences
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import MASKS
from surgery.unlearning.training_rows import TrainingRows


def likelihood_ratios(
    before: Bottleneck,
    retained: TrainingRows,
    suspects: Suspects,
    edit: Mapping[str, Any],
    targets: dict[str, NDArray],
    *,
    shadows: int,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, Float[np.ndarray, " N"]]:
    """Per-example likelihood ratios (LiRA, Carlini et al. 2022; for unlearning, Hayes et al. 2024).

    Each shadow bottleneck learns the retained rows and a random half of the suspects, and then forgets that half as the
    edit did. So every suspect has confidences from shadows that learnt and forgot it, and from shadows that never saw
    it; the score is the log ratio of two Gaussians at the target's confidence, with a mean for each suspect and one
    variance for all, for want of shadows.

    Args:
        edit: how it was forgotten: `via`, `rank`, `answer`, and `share`: of the active pairs (or of the examples).
        targets: name -> confidences of the suspects under the bottleneck attacked; the name `before` is attacked by the
            shadows as they were before they forgot.
    """
    pool = suspects.both
    learnt: list[NDArray] = []
    seen = {"before": np.empty((shadows, len(pool))), "after": np.empty((shadows, len(pool)))}
    for shadow in range(shadows):
        random = np.random.default_rng([seed, 5, shadow])
        inside = random.permutation(len(pool)) < len(pool) / 2
        learnt.append(inside)
        training = concatenate(retained, pool.take(np.flatnonzero(inside)))
        trained = replace(before, selector=before.opened, training=training, history=())
        settings = {**trained.settings, "class_rows": trained.class_rows()}
        trained = replace(trained, entries=trained.refit_entries(device=device), settings=settings)
        seen["before"][shadow] = confidences(trained, pool, device)
        forgot = _forget_again(trained, len(retained), edit, seed + shadow, device)
        seen["after"][shadow] = confidences(forgot, pool, device)
        progress(shadow + 1, shadows, "shadow bottlenecks")
    inside = np.stack(learnt)
    return {
        name: _ratio(seen["before" if name == "before" else "after"], inside, value) for name, value in targets.items()
    }


def _forget_again(
    trained: Bottleneck, retained: int, edit: Mapping[str, Any], seed: int, device: torch.device
) -> Bottleneck:
    rows = np.arange(retained, len(trained.need_training()))
    method, share = edit["via"], edit["share"]
    if method not in MASKS:
        return trained.refitted(np.arange(retained), device=device)
    options: dict[str, Any] = {}
    ids = trained.need_training().ids[rows]
    if method == "examples":
        options["examples"] = max(1, round(share * len(rows)))
    else:
        active = len(
            np.unique(ids.astype(np.int64) + np.arange(ids.shape[1])[:, None] * trained.selector.keys.shape[1])
        )
        options |= {"keys": max(1, round(share * active)), "rank": edit["rank"]}
    eraser = unlearn(trained, rows=rows, method=method, answer=edit["answer"], seed=seed, device=str(device), **options)
    return trained.masked(eraser.pairs, edit["answer"])


def _ratio(seen: NDArray, inside: NDArray, value: NDArray) -> NDArray:
    """Log N(value; mean in, sd in) - log N(value; mean out, sd out)."""

    def score(chosen: NDArray) -> NDArray:
        counts = chosen.sum(0)
        mean = np.where(chosen, seen, 0).sum(0) / np.maximum(counts, 1)
        # A suspect that no shadow saw (or every one did) has the mean of all.
        mean = np.where(counts > 0, mean, seen[chosen].mean() if chosen.any() else 0)
        spread = np.sqrt(
            (np.where(chosen, seen - mean, 0) ** 2).sum() / max(1, int(chosen.sum()) - int((counts > 0).sum()))
        )
        spread = max(float(spread), 1e-9)
        return -0.5 * ((value - mean) / spread) ** 2 - np.log(spread)

    return score(inside) - score(~inside)
