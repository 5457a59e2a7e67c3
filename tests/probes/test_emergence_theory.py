"""The theory of emergence: bounds at known values, the worst case on a graph against every choice of texts, simulation."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.emergence import Curves, Simulation, SkillGraph, curves, exact_bound, simulate, theorem_bound, worst_case
from probes.emergence.adversary import greedy_failures, improved, linear_bound, spectral_bound
from probes.emergence.simulating import draw_graph
from probes.emergence.theory import (
    coin_divergence,
    entropy,
    mixture,
    monte_carlo,
    most_failures,
    scaling_excess,
    upper_mean,
)
from probes.errors import ProbeError, ProbeOptionError

# k, theta, alpha: by the theorem, and exact.
KNOWN = [
    (4, 0.1, 0.2, 3.965, 2.860),
    (8, 0.1, 0.2, 3.067, 2.300),
    (8, 0.05, 0.1, 4.933, 3.589),
    (16, 0.05, 0.1, 3.632, 2.761),
    (4, 0.05, 0.2, 4.272, None),
    (8, 0.05, 0.2, 3.298, None),
    (16, 0.05, 0.2, 2.588, None),
]


@pytest.mark.parametrize(("k", "theta", "alpha", "theorem", "exact"), KNOWN)
def test_known_values(k, theta, alpha, theorem, exact):
    assert theorem_bound(k, theta, alpha) == pytest.approx(theorem, abs=1e-3)
    if exact is not None:
        assert exact_bound(k, theta, alpha) == pytest.approx(exact, abs=1e-3)
    drawn = monte_carlo(k, theta, alpha, texts=1_000_000)
    assert drawn == pytest.approx(exact_bound(k, theta, alpha), abs=0.01)


def test_where_there_is_no_root_there_is_no_bound():
    assert theorem_bound(2, 0.05, 0.2) is None
    found = curves([2, 4], [0.05], [0.2], tuples=1, simulate=False)
    assert found.find(2, 0.05, 0.2).theorem is None
    assert "no root for k 2, theta 0.05, alpha 0.2" in found.summary[1]
    assert found.table()[1][0][4] == "no root"


@given(st.integers(2, 40), st.floats(0.01, 0.3), st.floats(0.05, 0.6), st.integers(1, 3))
def test_the_bound_solves_its_equation_and_is_above_the_exact_value(k, theta, alpha, tuples):
    bound = theorem_bound(k, theta, alpha, tuples=tuples)
    if bound is None:
        return
    theta *= tuples
    assert k * theta * coin_divergence(bound * alpha, alpha) == pytest.approx(entropy(theta), rel=1e-6)
    assert 1 < exact_bound(k, theta, alpha) <= bound
    assert theorem_bound(k, theta, alpha, skills_per_text=0.01) is None or (
        theorem_bound(k, theta, alpha, skills_per_text=0.01) > theorem_bound(k, theta, alpha)
    )


def test_the_exact_value_is_the_mean_of_the_worst_texts_by_plain_counting():
    k, theta, alpha = 3, 0.3, 0.4
    chances = {s: math.comb(k, s) * alpha**s * (1 - alpha) ** (k - s) for s in range(k + 1)}
    left, total = theta, 0.0
    for s in range(k, -1, -1):
        taken = min(left, chances[s])
        left, total = left - taken, total + taken * s
    assert exact_bound(k, theta, alpha) == pytest.approx(total / theta / (k * alpha), abs=1e-12)
    assert exact_bound(np.array([3, 3, 3]), theta, alpha) == pytest.approx(exact_bound(3, theta, alpha), abs=1e-12)
    mixed = mixture(np.array([1, 3]), alpha)
    assert mixed == pytest.approx(
        [(1 - alpha + chances[0]) / 2, (alpha + chances[1]) / 2, chances[2] / 2, chances[3] / 2]
    )
    assert upper_mean(np.array([1.0, 5.0]), np.array([0.5, 0.5]), 0.75) == pytest.approx((0.5 * 5 + 0.25) / 0.75)


def test_tuples_are_single_skills_at_a_multiple_of_the_failures():
    assert theorem_bound(8, 0.05, 0.2, tuples=2) == theorem_bound(8, 0.1, 0.2)
    assert exact_bound(8, 0.05, 0.2, tuples=2) == exact_bound(8, 0.1, 0.2)


def test_excess_loss_bounds_failures_and_scaling_laws_say_little():
    assert most_failures(0.02) == pytest.approx(0.1)
    # The share of failures of a cloze question is at most the L1 distance, twice total variation.
    assert 2 * most_failures(scaling_excess(70e9, 1.4e12)) == pytest.approx(0.70, abs=0.005)
    assert 2 * most_failures(scaling_excess(7e9, 1.4e11)) == pytest.approx(0.99, abs=0.005)


def plain_beta(edges, failures, alpha):
    """Beta by filling the share alpha of all edges with the skills that fail most, one by one."""
    degrees = edges.sum(0)
    shares = (failures[:, None] * edges).sum(0) / degrees
    left, total = alpha * degrees.sum(), 0.0
    for skill in sorted(range(edges.shape[1]), key=lambda s: -shares[s]):
        taken = min(left, degrees[skill])
        left, total = left - taken, total + taken * shares[skill]
    return total / (alpha * degrees.sum()) / failures.mean()


@given(st.integers(0, 10_000))
def test_the_worst_case_is_the_worst_of_every_choice_of_texts(seed):
    random = np.random.default_rng(seed)
    texts, skills, k = random.integers(4, 9), random.integers(2, 6), random.integers(1, 4)
    graph = SkillGraph.of_draws(random.integers(skills, size=(texts, k)), int(skills))
    theta, alpha = int(random.integers(1, texts)) / texts, float(random.uniform(0.1, 0.9))
    edges = graph.edges.toarray()
    every = [np.isin(np.arange(texts), some) * 1.0 for some in combinations(range(texts), round(theta * texts))]
    best = max(plain_beta(edges, failures, alpha) for failures in every)
    found = worst_case(graph, theta, alpha)
    assert found.exact and found.low == found.high == pytest.approx(best, abs=1e-9)
    assert plain_beta(edges, found.failures, alpha) == pytest.approx(best, abs=1e-9)
    first = greedy_failures(graph, theta, alpha)
    turned = graph.beta(improved(graph, first, theta, alpha), alpha)
    assert found.greedy == pytest.approx(graph.beta(first, alpha)) and found.greedy - 1e-9 <= turned <= best + 1e-9
    for bound in (linear_bound(graph, theta, alpha), spectral_bound(graph, theta, alpha)):
        assert bound >= best - 1e-7
    assert linear_bound(graph, theta, alpha) <= min(1 / theta, 1 / alpha) + 1e-7


def uneven(seed):
    """A few texts that draw many skills beside many that draw one, on 7 skills."""
    from scipy.sparse import csr_array

    random = np.random.default_rng(seed)
    rows = np.concatenate([np.ones((2, 7)), np.eye(7)[random.integers(7, size=10)], np.eye(7)])
    return SkillGraph(csr_array(rows))


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_where_texts_draw_different_numbers_of_skills(seed):
    graph, theta, alpha = uneven(seed), 2 / 19, 0.5
    best = worst_case(graph, theta, alpha)
    assert best.exact and best.low > 1.5
    assert spectral_bound(graph, theta, alpha) >= best.low - 1e-7
    assert linear_bound(graph, theta, alpha) >= best.low - 1e-7


@given(st.integers(0, 5), st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_the_worst_sets_have_the_share_asked_for_with_one_at_the_edge_in_part(seed, theta, alpha):
    graph, random = uneven(seed), np.random.default_rng(seed)
    z, y = graph.worst_skills(random.random(7), alpha), graph.worst_texts(random.random(7), theta)
    assert z @ graph.degrees == pytest.approx(alpha * graph.degrees.sum())
    assert y.sum() == pytest.approx(theta * graph.texts)
    for chosen in (z, y):
        assert ((chosen >= 0) & (chosen <= 1)).all() and ((chosen > 1e-9) & (chosen < 1 - 1e-9)).sum() <= 1


def test_greed_finds_skills_that_keep_together():
    from scipy.sparse import csr_array

    together = np.zeros((40, 12))
    together[np.arange(30), np.arange(30) % 9] = 1.0
    together[30:, 9:] = 1.0  # ten texts hold the same three skills, the others one each of the rest
    chosen = greedy_failures(SkillGraph(csr_array(together)), 0.2, 0.5)
    assert chosen.tolist() == [0.0] * 30 + [1.0] * 8 + [0.0] * 2


def test_larger_graphs_have_an_interval_that_the_theorem_keeps_to():
    for seed, (k, theta, alpha) in enumerate([(4, 0.1, 0.2), (8, 0.1, 0.2), (8, 0.05, 0.3), (16, 0.05, 0.2)]):
        graph = draw_graph(40, 1500, k, 0.8, seed)
        found = worst_case(graph, theta, alpha, starts=8, seed=seed)
        bound = theorem_bound(k, theta, alpha, skills_per_text=graph.skills / graph.texts)
        assert not found.exact
        assert exact_bound(k, theta, alpha) - 0.1 < found.low <= min(found.high, bound)
        assert found.failures.mean() == pytest.approx(theta)
        assert graph.beta(found.failures, alpha) == pytest.approx(found.low)


def test_texts_that_keep_to_a_topic_break_the_bound():
    random = np.random.default_rng(0)
    topics = np.repeat(np.arange(5), 200)
    graph = SkillGraph.of_draws(6 * topics[:, None] + random.integers(6, size=(1000, 8)), 30)
    assert worst_case(graph, 0.1, 0.2, starts=6).low > 1.3 * theorem_bound(8, 0.1, 0.2)


def test_random_texts_verify_nothing_and_an_adversary_comes_near_the_curve():
    found = simulate(60, 4000, 6, theta=0.1, alpha=0.2, zipf=0.5, sets=6, seed=1)
    point = found.points[0]
    assert point.random < 1.4 < point.fixed
    assert point.fixed == pytest.approx(point.exact, abs=0.1)
    assert point.fixed <= point.adversary <= min(point.most, point.finite)
    assert found.points == simulate(60, 4000, 6, theta=0.1, alpha=0.2, zipf=0.5, sets=6, seed=1).points


def test_curves_and_simulations_are_saved_and_loaded(tmp_path):
    for made, kind in (
        (curves([2, 8], [0.05, 0.4], [0.2], tuples=3, simulate=False), Curves),
        (simulate(20, 300, 4, sets=2), Simulation),
    ):
        folder = tmp_path / kind.__name__
        made.save(folder)
        assert kind.load(folder) == made
        assert {file.suffix for file in folder.iterdir()} == {".json", ".md", ".html", ".png"}
        content = json.loads((folder / "report.json").read_text())
        (folder / "report.json").write_text(json.dumps({**content, "points": []}))
        with pytest.raises(ProbeError, match=r"report.json is damaged"):
            kind.load(folder)
        (folder / "report.json").write_text(json.dumps({**content, "format": "else"}))
        with pytest.raises(ProbeError, match="isn't a surgery emergence"):
            kind.load(folder)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: curves([4], [1.0]), "`theta` must lie between 0 and 1, not 1"),
        (lambda: curves([4], [0.1], [0.0]), "`alpha` must lie between 0 and 1, not 0"),
        (lambda: curves([4], [0.1], [float("nan")]), "`alpha` must lie between 0 and 1, not nan"),
        (lambda: curves([]), "give `k`"),
        (lambda: curves([0]), "`k` is 0: give 1"),
        (lambda: curves([4], tuples=0), "`tuples` is 0: give 1 or more"),
        (lambda: theorem_bound(4, 0.5, 0.2, tuples=2), "lower `theta` below 0.5"),
        (lambda: simulate(theta=-0.1), "`theta` must lie between 0 and 1"),
        (lambda: simulate(alpha=2.0), "`alpha` must lie between 0 and 1"),
        (lambda: simulate(skills=1), "`skills` must be 2 or more"),
        (lambda: simulate(zipf=float("inf")), "`zipf` must be 0 or more"),
        (lambda: simulate(texts=10**9), "at most 20,000,000"),
        (lambda: simulate(skills=10**9), "`skills` is 1,000,000,000: give at most"),
        (lambda: simulate(sets=10**6), "`sets` is 1,000,000: give at most"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ProbeOptionError, match=said):
        call()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["curves", "--theta", "1.5"], "--theta must lie between 0 and 1, not 1.5"),
        (["curves", "--alpha", "0"], "--alpha must lie between 0 and 1, not 0"),
        (["curves", "-k", "4,x"], "-k 4,x must be whole numbers separated by commas"),
        (["simulate", "--theta", "0"], "--theta must lie between 0 and 1, not 0"),
        (["measure", "-o", "there"], "the model is missing"),
    ],
)
def test_commands_name_the_option(line, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, error = run("emergence", *line)
    assert status == 2 and said in error
    assert not list(tmp_path.iterdir())


def test_the_commands_print_a_table_and_write_a_report(ok, tmp_path):
    printed = ok("emergence", "curves", "--theta", ".05", "--alpha", ".2", "-k", "2,4,8", "-o", tmp_path / "curves")
    assert "4.272" in printed and "3.298" in printed and "no root" in printed
    found = ok("emergence", "simulate", "--skills", "30", "--texts", "400", "-k", "4", "--sets", "2", "--json")
    assert found["points"][0]["exact"] == pytest.approx(exact_bound(4, 0.05, 0.2))
    options = {"skills": 20, "texts": 200, "theta": 0.1, "zipf": 1.5, "sets": 2, "seed": 4}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    found = ok("emergence", "simulate", *given, "-k", 3, "--alpha", 0.3, "--json")
    drawn = simulate(20, 200, 3, theta=0.1, alpha=0.3, zipf=1.5, sets=2, seed=4)
    assert {**found, **options, "k": 3} == found and found["points"][0]["adversary"] == drawn.points[0].adversary
    assert Curves.load(tmp_path / "curves").find(8, 0.05, 0.2).theorem == pytest.approx(3.298, abs=1e-3)
