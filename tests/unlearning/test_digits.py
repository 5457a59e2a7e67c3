"""What the README promises of scikit-learn's digits: every class, three seeds, the number of keys chosen on training rows."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from surgery.unlearning import Bottleneck, Eraser, Report, Rows, unlearn, verify
from surgery.unlearning.example import SIZES, digits, run_example

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def fitted():
    """seed -> bottleneck, training and test arrays."""
    found = {}
    for seed in SEEDS:
        train, test = digits(seed)
        found[seed] = Bottleneck.fit_features(*train, **SIZES, seed=seed, device="cpu"), train, test
    return found


def test_the_bottleneck_is_a_point_better_than_a_linear_probe(fitted):
    ours, probes = [], []
    for bottleneck, train, test in fitted.values():
        ours.append(np.mean(bottleneck.predict(test[0], device="cpu") == test[1]))
        # The penalty that is best on these test rows: no probe of this kind does better.
        probes.append(
            max(
                make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=3000)).fit(*train).score(*test)
                for penalty in (0.03, 0.1, 0.3)
            )
        )
    assert np.mean(ours) >= 0.98
    assert np.mean(ours) >= np.mean(probes) + 0.01


def test_every_class_is_forgotten_and_the_rest_is_as_after_refitting(fitted):
    lost = []
    for bottleneck, train, test in fitted.values():
        for digit in range(10):
            stay = np.flatnonzero(train[1] != digit)
            forgot = unlearn(bottleneck, digit, device="cpu").apply(bottleneck)
            said, refitted = (model.predict(test[0], device="cpu") for model in (forgot, bottleneck.refitted(stay)))
            gone = test[1] == digit
            assert np.mean(said[gone] == digit) <= 0.005
            lost.append(np.mean(refitted[~gone] == test[1][~gone]) - np.mean(said[~gone] == test[1][~gone]))
    assert np.mean(lost) <= 0.002 and max(lost) <= 0.0075


def test_membership_is_as_after_refitting(fitted):
    apart = []
    for seed, (bottleneck, _, test) in fitted.items():
        for digit in (seed, seed + 3, seed + 6):
            edit = unlearn(bottleneck, digit, device="cpu")
            report = verify(bottleneck, edit, test, shadows=0, baselines=False, device="cpu")
            apart.append(report.after["membership"]["loss"]["against_refitted"]["auc"])
    assert abs(np.mean(apart)) <= 0.06


def test_counts_forget_exactly_and_keys_that_saw_the_rows_betray_them(fitted):
    (features, labels), test = fitted[0][1], fitted[0][2]
    half = len(labels) // 2
    ours, other = (features[:half], labels[:half]), features[half:]

    def fit(rows, keys_from):
        return Bottleneck.fit_features(
            features[rows], labels[rows], keys_from=keys_from, values="counts", device="cpu", **SIZES
        )

    bottleneck = fit(np.arange(half), other)
    for row in range(0, 100, 5):
        after = unlearn(bottleneck, rows=[row], method="counts").apply(bottleneck)
        left = fit(np.delete(np.arange(half), row), other)
        assert after.entries.tobytes() == left.entries.tobytes() and after.values.tobytes() == left.values.tobytes()
    areas = []
    for placing in (other, ours[0]):
        bottleneck = fit(np.arange(half), placing)
        report = verify(
            bottleneck,
            unlearn(bottleneck, rows=np.arange(60), method="counts"),
            test,
            shadows=0,
            baselines=False,
            device="cpu",
        )
        assert report.content["bit_identical"] and report.content["exact"] == (placing is other)
        areas.append(report.after["membership"]["loss"])
    # The values are the same as if the rows had never been there; the keys aren't.
    assert areas[0]["low"] <= 0.5 <= areas[0]["high"]
    assert areas[1]["high"] < 0.4


def test_the_embedded_example(tmp_path):
    said = []
    report, folder = run_example(tmp_path / "example", device="cpu", say=said.append)
    assert report.forget_accuracy == 0 and report.retain_accuracy >= 0.98
    assert {path.name for path in folder.iterdir()} >= {"bn", "forgot", "eraser", "report"}
    assert {"methods.png", "keys.png", "shared.png"} <= {path.name for path in (folder / "report").iterdir()}
    assert Report.load(folder / "report").retain_accuracy == report.retain_accuracy
    again = Eraser.load(folder / "eraser").undo(Bottleneck.load(folder / "forgot"))
    assert again.fingerprint == Bottleneck.load(folder / "bn").fingerprint
    assert len(said) >= 4


def test_rows_are_read_once_and_kept_apart():
    """No digit is in training and in test."""
    (train, _), (test, _) = digits(1)
    ours, theirs = (set(Rows.of(rows).digests.tolist()) for rows in (train, test))
    assert len(ours & theirs) == 0
