"""Which rules explain failures: a sparse regression of a text's failed masks on the rules of its tree."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from probes.emergence.scores import Rate, TextFailures
from probes.intervals import bootstrap, r_squared, squares

_TEST = 0.25
_FOLDS, _PENALTIES = 5, 30


@dataclass(frozen=True)
class Explanation:
    """How well rules explain a number of each text, on texts held out.

    Attributes:
        target: `failed masks` or `excess loss`, both summed over a text's masks.
        r2: of a lasso on how often each ranked rule is used; its penalty is chosen by cross-validation in training.
        count_r2: of a straight line on the number of rules used alone, which is a text's length in other words.
        nonzero: rules that have a coefficient, of `rules`; `train`, `test`: numbers of texts.
        coefficients: what one use of a rule adds, for the rules that have one, the largest first.
    """

    target: str
    r2: Rate
    count_r2: Rate
    nonzero: int
    rules: int
    train: int
    test: int
    coefficients: tuple[tuple[str, float], ...]


def explain(
    names: tuple[str, ...], uses: Any, total: Int64[np.ndarray, " N"], failures: TextFailures, *, seed: int
) -> tuple[Explanation, ...]:
    """Regress failed masks and excess loss of texts on the uses of rules.

    Args:
        uses: of the rules that are ranked, sparse [N, R]; `total` counts all rules of each tree.
    """
    order = np.random.default_rng(seed).permutation(len(total))
    test, train = np.split(order, [max(1, int(_TEST * len(order)))])
    targets = {"failed masks": failures.hard * failures.masks, "excess loss": failures.excess * failures.masks}
    columns = np.asarray(uses.todense(), np.float64)
    return tuple(_explained(name, y, names, columns, total, train, test, seed) for name, y in targets.items())


def _explained(
    target: str,
    y: Float64[np.ndarray, " N"],
    names: tuple[str, ...],
    columns: Float64[np.ndarray, "N R"],
    total: Int64[np.ndarray, " N"],
    train: Int64[np.ndarray, " train"],
    test: Int64[np.ndarray, " test"],
    seed: int,
) -> Explanation:
    from sklearn.linear_model import LassoCV, LinearRegression

    scale = columns[train].std(0)
    scale[scale == 0] = 1.0
    lasso = LassoCV(cv=_FOLDS, alphas=_PENALTIES, random_state=seed, max_iter=5000, tol=1e-3)
    if np.ptp(y[train]) == 0:  # nothing to explain
        predicted, weights = np.full(len(test), y[train].mean()), np.zeros(len(names))
    else:
        lasso.fit(columns[train] / scale, y[train])
        predicted, weights = lasso.predict(columns[test] / scale), lasso.coef_ / scale
    line = LinearRegression().fit(total[train, None], y[train]).predict(total[test, None])
    largest = [i for i in np.argsort(-np.abs(weights), kind="stable") if weights[i]]
    return Explanation(
        target,
        _held_out(predicted, y[test], seed),
        _held_out(line, y[test], seed),
        int(np.count_nonzero(weights)),
        len(names),
        len(train),
        len(test),
        tuple((names[i], float(weights[i])) for i in largest),
    )


def _held_out(predicted: Float64[np.ndarray, " test"], y: Float64[np.ndarray, " test"], seed: int) -> Rate:
    sums = squares(predicted, y, np.arange(len(y)), len(y))
    value, low, high, _ = bootstrap(sums[None], lambda drawn: np.nan_to_num(r_squared(drawn)), seed)
    return Rate(value, low, high)
