"""The worst failures on a graph that is given: which texts an adversary would choose, and the most any choice could do.

Maximising beta over texts y and skills z is a bilinear program: sum of edges y_t z_s, with y in [0, 1], sum y = theta N, and z
in [0, 1], sum of degrees z = alpha D. Its best value is at a corner of both, so small graphs are gone through corner by
corner. For larger ones the answer is an interval: from below a greedy choice, improved by turns; from above the smaller of a
linear relaxation and a spectral bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from probes.emergence.graph import SkillGraph
from probes.emergence.theory import check_shares
from surgery.progress import Progress, silent

_MOST_CORNERS = 20_000
_MOST_EDGES = 2_500  # of a linear program that takes seconds
_ROUNDS = 200
_STARTS = 20


@dataclass(frozen=True)
class WorstCase:
    """How bad the worst share theta of a graph's texts is for its worst share alpha of skills.

    Attributes:
        low: the largest beta found; `high`: no choice has more. Equal where every corner was gone through (`exact`).
        greedy: the beta of the greedy choice, before it is improved; at least `greedy / high` of the best there is.
        bound: where `high` comes from: `every corner`, `linear program`, `spectrum` or `shares` (1 / alpha and 1 / theta).
        failures: the texts of `low`: 1 failed, 0 not, one in part.
    """

    theta: float
    alpha: float
    low: float
    high: float
    greedy: float
    exact: bool
    bound: str
    failures: Float64[np.ndarray, " texts"]


def worst_case(
    graph: SkillGraph,
    theta: float,
    alpha: float,
    *,
    starts: int = _STARTS,
    seed: int = 0,
    progress: Progress = silent,
) -> WorstCase:
    """Find the worst failures of a graph, and bound them.

    Args:
        theta: share of the texts that fail. `alpha`: share of the edges whose skills may be worse than the bound.
        starts: so many sets of skills drawn at random to improve from, and as many around the most common skills, besides
            the greedy one.
    """
    check_shares(theta=theta, alpha=alpha)
    first = greedy_failures(graph, theta, alpha)
    greedy, best = graph.beta(first, alpha), improved(graph, first, theta, alpha)
    if _corners(graph) <= _MOST_CORNERS:
        best = max((graph.worst_texts(z, theta) for z in corners(graph, alpha)), key=lambda y: graph.beta(y, alpha))
        value = graph.beta(best, alpha)
        return WorstCase(theta, alpha, value, value, greedy, True, "every corner", best)
    for number, skills in enumerate(_starts(graph, alpha, starts, seed)):
        progress(number, 2 * starts, "worst case: improving")
        other = improved(graph, graph.worst_texts(skills, theta), theta, alpha)
        best = max(best, other, key=lambda y: graph.beta(y, alpha))
    bounds = {"shares": min(1 / theta, 1 / alpha), "spectrum": spectral_bound(graph, theta, alpha)}
    if graph.edges.nnz <= _MOST_EDGES:
        progress(0, 1, "worst case: linear program")
        bounds["linear program"] = linear_bound(graph, theta, alpha)
    tightest = min(bounds, key=lambda name: bounds[name])
    low = graph.beta(best, alpha)
    return WorstCase(theta, alpha, low, max(low, bounds[tightest]), greedy, False, tightest, best)


def greedy_failures(graph: SkillGraph, theta: float, alpha: float) -> Float64[np.ndarray, " texts"]:
    """Failures chosen by greed over skills: the one that adds most edges of the worst texts for each edge of its own."""
    z, left = np.zeros(graph.skills), alpha * graph.degrees.sum()
    free = np.ones(graph.skills, bool)
    scores = np.zeros(graph.texts)
    most = theta * graph.texts
    columns = graph.edges.tocsc()
    while left > 1e-9 and free.any():
        order = np.argsort(-scores, kind="stable")
        edge = scores[order[min(int(most), graph.texts - 1)]]
        # Edges in texts that are in the worst set, or that would enter it, count; to a first order the set stays.
        weights = np.clip(scores - edge + 1.0, 0.0, 1.0)
        gains = np.where(free, (columns.T @ weights) / graph.degrees, -1.0)
        chosen = int(np.lexsort((graph.degrees, gains))[-1])  # of equal gains, the most common skill
        share = min(1.0, left / graph.degrees[chosen])
        z[chosen], left = share, left - share * graph.degrees[chosen]
        free[chosen] = False
        scores = scores + share * columns[:, [chosen]].toarray()[:, 0]
    return graph.worst_texts(z, theta)


def improved(
    graph: SkillGraph, failures: Float64[np.ndarray, " texts"], theta: float, alpha: float
) -> Float64[np.ndarray, " texts"]:
    """Failures that take their worst skills' worst texts, by turns, until nothing gets worse."""
    value = graph.beta(failures, alpha)
    for _ in range(_ROUNDS):
        other = graph.worst_texts(graph.worst_skills(graph.shares(failures), alpha), theta)
        found = graph.beta(other, alpha)
        if found <= value + 1e-12:
            break
        failures, value = other, found
    return failures


def _starts(graph: SkillGraph, alpha: float, starts: int, seed: int) -> Iterator[Float64[np.ndarray, " skills"]]:
    """Sets of skills: each skill with those it most often shares a text with, then random ones."""
    random, together = np.random.default_rng(seed), graph.edges.T @ graph.edges
    for skill in np.argsort(-graph.degrees, kind="stable")[:starts].tolist():
        yield graph.worst_skills(together[[skill], :].toarray()[0] / graph.degrees, alpha)
    for _ in range(starts):
        yield graph.worst_skills(random.random(graph.skills), alpha)


def _corners(graph: SkillGraph) -> float:
    """The most that `corners` may go through."""
    return graph.skills * 2.0 ** (graph.skills - 1)


def corners(graph: SkillGraph, alpha: float) -> Iterator[Float64[np.ndarray, " skills"]]:
    """Every corner of the sets of skills that hold a share alpha of the edges: whole skills, and at most one in part."""
    wanted, degrees = alpha * graph.degrees.sum(), graph.degrees
    for size in range(graph.skills + 1):
        for whole in combinations(range(graph.skills), size):
            z = np.zeros(graph.skills)
            z[list(whole)] = 1.0
            left = wanted - degrees[list(whole)].sum()
            if abs(left) < 1e-9:
                yield z
            for part in range(graph.skills):
                if 0 < left < degrees[part] and not z[part]:
                    last = z.copy()
                    last[part] = left / degrees[part]
                    yield last


def linear_bound(graph: SkillGraph, theta: float, alpha: float) -> float:
    """The best value of the relaxation: x_ts for y_t z_s, at most either, and both constraints times each variable.

    Solved by HiGHS.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, csr_array, hstack, identity, vstack

    edges = coo_array(graph.edges)
    rows, columns, weights, count = edges.row, edges.col, edges.data, edges.nnz
    texts, skills, total = graph.texts, graph.skills, float(graph.degrees.sum())
    numbers, ones = np.arange(count), np.ones(count)
    of_text, of_skill = (
        csr_array((ones, (numbers, rows)), (count, texts)),
        csr_array((ones, (numbers, columns)), (count, skills)),
    )
    each, none = identity(count, format="csr"), csr_array
    # Variables: x of each edge, y of each text, z of each skill.
    below = [
        hstack([each, -of_text, none((count, skills))]),
        hstack([each, none((count, texts)), -of_skill]),
        hstack([of_skill.T, none((skills, texts)), -theta * texts * identity(skills)]),
        hstack([(of_text.T * graph.degrees[columns]), -alpha * total * identity(texts), none((texts, skills))]),
    ]
    equal = vstack(
        [
            hstack([none((1, count)), csr_array(np.ones((1, texts))), none((1, skills))]),
            hstack([none((1, count + texts)), csr_array(graph.degrees[None])]),
        ]
    )
    found = linprog(
        -np.concatenate([weights, np.zeros(texts + skills)]),
        A_ub=vstack(below).tocsr(),
        b_ub=np.zeros(2 * count + skills + texts),
        A_eq=equal.tocsr(),
        b_eq=[theta * texts, alpha * total],
        bounds=(0, 1),
        method="highs",
        options={"time_limit": 30.0},
    )
    if found.status != 0:  # out of time: nothing is proved
        return min(1 / theta, 1 / alpha)
    return float(-found.fun) / (theta * alpha * total)


def spectral_bound(graph: SkillGraph, theta: float, alpha: float) -> float:
    """A bound by how evenly the graph mixes (the expander mixing lemma), for texts that draw different numbers too.

    With y = theta + u and z = alpha + v, where u sums to 0 and v to 0 over edges, the edges beyond theta * alpha * D are
    u (drawn alpha) + u W v, at most |u| (alpha |drawn - mean| + sigma |D^(1/2) v|).
    """
    from scipy.sparse import csr_array, diags_array
    from scipy.sparse.linalg import LinearOperator, svds

    total = float(graph.degrees.sum())
    scaled = csr_array(graph.edges @ diags_array(graph.degrees**-0.5))
    root = np.sqrt(graph.degrees / total)  # the direction that v has no part in
    mean = np.full(graph.texts, graph.texts**-0.5)

    def forward(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        image = scaled @ (x - root * (root @ x))
        return image - mean * (mean @ image)

    def backward(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        image = scaled.T @ (x - mean * (mean @ x))
        return image - root * (root @ image)

    if min(scaled.shape) < 3:
        whole = np.stack([forward(column) for column in np.eye(graph.skills)], 1)
        largest = float(np.linalg.norm(whole, 2))
    else:
        operator = LinearOperator(scaled.shape, matvec=forward, rmatvec=backward, dtype=np.float64)
        start = np.random.default_rng(0).normal(size=min(scaled.shape))
        largest = float(svds(operator, k=1, v0=start, return_singular_vectors=False, tol=1e-6)[0]) * (1 + 1e-5)
    uneven = float(np.linalg.norm(graph.drawn - graph.k))
    size = np.sqrt(graph.texts * theta * (1 - theta))
    most = size * (alpha * uneven + largest * np.sqrt(total * alpha * (1 - alpha)))
    return 1 + float(most) / (theta * alpha * total)
