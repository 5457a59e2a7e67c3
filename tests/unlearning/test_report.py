"""A verification's report: saved and loaded, its tables, figures and remarks."""

import json
import math
from contextlib import contextmanager
from html import escape

import numpy as np
import pytest
import torch
from scipy.stats import norm

from surgery.errors import BottleneckError
from surgery.reporting.figures import figure
from surgery.unlearning import Report, unlearn, verify
from surgery.unlearning.descriptions import promises
from surgery.unlearning.evaluation.attacks import ATTACKS
from surgery.unlearning.evaluation.figures import _areas, masks, turns
from surgery.unlearning.evaluation.roc_area import RocArea
from surgery.unlearning.key_selection import OPEN
from surgery.unlearning.remarks import remarks

CPU = torch.device("cpu")


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


def said(report, words):
    return [remark for remark in report.remarks if words in remark]


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


@pytest.mark.parametrize(
    ("low", "high", "leaks"), [(0.51, 0.7, True), (0.3, 0.49, True), (0.5, 0.7, False), (0.4, 0.5, False)]
)
@pytest.mark.parametrize(("saw", "why"), [(3, "keys were placed by the forgotten rows"), (0, "the test rows of the")])
def test_a_yardstick_that_leaks_itself_draws_a_remark(low, high, leaks, saw, why, report, fitted):
    content = json.loads(json.dumps(report.content))
    for name in content["points"]["refitted"]["membership"]:
        content["points"]["refitted"]["membership"][name] |= {"auc": 0.5, "low": 0.4, "high": 0.6}
    area = {"auc": (low + high) / 2, "low": low, "high": high}
    content["points"]["refitted"]["membership"]["likelihood_ratio"] |= area
    content["history"] = [{**edit, "keys_saw_them": saw} for edit in content["history"]]
    drawn = [remark for remark in remarks(content, unlearn(fitted, "b").apply(fitted)) if "gives the" in remark]
    assert len(drawn) == leaks
    if leaks:
        found = (
            f"an area by likelihood ratio {(low + high) / 2:.2f} (95% {low:.2f} to {high:.2f}) where guessing gives .50"
        )
        assert found in drawn[0] and why in drawn[0] and "by loss" not in drawn[0]


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
        np.testing.assert_array_equal(after.entries[opened], bottleneck.refitted(rest).entries[opened])
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
