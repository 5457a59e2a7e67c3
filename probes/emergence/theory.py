"""The theory of emergence: from excess loss to failures, and from failures to competence on skills and tuples of skills.

Texts and skills are a random bipartite graph: each text draws k skills. A model fails on a share theta of the texts, which
an adversary may choose after seeing the graph. For every such choice all but a share alpha of the skills (as they are drawn)
have at most a share beta * theta of their texts in it, with beta decided by k, theta and alpha (Arora & Goyal 2023, sections 5
and 6). For draws that are independent, the worst there can be is known exactly too, and is less.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from probes.errors import ProbeOptionError

_MOST_SKILLS = 10_000  # of a text: the distribution is a table of them


def entropy(p: float) -> float:
    """Entropy of a coin, in nats."""
    return -sum(x * math.log(x) for x in (p, 1 - p) if x > 0)


def coin_divergence(q: float, p: float) -> float:
    """KL(q || p) of two coins, in nats."""
    return sum(x * math.log(x / y) for x, y in ((q, p), (1 - q, 1 - p)) if x > 0)


def theorem_bound(
    k: int | float, theta: float, alpha: float, *, tuples: int = 1, skills_per_text: float = 0.0
) -> float | None:
    """The least beta with H(theta) <= k theta KL(beta alpha || alpha) (theorem 10), or None where there is none.

    There is none where even beta = 1 / alpha, all texts of a skill, would not be too unlikely.

    Args:
        k: skills that a text draws; a mean, where texts differ.
        tuples: ask for tuples of so many skills: `tuples` texts read together hold k tuples that share no skill, and fail if
            one of them fails, so theta becomes `tuples` * theta (section 6).
        skills_per_text: of a finite graph, whose sets of skills can be chosen too: adds log 2 for each. 0: the limit of
            many texts a skill, as in the paper.
    """
    check_shares(theta=theta, alpha=alpha)
    _check_skills(k)
    theta = tupled(theta, tuples)
    wanted = entropy(theta) + skills_per_text * math.log(2)
    if k * theta * coin_divergence(1.0, alpha) <= wanted:
        return None
    low, high = 1.0, 1 / alpha
    for _ in range(100):
        middle = (low + high) / 2
        enough = k * theta * coin_divergence(min(1.0, middle * alpha), alpha) > wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def exact_bound(k: int | Int64[np.ndarray, " texts"], theta: float, alpha: float, *, tuples: int = 1) -> float:
    """The least beta that no choice of texts exceeds when skills are drawn independently and each has many texts.

    The worst choice takes the texts with most of their skills in the set, so beta * k * alpha is the mean of a binomial's
    upper share theta: CVaR_theta(Bin(k, alpha)) / (k alpha).

    Args:
        k: skills that a text draws, or how many each of some texts draws.
        tuples: as in `theorem_bound`.
    """
    check_shares(theta=theta, alpha=alpha)
    counts = np.atleast_1d(np.asarray(k, np.int64))
    for count in counts.tolist():
        _check_skills(count)
    chances = mixture(counts, alpha)
    return upper_mean(np.arange(len(chances)), chances, tupled(theta, tuples)) / (float(counts.mean()) * alpha)


def mixture(counts: Int64[np.ndarray, " texts"], alpha: float) -> Float64[np.ndarray, " values"]:
    """The probability of 0, 1, ... successes where the number of trials is one of `counts`, each as likely."""
    from scipy.stats import binom

    numbers, shares = np.unique(counts, return_counts=True)
    values = np.arange(int(numbers.max()) + 1)
    return sum(
        share / len(counts) * binom.pmf(values, number, alpha) for number, share in zip(numbers, shares, strict=True)
    )


def upper_mean(values: np.ndarray, chances: np.ndarray, share: float) -> float:
    """The conditional value at risk: mean of the highest `share` of a distribution, a value at its edge split."""
    order = np.argsort(-values, kind="stable")
    taken = np.minimum(np.cumsum(chances[order]), share)
    return float((values[order] * np.diff(taken, prepend=0.0)).sum() / share)


def monte_carlo(k: int, theta: float, alpha: float, *, texts: int = 1_000_000, tuples: int = 1, seed: int = 0) -> float:
    """`exact_bound` by drawing so many texts: the mean over the share theta with most skills in the set, the set fixed."""
    check_shares(theta=theta, alpha=alpha)
    _check_skills(k)
    drawn = np.random.default_rng(seed).binomial(k, alpha, texts)
    values, counts = np.unique(drawn, return_counts=True)
    return upper_mean(values, counts / texts, tupled(theta, tuples)) / (k * alpha)


def tupled(theta: float, tuples: int) -> float:
    """The share of failures when `tuples` texts are read together and one failure fails them all; OptionError from 1 on."""
    if tuples < 1:
        raise ProbeOptionError(f"`tuples` is {tuples}: give 1 or more")
    if not tuples * theta < 1:
        raise ProbeOptionError(
            f"{tuples} texts at once would fail with a share of {tuples * theta:g}: lower `theta` below {1 / tuples:g}"
        )
    return tuples * theta


def most_failures(excess: float) -> float:
    """The most that total variation can be on average at so much excess loss, in nats: Pinsker, sqrt(excess / 2)."""
    return math.sqrt(max(0.0, excess) / 2)


def scaling_excess(parameters: int | float, tokens: int | float) -> float:
    """The excess loss of a language model of that size after that much training, in nats a token (Hoffmann et al. 2022)."""
    return 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def check_shares(**shares: float | Sequence[float]) -> None:
    """Raise ProbeOptionError for a share that doesn't lie between 0 and 1."""
    for name, given in shares.items():
        for share in given if isinstance(given, Sequence) else (given,):
            if not 0 < share < 1:
                raise ProbeOptionError(f"`{name}` must lie between 0 and 1, not {share:g}")


def _check_skills(k: int | float) -> None:
    if not 1 <= k <= _MOST_SKILLS:
        raise ProbeOptionError(f"`k` is {k:g}: give 1 to {_MOST_SKILLS:,} skills a text")
