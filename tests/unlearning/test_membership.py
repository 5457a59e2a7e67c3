"""Membership attacks against plain formulas: areas, intervals, confidences, likelihood ratios, shadows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from surgery.unlearning import Bottleneck, Rows, unlearn, verify
from surgery.unlearning.evaluation.evaluator import Evaluator
from surgery.unlearning.evaluation.likelihood_ratio import _ratio, likelihood_ratios
from surgery.unlearning.evaluation.roc_area import RocArea
from surgery.unlearning.evaluation.suspects import confidence, share_masked
from surgery.unlearning.key_selection import CLOSED

CPU = torch.device("cpu")

SCORES = st.lists(st.integers(-3, 3), min_size=2, max_size=30)


@given(SCORES, SCORES)
def test_area_is_sklearns_ties_included(members, others):
    one, two = np.array(members, float), np.array(others, float)
    truth = np.r_[np.ones(len(one)), np.zeros(len(two))]
    area = RocArea(len(one), len(two))
    found = area.of(one, two)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, np.r_[one, two]))
    assert found["low"] - 1e-6 <= found["auc"] <= found["high"] + 1e-6 or len(one) < 10 or len(two) < 10
    nothing = area.difference((one, two), (one, two))
    assert nothing == {"auc": 0, "low": 0, "high": 0}


def test_the_interval_covers_what_resampling_by_hand_gives():
    random = np.random.default_rng(0)
    one, two = random.normal(0.5, 1, 80), random.normal(0, 1, 60)
    truth = np.r_[np.ones(80), np.zeros(60)]
    by_hand = [roc_auc_score(truth, np.r_[random.choice(one, 80), random.choice(two, 60)]) for _ in range(1000)]
    found = RocArea(80, 60).of(one, two)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), abs=0.02)


def test_confidence_is_the_log_odds_of_the_true_class():
    logits = np.random.default_rng(0).normal(size=(20, 5)) * 3
    targets = np.arange(20) % 5
    found = confidence(logits, targets)
    for row, target, value in zip(logits, targets, found, strict=True):
        p = math.exp(row[target]) / sum(math.exp(x) for x in row)
        assert value == pytest.approx(math.log(p / (1 - p)))


def test_likelihood_ratio_is_that_of_two_gaussians():
    random = np.random.default_rng(0)
    seen, inside, value = random.normal(size=(6, 5)), random.random((6, 5)) < 0.5, random.normal(size=5)
    inside[:2], inside[2:4] = True, False
    found = _ratio(seen, inside, value)

    def log_density(chosen):
        means = [np.mean([seen[s, row] for s in range(6) if chosen[s, row]]) for row in range(5)]
        squares = [(seen[s, row] - means[row]) ** 2 for s in range(6) for row in range(5) if chosen[s, row]]
        spread = math.sqrt(sum(squares) / (len(squares) - 5))
        return np.array([-((value[row] - means[row]) ** 2) / (2 * spread**2) - math.log(spread) for row in range(5)])

    assert found == pytest.approx(log_density(inside) - log_density(~inside))


def test_masked_share_counts_closed_nearest_keys(fitted):
    forgot = unlearn(fitted, "a").apply(fitted)
    ids = fitted.training.ids[:30]
    shares = [
        np.mean([forgot.selector.states[codebook, row[codebook, 0]] == CLOSED for codebook in range(12)]) for row in ids
    ]
    assert share_masked(forgot, ids) == pytest.approx(shares)


def test_shadows_tell_members_of_an_overfitted_bottleneck(data):
    """The control: the attack must find what is there to be found."""
    (features, _), (test, _) = data
    labels = np.random.default_rng(5).integers(0, 2, 240)  # nothing to learn: what is known is memorised
    bottleneck = Bottleneck.fit_features(features, labels, codebooks=12, keys=64, key_dim=4, device="cpu")
    deleted = np.arange(60)
    edit = unlearn(bottleneck, rows=deleted, method="refit")
    report = verify(
        bottleneck, edit, (test, np.random.default_rng(6).integers(0, 2, 160)), shadows=8, baselines=False, device="cpu"
    )
    attack = "likelihood_ratio"
    assert report.before["membership"][attack]["low"] > 0.6
    assert report.after["membership"][attack]["low"] < 0.55
    assert report.after["membership"] != report.before["membership"]


def test_a_shadow_that_saw_everything_or_nothing_does_no_harm(fitted, data):
    positions = np.flatnonzero(fitted.training.targets == 1)
    evaluator = Evaluator(fitted, Rows.of(*data[1]), [1], fitted.training.take(positions), CPU)
    suspects = evaluator.suspects()
    scores = likelihood_ratios(
        fitted,
        fitted.training.take(np.flatnonzero(fitted.training.targets != 1)),
        suspects,
        {"via": "activations", "rank": "influence", "answer": "next", "share": 0.5},
        {"before": np.zeros(len(suspects.both))},
        shadows=1,
        seed=0,
        device=CPU,
        progress=lambda *_: None,
    )
    assert np.isfinite(scores["before"]).all()


def test_how_far_an_attack_is_from_guessing_on_either_side():
    random = np.random.default_rng(0)
    others = random.normal(size=200)
    area = RocArea(200, 200)
    shifted = {shift: random.normal(shift, 1, 200) for shift in (-2, -0.5, 0, 0.5, 2)}

    def beyond(one, two):
        return area.beyond((shifted[one], others), (shifted[two], others))

    for one, two, tells_more in ((2, 0, True), (-2, 0, True), (-2, 0.5, True), (0, 2, False), (0, -2, False)):
        found = beyond(one, two)
        wanted = [abs(roc_auc_score([1] * 200 + [0] * 200, np.r_[shifted[x], others]) - 0.5) for x in (one, two)]
        assert found["auc"] == pytest.approx(wanted[0] - wanted[1], abs=1e-6)
        assert (found["low"] > 0) == tells_more
    assert beyond(0.5, -0.5)["low"] < 0 < beyond(0.5, -0.5)["high"]  # far apart, and as telling
