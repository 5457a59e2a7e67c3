"""A ranking, a baseline, an attack and a figure of one's own: one function and one line each, and all else knows them."""

import numpy as np
import pytest

from surgery.unlearning import Bottleneck, key_ranking, unlearn, verify
from surgery.unlearning.evaluation import attacks, baselines, comparison, figures
from surgery.unlearning.evaluation.attacks import Attack
from surgery.unlearning.evaluation.baselines import Baseline
from surgery.unlearning.evaluation.figures import Drawing


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    labels = np.arange(120) % 3
    return (np.eye(6)[labels] * 3 + random.standard_normal((120, 6))).astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted(data):
    return Bottleneck.fit_features(data[0][:90], data[1][:90], codebooks=6, keys=8, key_dim=3, device="cpu")


def check(fitted, data, **options):
    test = data[0][90:], data[1][90:]
    return verify(fitted, unlearn(fitted, 1, **options), test, shadows=0, device="cpu")


def rarest(pairs):
    """Pairs that few rows select first."""
    return -pairs.all_rows


def test_a_ranking(fitted, data, monkeypatch):
    monkeypatch.setitem(key_ranking.RANKINGS, "rarest", rarest)
    assert "purity or rarest" in key_ranking.rankings_help()
    edit = unlearn(fitted, 1, rank="rarest", keys=4, device="cpu")
    selected = {}
    for row in fitted.training.ids[:, :, 0].tolist():
        for pair in enumerate(row):
            selected[pair] = selected.get(pair, 0) + 1
    active = {
        pair for row in fitted.training.ids[fitted.training.targets == 1, :, 0].tolist() for pair in enumerate(row)
    }
    masked = {tuple(pair) for pair in edit.codebook_keys.tolist()}
    assert len(masked) == 4 and edit.edit["rank"] == "rarest"
    assert max(selected[pair] for pair in masked) <= min(selected[pair] for pair in active - masked)
    report = check(fitted, data, rank="rarest", keys=4)
    assert report.content["sweep"]


def shuffle(student):
    """Every value turned round."""
    student.values = -student.values


def test_a_baseline(fitted, data, monkeypatch):
    monkeypatch.setattr(comparison, "BASELINES", (*baselines.BASELINES, Baseline("turned", shuffle, epochs=3)))
    monkeypatch.setattr(baselines, "BASELINES", comparison.BASELINES)
    assert baselines.baselines_help().endswith(", turned")
    report = check(fitted, data)
    said = fitted.answer(data[0][90:], device="cpu").logits.argmin(1)
    others = data[1][90:] != 1
    assert report.content["points"]["turned"]["retain_accuracy"] == np.mean(said[others] == data[1][90:][others])
    assert report.rows[-1][0] == report.table()[1][-1][0] == "turned"


def first_feature(given):
    """The first feature of each row."""
    return {"after": given.suspects.both.features[:, 0], "refitted": -given.suspects.both.features[:, 0]}


def test_an_attack(fitted, data, monkeypatch, tmp_path):
    every = (*attacks.ATTACKS, Attack("first", "first feature", first_feature))
    for module in ("attacks", "figures", "report"):
        monkeypatch.setattr(f"surgery.unlearning.evaluation.{module}.ATTACKS", every)
    monkeypatch.setattr("surgery.unlearning.remarks.ATTACKS", every)
    report = check(fitted, data)
    after, refitted = (point["membership"]["first"] for point in (report.after, report.refitted))
    assert after["auc"] == pytest.approx(1 - refitted["auc"])
    assert after["against_refitted"]["auc"] == pytest.approx(after["auc"] - refitted["auc"], abs=1e-6)
    assert "AUC, first feature" in report.columns and "first feature" in report.caption
    assert "AUC, first feature" in report.table()[0] and "by first feature" in " ".join(report.summary)
    page = (report.save(tmp_path / "report") / "index.html").read_text()
    assert "AUC, first feature" in page and "the first feature of each row" in page
    assert len(report.columns) == len(report.rows[0])


def one_bar(content, file):
    """A bar of the accuracy kept."""
    with figures.figure(file) as axes:
        axes.bar([0], [content["points"]["after"]["retain_accuracy"]])


def test_a_figure(fitted, data, monkeypatch, tmp_path):
    drawing = Drawing("kept", one_bar, lambda content: True, "What is left.")
    monkeypatch.setattr(figures, "DRAWINGS", (*figures.DRAWINGS, drawing))
    folder = check(fitted, data).save(tmp_path / "report")
    assert (folder / "kept.png").stat().st_size > 1000
    for name in ("README.md", "index.html"):
        page = (folder / name).read_text()
        assert "kept.png" in page and "What is left." in page and "A bar of the accuracy kept" in page
