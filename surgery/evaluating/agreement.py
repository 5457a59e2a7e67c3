"""How far graders agree, beyond what chance would give."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from surgery.evaluating.measured import Facts
from surgery.evaluating.statistics import DRAWS, LEVEL

Verdicts = Sequence[Hashable | None]


def kappa(one: Verdicts, other: Verdicts) -> float | None:
    """Cohen's kappa of two graders' verdicts on the same things, those that are missing on either side left out.

    None where there is nothing to agree on, or where both always say the same and so chance explains all of it.
    """
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    observed = sum(a == b for a, b in pairs) / len(pairs)
    names = {name for pair in pairs for name in pair}
    expected = (
        sum(sum(a == name for a, _ in pairs) * sum(b == name for _, b in pairs) for name in names) / len(pairs) ** 2
    )
    return None if expected == 1 else (observed - expected) / (1 - expected)


def kappa_interval(
    one: Verdicts, other: Verdicts, clusters: Sequence[str], seed: int = 0
) -> tuple[float, float] | None:
    """95% interval of kappa, by bootstrap over clusters; None where kappa can't be told."""
    groups: dict[str, list[int]] = {}
    for number, cluster in enumerate(clusters):
        groups.setdefault(cluster, []).append(number)
    random, lists, found = np.random.default_rng(seed), list(groups.values()), []
    for _ in range(DRAWS // 8):
        numbers = [number for pick in random.integers(len(lists), size=len(lists)) for number in lists[pick]]
        value = kappa([one[n] for n in numbers], [other[n] for n in numbers])
        if value is not None:
            found.append(value)
    if len(found) < 2:
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def agreement_facts(verdicts: Mapping[str, Verdicts], clusters: Sequence[str]) -> list[Facts]:
    """A table of the agreement of each two graders; none for one grader.

    Args:
        verdicts: of each grader, point by point in the same order.
    """
    names = list(verdicts)
    rows: list[list[object]] = []
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            both = [
                (a, b) for a, b in zip(verdicts[name], verdicts[other], strict=True) if a is not None and b is not None
            ]
            share = sum(a == b for a, b in both) / len(both) if both else None
            bounds = kappa_interval(verdicts[name], verdicts[other], clusters) or (None, None)
            rows.append([f"{name} and {other}", len(both), share, kappa(verdicts[name], verdicts[other]), *bounds])
    if not rows:
        return []
    columns = ["graders", "points", "same", "kappa", "low", "high"]
    return [
        Facts(
            "Agreement of graders, point by point; kappa is 0 where it is no better than chance, 1 where it is whole.",
            columns,
            rows,
        )
    ]
