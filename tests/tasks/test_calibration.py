"""Calibration against plain loops and known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.tasks.calibration import Reliability, fit_bias, fit_temperature, scaled_ece, softmax
from surgery.tasks.scoring import Score


def plain_ece(probabilities, targets, bins):
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        rows = [
            i
            for i, row in enumerate(probabilities)
            if low <= max(row) < high or (number == bins - 1 and max(row) >= high)
        ]
        if rows:
            sure = sum(max(probabilities[i]) for i in rows) / len(rows)
            right = sum(int(np.argmax(probabilities[i])) == targets[i] for i in rows) / len(rows)
            total += len(rows) / len(targets) * abs(sure - right)
    return total


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.integers(1, 20))
def test_ece_equals_a_plain_loop(seed, examples, labels, bins):
    random = np.random.default_rng(seed)
    probabilities = softmax(random.normal(size=(examples, labels)) * 3)
    targets = random.integers(labels, size=examples)
    assert Reliability.of(probabilities, targets, bins).ece == pytest.approx(plain_ece(probabilities, targets, bins))


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert Reliability.of(sure, np.array([0, 1])).ece == 0
    assert Reliability.of(sure, np.array([1, 0])).ece == 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered_from_labels_drawn_with_it(temperature):
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 3)) * 2
    targets = np.array([random.choice(3, p=row) for row in softmax(logits / temperature)])
    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.05)


def test_scaling_mends_overconfidence():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4_000, 3)) * 2
    targets = np.array([random.choice(3, p=row) for row in softmax(logits)])
    assert Reliability.of(softmax(5 * logits), targets).ece > 0.1
    assert scaled_ece(5 * logits, targets) < 0.03


def test_bias_is_recovered_up_to_a_constant():
    random = np.random.default_rng(0)
    wanted = np.array([1.5, -0.5, 0.0])
    logits = random.normal(size=(20_000, 3))
    targets = np.array([random.choice(3, p=row) for row in softmax(logits + wanted)])
    found = fit_bias(logits, targets)
    assert found - found[2] == pytest.approx(wanted - wanted[2], abs=0.1)


def test_bias_stays_finite_when_a_label_never_occurs():
    assert np.isfinite(fit_bias(np.zeros((10, 3)), np.array([0] * 5 + [1] * 5))).all()


def test_each_half_is_scaled_by_the_temperature_of_the_other():
    logits = np.random.default_rng(0).normal(size=(60, 3)) * 5
    targets = logits.argmax(1)
    targets[1::2] = (targets[1::2] + np.arange(30) % 2) % 3  # one half is always right, the other half the time
    scaled = logits.copy()
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - half.start, None, 2)
        scaled[half] /= fit_temperature(logits[other], targets[other])
    assert scaled_ece(logits, targets) == pytest.approx(Reliability.of(softmax(scaled), targets).ece)


def test_f1_is_that_of_the_last_label():
    logits = np.eye(2)[[1, 1, 0, 0, 0]]
    scored = Score(("no", "yes"), "f1", logits, np.array([1, 0, 1, 0, 0]))
    assert scored.f1 == scored.value == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert Score(("no", "yes"), "f1", logits, np.array([1, 0, 0, 0, 0])).f1 == pytest.approx(2 / 3)
