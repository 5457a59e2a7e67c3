"""Pace: learning rate and eps found at the base by forward passes alone.

With g = (L(W + eps z) - L(W - eps z)) / 2 eps on a batch, a step of rate r changes the loss by -r |grad|^2 +
r^2 / 2 E[g^2] tr H in expectation, so the best one is r = |grad|^2 / (E[g^2] tr H). Two batches under the same z give
|grad|^2 = E[g g'], free of the batches' noise, and tr H = E[L(W + eps z) + L(W - eps z) - 2 L(W)] / eps^2. All this is
known no further than the probes went: at first a step is no longer than they were, r E[g^2]^(1/2) <= eps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgery.errors import OptionError
from surgery.mezo.objectives import Measure, probe_step
from surgery.mezo.recipe import MezoRecipe, Pace
from surgery.progress import Progress, silent

EPS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
_CLOSE = 0.1  # by how much a difference may change when eps falls to the next
_LEAST = 0.02  # share of E[g^2] that |grad|^2 is taken to be at least
_TRIALS = 3  # directions that eps is chosen by


@dataclass(frozen=True)
class Probed:
    """What probes found.

    Attributes:
        signal: |grad|^2 / E[g^2]. `curvature`: tr H. `size`: the root mean square of g.
    """

    rate: float
    eps: float
    signal: float
    curvature: float
    size: float


def find_pace(
    measure: Measure, recipe: MezoRecipe, seed: int, progress: Progress = silent
) -> tuple[Pace, dict[str, Any]]:
    """The pace of a recipe: given numbers, or those that probes find; and what the probes found, for the report.

    Raises OptionError for an objective that no probe changes.
    """
    if recipe.rate and recipe.eps:
        return Pace(recipe.rate, recipe.eps, recipe.steps, recipe.warmup, recipe.schedule == "linear"), {}
    count, size = len(measure.rows), min(recipe.batch_size, len(measure.rows))
    order = np.random.default_rng([seed, 1]).permutation(count).tolist()
    batches = [order[:size], order[size : 2 * size] or order[:size]]
    probed = _probe(measure, recipe, batches, progress)
    rate = recipe.rate or probed.rate * recipe.directions * (1 - recipe.momentum)
    pace = Pace(rate, probed.eps, recipe.steps, recipe.warmup, recipe.schedule == "linear")
    return pace, {**vars(probed), "probes": recipe.probes}


def _probe(measure: Measure, recipe: MezoRecipe, batches: Sequence[list[int]], progress: Progress) -> Probed:
    eps = recipe.eps or _find_eps(measure, batches[0], progress)
    still = [measure.both(batch, (0.0,), probe_step(0))[1][0] for batch in batches]
    slopes, losses, bends = (np.empty((recipe.probes, 2)) for _ in range(3))
    for k in range(recipe.probes):
        for b, batch in enumerate(batches):
            (plus, minus), (above, below) = measure.both(batch, (eps, -eps), probe_step(k))
            slopes[k, b], losses[k, b] = (plus - minus) / (2 * eps), (above - below) / (2 * eps)
            bends[k, b] = (above + below - 2 * still[b]) / eps**2
        progress(k + 1, recipe.probes, "probing the rate")
    if not slopes.any():
        raise OptionError(
            f"the `objective` is the same at all {2 * slopes.size} points where it was probed, {eps:g} from the base: "
            "give one that changes, a larger `eps` or a larger `batch_size`"
        )
    curvature = float(bends.mean()) if bends.mean() > 0 else float(np.abs(bends).mean())
    size, signal = float(np.sqrt((slopes**2).mean())), _signal(slopes)
    loss_size = float(np.sqrt((losses**2).mean()))
    # The movement that suits the loss, made with another objective's slopes, by as much less as these tell.
    rate = signal / curvature * loss_size / size if curvature else 0.0
    if not rate:
        raise OptionError("the objective has no curvature where it was probed: give `rate` by hand")
    return Probed(min(rate, eps / size), eps, signal, curvature, size)


def _signal(slopes: NDArray) -> float:
    """|grad|^2 / E[g^2] of slopes [directions, 2 batches]."""
    return float(np.clip((slopes[:, 0] * slopes[:, 1]).mean() / (slopes**2).mean(), _LEAST, 1.0))


def _find_eps(measure: Measure, batch: list[int], progress: Progress) -> float:
    """The largest eps at which central differences still are those of the next smaller one.

    For an objective that moves in steps: the smallest at which half of the differences aren't zero.
    """
    slopes = np.empty((len(EPS), _TRIALS))
    for e, eps in enumerate(EPS):
        for k in range(_TRIALS):
            plus, minus = measure.values(batch, (eps, -eps), probe_step(k))
            slopes[e, k] = (plus - minus) / (2 * eps)
        progress(e + 1, len(EPS), "probing eps")
    if not measure.smooth:
        seen = (slopes != 0).mean(1) >= 0.5
        return EPS[int(seen.argmax()) if seen.any() else len(EPS) - 1]
    changes = np.sqrt(((slopes[1:] - slopes[:-1]) ** 2).mean(1)) / np.maximum(
        1e-30, np.sqrt((slopes[:-1] ** 2).mean(1))
    )
    close = np.flatnonzero(changes <= _CLOSE)
    return EPS[1 + int(close[-1] if len(close) else changes.argmin())]
