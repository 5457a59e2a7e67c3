"""Verification against plain formulas: accuracies, attacks, exactness, curves, and what is said when rows aren't at hand."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from surgery.errors import BottleneckError, TaskError
from surgery.unlearning import Bottleneck, Report, Rows, unlearn, verify
from surgery.unlearning.curves import in_turn, shared_keys, sweep_keys
from surgery.unlearning.exam import Exam
from surgery.unlearning.membership import RocArea, _ratio, confidence, likelihood_ratios, masked_share
from surgery.unlearning.selection import CLOSED
from surgery.unlearning.verification import verify_folder

CPU = torch.device("cpu")


def blobs(rows, seed, classes=4, width=10):
    """Overlapping Gaussian classes with names."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(classes, width)) * 1.2
    targets = random.integers(0, classes, rows)
    return (middles[targets] + random.normal(size=(rows, width))).astype(np.float32), np.array(list("abcd"))[targets]


@pytest.fixture(scope="module")
def data():
    return blobs(240, 0), blobs(160, 1)


@pytest.fixture(scope="module")
def fitted(data):
    return Bottleneck.fit_features(*data[0], codebooks=12, keys=16, key_dim=4, device="cpu")


@pytest.fixture(scope="module")
def counted(data):
    (features, labels), _ = data
    return Bottleneck.fit_features(
        features[:160],
        labels[:160],
        keys_from=features[160:],
        codebooks=12,
        keys=16,
        key_dim=4,
        values="counts",
        device="cpu",
    )


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
    assert masked_share(forgot, ids) == pytest.approx(shares)


def test_exam_is_a_plain_count_and_abstained_is_wrong(fitted, data):
    features, labels = data[1]
    forgot = unlearn(fitted, ["a", "b"]).apply(fitted)
    exam = Exam(forgot, Rows.of(features, labels), [0, 1], None, CPU)
    said = forgot.predict(features, device="cpu")
    point = exam.point(forgot)
    gone = np.isin(labels, ["a", "b"])
    assert point["forget_accuracy"] == np.mean(said[gone] == labels[gone])
    assert point["retain_accuracy"] == np.mean(said[~gone] == labels[~gone])
    assert point["per_class"] == {name: np.mean(said[labels == name] == name) for name in "abcd"}
    shut = fitted.masked(np.arange(12 * 16), "next")
    assert exam.point(shut) | {"per_class": None} == {
        "forget_accuracy": 0,
        "retain_accuracy": 0,
        "per_class": None,
        "abstained": 1,
    }


@pytest.fixture(scope="module")
def report(fitted, data):
    return verify(fitted, unlearn(fitted, "b"), data[1], shadows=4, device="cpu")


def test_a_class_verified(report, fitted, data):
    features, labels = data[1]
    stay = np.flatnonzero(data[0][1] != "b")
    refitted = fitted.refitted(stay)
    kept = labels != "b"
    assert report.forget_accuracy <= 0.05 < report.before["forget_accuracy"]
    assert report.refitted["retain_accuracy"] == np.mean(refitted.predict(features[kept], device="cpu") == labels[kept])
    assert report.content["exact"] is False and report.content["bit_identical"] is False
    assert report.content["examples"] == {
        "test": 160,
        "test_forgotten": int((~kept).sum()),
        "retained": len(stay),
        "forgotten": 240 - len(stay),
    }
    assert set(report.after["membership"]) == {"loss", "masked_share", "likelihood_ratio"}
    difference = report.after["membership"]["loss"]["against_refitted"]
    assert difference["auc"] == pytest.approx(
        report.after["membership"]["loss"]["auc"] - report.refitted["membership"]["loss"]["auc"], abs=1e-6
    )
    assert {"fine-tune", "SCRUB", "NegGrad+", "random labels", "logit masking"} <= set(report.content["points"])
    assert report.after["relearn"]["curve"].keys() == {"1", "2", "5", "10", "20", "50"}
    said = " ".join(report.remarks)
    assert "betrays membership" in said and "linear probe" in said and "refitted" in said and "placed by" in said


def test_a_report_saved_and_loaded_is_the_same(report, tmp_path):
    report.save(tmp_path / "report")
    loaded = Report.load(tmp_path / "report")
    assert loaded.content == json.loads(json.dumps(report.content))
    assert loaded.rows == report.rows and len(report.rows[0]) == len(report.columns)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.json", "README.md", "methods.png", "keys.png", "shared.png"}
    page = (tmp_path / "report" / "README.md").read_text()
    assert all(remark in page for remark in report.remarks) and "![keys](keys.png)" in page
    written = (tmp_path / "report" / "report.json").read_text()
    (tmp_path / "report" / "report.json").write_text(written.replace('"retained": 1', '"retained": 2', 1))
    with pytest.raises(BottleneckError, match=r"report.json is damaged, or was changed since it was written"):
        Report.load(tmp_path / "report")
    older = {key: value for key, value in json.loads(written).items() if key != "checksum"}
    (tmp_path / "report" / "report.json").write_text(json.dumps(older))
    assert Report.load(tmp_path / "report").content == loaded.content
    with pytest.raises(BottleneckError, match="isn't a surgery unlearning report"):
        (tmp_path / "report" / "report.json").write_text("{}")
        Report.load(tmp_path / "report")


def test_counts_with_keys_of_other_rows_are_exact_and_said_to_be(counted, fitted, data):
    report = verify(counted, unlearn(counted, "c", via="counts"), data[1], shadows=4, baselines=False, device="cpu")
    assert report.content["exact"] and "Exact" in report.remarks[1]
    for key in ("forget_accuracy", "retain_accuracy", "per_class", "membership"):
        after = report.after[key]
        if key == "membership":
            after = {name: {k: v for k, v in found.items() if k != "against_refitted"} for name, found in after.items()}
        assert after == report.refitted[key]
    refit = verify(fitted, unlearn(fitted, "c", via="refit"), data[1], shadows=0, baselines=False, device="cpu")
    assert refit.content["bit_identical"] and not refit.content["exact"]
    assert "keys were placed by 61" in refit.remarks[1]


def test_single_rows_are_asked_about_themselves(fitted, data):
    rows = np.arange(30)
    edit = unlearn(fitted, rows=rows, via="refit")
    report = verify(fitted, edit, data[1], shadows=4, device="cpu")
    after = edit.apply(fitted)
    (features, labels), test = data
    assert report.forget_accuracy == np.mean(after.predict(features[rows], device="cpu") == labels[rows])
    assert report.retain_accuracy == np.mean(after.predict(test[0], device="cpu") == test[1])
    assert "relearn" not in report.after and "logit masking" not in report.content["points"]


def test_a_chain_of_edits_is_verified_as_a_whole(fitted, data):
    first = unlearn(fitted, "a")
    second = unlearn(first.apply(fitted), "d", via="refit")
    report = verify(fitted, [first, second], data[1], shadows=4, baselines=False, device="cpu")
    labels = data[0][1]
    refitted = fitted.refitted(np.flatnonzero(~np.isin(labels, ["a", "d"])))
    kept = ~np.isin(data[1][1], ["a", "d"])
    said = refitted.predict(data[1][0][kept], device="cpu")
    assert report.refitted["retain_accuracy"] == np.mean(said == data[1][1][kept])
    assert [turn["classes"] for turn in report.content["turns"]] == [0, 1, 2]
    assert report.content["forgotten"] == "a; d"
    with pytest.raises(BottleneckError, match="was made for"):
        verify(fitted, [second, first], data[1], shadows=0, baselines=False, device="cpu")


def test_a_sweep_begins_with_nothing_and_ends_with_everything_masked(fitted, data):
    positions = np.flatnonzero(fitted.training.targets == 1)
    exam = Exam(fitted, Rows.of(*data[1]), [1], fitted.training.take(positions), CPU)
    points = sweep_keys(fitted, positions, exam, rank="count", answer="next", seed=0, device=CPU)
    pairs = {(c, int(i)) for row in fitted.training.ids[positions] for c, i in enumerate(row[:, 0])}
    everything = fitted.masked(np.array(sorted(c * 16 + i for c, i in pairs)), "next")
    assert [points[0]["keys"], points[-1]["keys"]] == [0, len(pairs)]
    for point, model in ((points[0], fitted), (points[-1], everything)):
        wanted = exam.point(model)
        assert point["retain_accuracy"] == wanted["retain_accuracy"]
        assert point["forget_accuracy"] == wanted["forget_accuracy"]


def test_shared_keys_by_a_plain_loop(fitted):
    found = shared_keys(fitted)
    training = fitted.training
    for one in range(4):
        for two in range(4):
            theirs = {(c, int(i)) for row in training.ids[training.targets == two] for c, i in enumerate(row[:, 0])}
            own = [(c, int(i)) for row in training.ids[training.targets == one] for c, i in enumerate(row[:, 0])]
            assert found[one][two] == pytest.approx(np.mean([pair in theirs for pair in own]))


def test_turns_compare_the_same_kept_classes(fitted, data):
    first = unlearn(fitted, "a").apply(fitted)
    second = unlearn(first, "b").apply(first)
    exam = Exam(fitted, Rows.of(*data[1]), [0, 1], None, CPU)
    points = in_turn([fitted, first, second], exam, CPU)
    kept = np.isin(data[1][1], ["c", "d"])
    for point, state in zip(points, (fitted, first, second), strict=True):
        assert point["after"]["retain_accuracy"] == np.mean(
            state.predict(data[1][0][kept], device="cpu") == data[1][1][kept]
        )
    assert points[0]["after"]["forget_accuracy"] is None


def test_shadows_tell_members_of_an_overfitted_bottleneck(data):
    """The control: the attack must find what is there to be found."""
    (features, _), (test, _) = data
    labels = np.random.default_rng(5).integers(0, 2, 240)  # nothing to learn: what is known is memorised
    bottleneck = Bottleneck.fit_features(features, labels, codebooks=12, keys=64, key_dim=4, device="cpu")
    deleted = np.arange(60)
    edit = unlearn(bottleneck, rows=deleted, via="refit")
    report = verify(
        bottleneck, edit, (test, np.random.default_rng(6).integers(0, 2, 160)), shadows=8, baselines=False, device="cpu"
    )
    attack = "likelihood_ratio"
    assert report.before["membership"][attack]["low"] > 0.6
    assert report.after["membership"][attack]["low"] < 0.55
    assert report.after["membership"] != report.before["membership"]


def test_a_shadow_that_saw_everything_or_nothing_does_no_harm(fitted, data):
    positions = np.flatnonzero(fitted.training.targets == 1)
    exam = Exam(fitted, Rows.of(*data[1]), [1], fitted.training.take(positions), CPU)
    suspects = exam.suspects()
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


def test_folders_find_their_erasers_and_do_without(fitted, data, tmp_path):
    first = unlearn(fitted, "a")
    once = first.apply(fitted)
    second = unlearn(once, "b")
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    second.apply(once).save(tmp_path / "forgot")
    np.savez(tmp_path / "test.npz", features=data[1][0], label=data[1][1])
    options = {"shadows": 0, "baselines": False, "device": "cpu"}
    whole = verify_folder(tmp_path / "forgot", tmp_path / "test.npz", **options)
    assert whole.before is not None and len(whole.content["turns"]) == 3
    last = verify_folder(tmp_path / "forgot", tmp_path / "test.npz", erasers=[tmp_path / "second"], **options)
    assert last.content["forgotten"] == "a; b" and "turns" not in last.content
    (tmp_path / "second").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "report.json").unlink()
    alone = verify_folder(tmp_path / "forgot", tmp_path / "test.npz", **options)
    assert alone.before is None and "membership" not in alone.after
    assert alone.retain_accuracy == whole.retain_accuracy
    assert alone.refitted["retain_accuracy"] == whole.refitted["retain_accuracy"]
    assert any("eraser isn't at hand" in remark for remark in alone.remarks)
    alone.save(tmp_path / "report")
    with pytest.raises(BottleneckError, match="isn't in the history"):
        unlearn(fitted, "c").save(tmp_path / "other")
        verify_folder(tmp_path / "forgot", tmp_path / "test.npz", erasers=[tmp_path / "other"], **options)


def test_test_rows_must_have_labels_that_training_saw(fitted, data):
    edit = unlearn(fitted, "a")
    with pytest.raises(TaskError, match="'z' of the test rows is none of the 4"):
        verify(fitted, edit, (data[1][0][:2], ["a", "z"]), shadows=0)
    with pytest.raises(TaskError, match="no labels"):
        verify(fitted, edit, Rows.of(data[1][0]), shadows=0)
    with pytest.raises(TaskError, match="9 features"):
        verify(fitted, edit, (data[1][0][:, :9], data[1][1]), shadows=0)
