"""Verification against plain counts: accuracies, exactness, curves, and what is said when rows aren't at hand."""

import numpy as np
import pytest
import torch

from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.unlearning import Bottleneck, Rows, unlearn, verify
from surgery.unlearning.evaluation.curves import in_turn, shared_keys, sweep_keys
from surgery.unlearning.evaluation.evaluator import Evaluator
from surgery.unlearning.evaluation.verification import verify_folder

CPU = torch.device("cpu")


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


def test_test_rows_must_have_labels_that_training_saw(fitted, data):
    edit = unlearn(fitted, "a")
    with pytest.raises(TaskError, match="'z' of the test rows is none of the 4"):
        verify(fitted, edit, (data[1][0][:2], ["a", "z"]), shadows=0)
    with pytest.raises(TaskError, match="no labels"):
        verify(fitted, edit, Rows.of(data[1][0]), shadows=0)
    with pytest.raises(TaskError, match="9 features"):
        verify(fitted, edit, (data[1][0][:, :9], data[1][1]), shadows=0)


def test_the_seed_reaches_attacks_relearning_and_the_probe_and_half_is_half(fitted, data):
    edit, options = unlearn(fitted, "b", method="refit", device="cpu"), {"shadows": 0, "baselines": False}
    one, again, other = (verify(fitted, edit, data[1], seed=seed, device="cpu", **options) for seed in (0, 0, 1))
    for read in (
        lambda report: report.after["membership"]["loss"]["low"],
        lambda report: report.after["relearn"]["curve"],
        lambda report: report.content["probe"],
    ):
        assert read(one) == read(again) != read(other)
    for report in (one, other):
        half, curve = report.before["forget_accuracy"] / 2, report.after["relearn"]["curve"]
        enough = [int(number) for number, accuracy in curve.items() if accuracy >= half]
        assert report.after["relearn"]["examples"] == min(enough, default=None)
