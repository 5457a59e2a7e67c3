"""Verification against plain formulas: accuracies, attacks, exactness, curves, and what is said when rows aren't at hand."""

import json
import math
from contextlib import contextmanager
from html import escape

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.reporting.figures import figure
from surgery.unlearning import Bottleneck, Report, Rows, unlearn, verify
from surgery.unlearning.descriptions import promises
from surgery.unlearning.evaluation.attacks import ATTACKS
from surgery.unlearning.evaluation.curves import in_turn, shared_keys, sweep_keys
from surgery.unlearning.evaluation.evaluator import Evaluator
from surgery.unlearning.evaluation.figures import _areas, masks, turns
from surgery.unlearning.evaluation.membership import (
    RocArea,
    _ratio,
    confidence,
    likelihood_ratios,
    masked_share,
)
from surgery.unlearning.evaluation.verification import verify_folder
from surgery.unlearning.key_selection import CLOSED, OPEN
from surgery.unlearning.remarks import remarks

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
    evaluator = Evaluator(forgot, Rows.of(features, labels), [0, 1], None, CPU)
    said = forgot.predict(features, device="cpu")
    point = evaluator.point(forgot)
    gone = np.isin(labels, ["a", "b"])
    assert point["forget_accuracy"] == np.mean(said[gone] == labels[gone])
    assert point["retain_accuracy"] == np.mean(said[~gone] == labels[~gone])
    assert point["per_class"] == {name: np.mean(said[labels == name] == name) for name in "abcd"}
    shut = fitted.masked(np.arange(12 * 16), "next")
    assert evaluator.point(shut) | {"per_class": None} == {
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
    refitted = fitted.refitted(stay, device=CPU)
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
    assert names == {"report.json", "README.md", "index.html", "methods.png", "keys.png", "shared.png"}
    page, html = ((tmp_path / "report" / name).read_text() for name in ("README.md", "index.html"))
    assert all(remark in page for remark in report.remarks) and "](keys.png)" in page
    assert all(escape(sentence) in html for sentence in (*report.remarks, *report.summary))
    assert all(f'<img src="{name}"' in html for name in names if name.endswith(".png"))
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
    report = verify(counted, unlearn(counted, "c", method="counts"), data[1], shadows=4, baselines=False, device="cpu")
    assert report.content["exact"] and "Exact" in report.remarks[1]
    for key in ("forget_accuracy", "retain_accuracy", "per_class", "membership"):
        after = report.after[key]
        if key == "membership":
            after = {name: {k: v for k, v in found.items() if k != "against_refitted"} for name, found in after.items()}
        assert after == report.refitted[key]
    refit = verify(
        fitted, unlearn(fitted, "c", method="refit", device="cpu"), data[1], shadows=0, baselines=False, device="cpu"
    )
    assert refit.content["bit_identical"] and not refit.content["exact"]
    assert "keys were placed by 61" in refit.remarks[1]


def test_single_rows_are_asked_about_themselves(fitted, data):
    rows = np.arange(30)
    edit = unlearn(fitted, rows=rows, method="refit")
    report = verify(fitted, edit, data[1], shadows=4, device="cpu")
    after = edit.apply(fitted)
    (features, labels), test = data
    assert report.forget_accuracy == np.mean(after.predict(features[rows], device="cpu") == labels[rows])
    assert report.retain_accuracy == np.mean(after.predict(test[0], device="cpu") == test[1])
    assert "relearn" not in report.after and "logit masking" not in report.content["points"]


def test_a_chain_of_edits_is_verified_as_a_whole(fitted, data):
    first = unlearn(fitted, "a")
    second = unlearn(first.apply(fitted), "d", method="refit")
    report = verify(fitted, [first, second], data[1], shadows=4, baselines=False, device="cpu")
    labels = data[0][1]
    refitted = fitted.refitted(np.flatnonzero(~np.isin(labels, ["a", "d"])), device=CPU)
    kept = ~np.isin(data[1][1], ["a", "d"])
    said = refitted.predict(data[1][0][kept], device="cpu")
    assert report.refitted["retain_accuracy"] == np.mean(said == data[1][1][kept])
    assert [turn["classes"] for turn in report.content["turns"]] == [0, 1, 2]
    assert report.content["forgotten"] == "a; d"
    with pytest.raises(BottleneckError, match="was made for"):
        verify(fitted, [second, first], data[1], shadows=0, baselines=False, device="cpu")


def test_a_sweep_begins_with_nothing_and_ends_with_everything_masked(fitted, data):
    positions = np.flatnonzero(fitted.training.targets == 1)
    evaluator = Evaluator(fitted, Rows.of(*data[1]), [1], fitted.training.take(positions), CPU)
    points = sweep_keys(fitted, positions, evaluator, rank="count", answer="next", seed=0, device=CPU)
    pairs = {(c, int(i)) for row in fitted.training.ids[positions] for c, i in enumerate(row[:, 0])}
    everything = fitted.masked(np.array(sorted(c * 16 + i for c, i in pairs)), "next")
    assert [points[0]["keys"], points[-1]["keys"]] == [0, len(pairs)]
    for point, model in ((points[0], fitted), (points[-1], everything)):
        wanted = evaluator.point(model)
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
    evaluator = Evaluator(fitted, Rows.of(*data[1]), [0, 1], None, CPU)
    points = in_turn([fitted, first, second], evaluator, CPU)
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


# -- test rows that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("clothes", ["as they are", "in float64"])
def test_training_rows_among_the_test_rows_are_left_out_and_counted(clothes, fitted, data):
    """As they were in training, or the same numbers in another type: neither is a non-member."""
    (features, labels), (test, test_labels) = data
    edit, options = unlearn(fitted, "b"), {"shadows": 4, "baselines": False, "device": "cpu"}
    alone = verify(fitted, edit, (test, test_labels), **options)
    some = features[:100].astype(np.float64 if clothes == "in float64" else np.float32)
    mixed = verify(fitted, edit, (np.concatenate([some, test]), np.concatenate([labels[:100], test_labels])), **options)
    assert mixed.content["known_test_rows"] == 100 and alone.content["known_test_rows"] == 0
    for name in ("before", "after", "refitted"):
        for key in ("forget_accuracy", "retain_accuracy", "per_class", "membership"):
            assert mixed.content["points"][name][key] == alone.content["points"][name][key]
    assert any("100 of 260 test rows were left out: they are training rows" in remark for remark in mixed.remarks)
    assert not any("left out" in remark for remark in alone.remarks)
    with pytest.raises(TaskError, match="all 240 test rows are training rows: give rows that training never saw"):
        verify(fitted, edit, data[0], **options)


def test_forgotten_rows_are_known_too(fitted, data):
    rows = np.arange(30)
    (features, labels), test = data
    given = np.concatenate([features[rows], test[0]]), np.concatenate([labels[rows], test[1]])
    report = verify(fitted, unlearn(fitted, rows=rows, method="refit"), given, shadows=0, baselines=False, device="cpu")
    assert report.content["known_test_rows"] == 30 and report.content["examples"]["test"] == 160


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (lambda x, y: x, r"can't be a ndarray alone: give \(features, labels\)"),
        (lambda x, y: x[:2], "can't be a ndarray alone"),
        (lambda x, y: torch.tensor(x), "can't be a Tensor alone"),
        (lambda x, y: x.tolist(), "can't be a list alone"),
        (lambda x, y: x[:2].tolist(), r"features of shape \(10,\) aren't rows"),
        (lambda x, y: (x,), "can't be a tuple alone"),
        (lambda x, y: (x, y, y), "can't be a tuple alone"),
        (lambda x, y: [], "can't be a list alone"),
        (lambda x, y: None, "can't be a NoneType alone"),
        (lambda x, y: 7, "can't be a int alone"),
        (lambda x, y: {"X": x, "y": y}, "can't be a dict alone"),
        (lambda x, y: (x, 5), "labels are '5': give a list of integers or strings"),
        (lambda x, y: (x, "abcd"), "labels are 'abcd': give a list of"),
        (lambda x, y: (x, None), "the test rows have no labels"),
        (lambda x, y: ([[1.0, 2], [1]], ["a", "b"]), "features aren't rows of one length"),
        (lambda x, y: [{"text": "a", "label": "a"}], "fitted on features, so it can't read texts or images"),
    ],
)
@pytest.mark.parametrize("edited", [False, True], ids=["no edit", "an edit"])
def test_what_are_no_test_rows_is_said_in_a_sentence(test, message, edited, fitted, data):
    with pytest.raises(TaskError, match=message):
        verify(fitted, [unlearn(fitted, "b")] if edited else [], test(*data[1]), shadows=0, device="cpu")


def test_too_few_shadows_and_negative_seeds_are_refused(fitted, data):
    for options, message in (
        ({"shadows": 3}, "`shadows` 3 tells nothing"),
        ({"shadows": -1}, "`shadows` -1 tells nothing"),
        ({"seed": -1}, "`seed` -1 must be at least 0"),
    ):
        with pytest.raises(OptionError, match=message):
            verify(fitted, [], data[1], device="cpu", **options)


def test_tables_of_texts_are_encoded_as_the_training_rows_were(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    words = ("film", "plot", "book", "story", "music", "actor", "food", "place")
    tables = [
        {"text": f"{word} was {what}", "label": label}
        for what, label in (("good", "up"), ("bad", "down"))
        for word in words
    ]
    sizes = {"codebooks": 4, "keys": 4, "key_dim": 3, "device": "cpu"}
    bottleneck = Bottleneck.fit(tiny("bert-encoder"), tables[:6] + tables[8:14], **sizes)
    report = verify(bottleneck, unlearn(bottleneck, "up"), tables, shadows=0, baselines=False, device="cpu")
    assert report.content["known_test_rows"] == 12 and report.content["class_rows"] == [2, 2]


# -- remarks ---------------------------------------------------------------------------------------------------------


def said(report, words):
    return [remark for remark in report.remarks if words in remark]


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


@pytest.mark.parametrize(
    ("after", "refitted", "tells"), [(0.9, 0.5, True), (0.1, 0.5, True), (0.5, 0.9, False), (0.5, 0.1, False)]
)
def test_an_attack_that_tells_less_than_after_refitting_draws_no_remark(after, refitted, tells, report, fitted):
    content = json.loads(json.dumps(report.content))
    edit = unlearn(fitted, "b").apply(fitted)
    random = np.random.default_rng(0)
    area, others = RocArea(60, 40), random.normal(size=40)
    scores = {share: random.normal(norm.ppf(share) * math.sqrt(2), 1, 60) for share in (after, refitted)}
    pairs = [(scores[share], others) for share in (after, refitted)]
    for name, pair in zip(("after", "refitted"), pairs, strict=True):
        content["points"][name]["membership"] = {"loss": area.of(*pair)}
    content["points"]["after"]["membership"]["loss"]["against_refitted"] = area.difference(*pairs) | {
        "beyond": area.beyond(*pairs)
    }
    found = [remark for remark in remarks(content, edit) if "tells more of the forgotten rows" in remark]
    assert bool(found) == tells
    if tells:
        assert found[0].startswith("The attack by loss tells more") and "further from guessing" in found[0]


def test_an_edit_that_leaves_some_of_the_class_or_breaks_the_rest_draws_a_remark(fitted, data):
    options = {"shadows": 0, "baselines": False, "device": "cpu"}
    few = verify(fitted, unlearn(fitted, "b", keys=3), data[1], **options)
    assert few.forget_accuracy > 0.05
    share = (
        f"Not all is forgotten: {100 * few.forget_accuracy:.1f}% of the forgotten test rows are still answered right"
    )
    assert said(few, share)
    many = verify(
        fitted, unlearn(fitted, "b", rank="count", keys=unlearn(fitted, "b").edit["active"]), data[1], **options
    )
    lost = many.refitted["retain_accuracy"] - many.retain_accuracy
    assert lost > 0.05 and said(many, f"The edit costs {100 * lost:.1f} points of the rest")
    plain = verify(fitted, unlearn(fitted, "b", method="refit"), data[1], **options)
    assert not said(plain, "Not all is forgotten") and not said(plain, "costs")
    rows = verify(fitted, unlearn(fitted, rows=range(20), method="activations", keys=1), data[1], **options)
    assert rows.forget_accuracy - rows.refitted["forget_accuracy"] > 0.01 and said(rows, "Not all is forgotten")


def test_one_class_left_says_nothing_of_what_is_retained(fitted, data):
    edit = unlearn(fitted, ["a", "b", "c"])
    options = {"shadows": 0, "baselines": False, "device": "cpu"}
    assert said(verify(fitted, edit, data[1], **options), "Only the class d is left to answer")
    two = unlearn(fitted, ["a", "b"])
    assert not said(verify(fitted, two, data[1], **options), "Only the class")
    kept = np.isin(data[1][1], ["a", "d"])
    some = verify(fitted, two, (data[1][0][kept], data[1][1][kept]), **options)
    assert said(some, "All test rows of what is retained are of the class d: nothing is said of the others")


def test_values_after_a_refit_keep_nothing_of_what_a_mask_left(fitted, counted, data):
    for bottleneck in (fitted, counted):
        masked = unlearn(bottleneck, "a", method="activations")
        now = masked.apply(bottleneck)
        assert "taught them" in " ".join(promises(now.history, counted=now.counted))
        refit = unlearn(now, "b", method="refit")
        after = refit.apply(now)
        rest = np.flatnonzero(~np.isin(data[0][1][: len(bottleneck.training)], ["a", "b"]))
        opened = after.selector.states == OPEN
        np.testing.assert_array_equal(after.table[opened], bottleneck.refitted(rest).table[opened])
        told = " ".join(promises(after.history, counted=after.counted))
        assert "taught them" not in told and "betrays membership" in told and "Exact:" not in told
        again = unlearn(after, "c", method="activations")
        assert "taught them" in " ".join(promises(again.apply(after).history))
    nothing = [{**after.history[0], "masked": 0}, after.history[1]]
    assert "No key needed masking" in " ".join(promises(nothing[:1]))
    assert "No key needed masking" not in " ".join(promises(nothing))


def test_classes_have_a_table_in_the_report(report, data, tmp_path):
    columns, rows = report.class_table()
    assert columns == ["class", "test rows", "before", "after", "refitted"]
    assert [row[0] for row in rows] == ["a", "b (forgotten)", "c", "d"]
    for name, row in zip("abcd", rows, strict=True):
        assert row[1] == str((data[1][1] == name).sum())
        assert row[2:] == [f"{100 * report.content['points'][who]['per_class'][name]:.1f}" for who in columns[2:]]
    page = (report.save(tmp_path / "report") / "README.md").read_text()
    assert f"| {' | '.join(rows[1])} |" in page
    older = Report({key: value for key, value in report.content.items() if key != "class_rows"})
    assert [row[1] for row in older.class_table()[1]] == [""] * 4 and older.markdown()
    odd = Report(
        {
            **report.content,
            "classes": ["a|b", *"bcd"],
            "points": {
                "after": {**report.after, "per_class": {"a|b": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}},
                "refitted": report.refitted | {"per_class": dict.fromkeys(["a|b", *"bcd"], 1.0)},
            },
        }
    )
    assert "| a\\|b |" in odd.markdown()


def test_attacks_have_one_name_each(report, fitted, tmp_path):
    names = [attack.name for attack in ATTACKS]
    assert [column for column in report.columns if column.startswith("AUC")] == [f"AUC, {name}" for name in names]
    assert all(name in report.caption for name in names)
    with figure(tmp_path / "areas.png") as axes:
        _areas(axes, report.content["points"], list(report.content["points"]), np.arange(len(report.content["points"])))
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    edits = {
        **report.content,
        "points": {"after": {**report.after, "membership": {"loss": {}}}} | {"before": {}, "refitted": report.refitted},
    }
    assert any(
        "no attack by likelihood ratio" in remark for remark in remarks(edits, unlearn(fitted, "b").apply(fitted))
    )


def test_nothing_written_in_a_figure_hides_a_curve(report, tmp_path, monkeypatch):
    """The note of the number chosen lies outside the axes."""
    seen = []

    @contextmanager
    def looking(*given, **more):
        with figure(*given, **more) as axes:
            yield axes
            axes.figure.canvas.draw()
            seen.extend((note.get_window_extent(), axes.get_window_extent()) for note in axes.texts)

    monkeypatch.setattr("surgery.unlearning.evaluation.figures.figure", looking)
    for chosen in (0, report.content["sweep"][-1]["keys"] // 2, report.content["sweep"][-1]["keys"]):
        history = [{**report.content["history"][0], "masked": chosen}]
        masks({**report.content, "history": history}, tmp_path / "keys.png")
    assert len(seen) == 3 and not any(note.overlaps(axes) for note, axes in seen)


def test_turns_have_a_place_each(fitted, data, tmp_path, monkeypatch):
    """An edit of single rows forgets no class, and yet is a turn."""
    first = unlearn(fitted, "a")
    second = unlearn(first.apply(fitted), rows=[0, 1], method="refit")
    report = verify(fitted, [first, second], data[1], shadows=0, baselines=False, device="cpu")
    places = []

    @contextmanager
    def looking(*given, **more):
        with figure(*given, **more) as axes:
            yield axes
            places.extend(list(line.get_xdata()) for pane in axes for line in pane.lines)

    monkeypatch.setattr("surgery.unlearning.evaluation.figures.figure", looking)
    turns(report.content, tmp_path / "turns.png")
    assert places == [[0, 1, 2]] * 2 + [[1, 2]] * 2


def test_test_rows_must_have_labels_that_training_saw(fitted, data):
    edit = unlearn(fitted, "a")
    with pytest.raises(TaskError, match="'z' of the test rows is none of the 4"):
        verify(fitted, edit, (data[1][0][:2], ["a", "z"]), shadows=0)
    with pytest.raises(TaskError, match="no labels"):
        verify(fitted, edit, Rows.of(data[1][0]), shadows=0)
    with pytest.raises(TaskError, match="9 features"):
        verify(fitted, edit, (data[1][0][:, :9], data[1][1]), shadows=0)
