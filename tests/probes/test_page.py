"""What a report says to people: the answer first, every column explained, and a probe's own declaration all that it takes."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from probes import ProbeReport, catalog, findings, page
from probes.catalog import METRICS, PROBES, measure_all
from probes.figures.catalog import drawings
from probes.intervals import Measure
from probes.probe import Features, Metric, Probe
from probes.scorer import Scorer
from surgery.reporting.page import Figure, Table

SAVED = Path(__file__).parents[1] / "data" / "saved" / "probe-report"


@pytest.fixture(scope="module")
def report():
    return ProbeReport.load(SAVED)


def measure(probe, source, layer, metric, value, spread=0.01):
    return Measure(probe, source, layer, metric, "", value, value - spread, value + spread, (value,))


def numbers(report, *measures, best=1):
    return replace(report, measures=measures, best_layer=best, loss=None)


def test_the_answer_comes_first_then_figures_then_tables(report):
    whole = page.report_page(report, drawings(report))
    assert list(whole.answer) == report.summary
    kinds = [type(part) for part in whole.parts if isinstance(part, Figure | Table)]
    assert kinds == sorted(kinds, key=lambda kind: kind is Table)
    assert {Figure, Table} == set(kinds)
    by_layer, verdicts = [part for part in whole.parts if isinstance(part, Table)][:2]
    assert set(by_layer.columns) == set(by_layer.legend) & set(by_layer.columns)  # each is explained
    assert (by_layer.folded, verdicts.folded) == (False, True)
    assert len(verdicts.rows) == len(report.verdicts)
    assert verdicts.caption == f"Controls beaten: {sum(v.beats for v in report.verdicts)} of {len(report.verdicts)}."


def test_every_probe_and_figure_declares_what_a_reader_needs(report):
    names = [probe.name for probe in PROBES]
    assert len(set(names)) == len(names)
    columns = [metric.column for _, metric in METRICS if metric.column]
    assert len(set(columns)) == len(columns)
    assert all(metric.meaning.endswith(".") for _, metric in METRICS if metric.column)
    drawn = drawings(report)
    assert len({d.name for d in drawn}) == len(drawn) >= 4
    assert all(d.caption.endswith(".") and len(d.alt) > 40 for d in drawn)


@dataclass(frozen=True)
class Planted(Probe):
    def measure(self, scorer, seen):
        return [measure(self.name, seen.source, seen.layer, "hits", 0.5)]


def test_a_new_probe_is_in_tables_verdicts_and_legend_by_its_declaration(report, monkeypatch):
    probe = Planted("planted", "planted things", 5, (Metric("hits", ("layer 0", "random"), "hits", "share found."),))
    nobody = object.__new__(Scorer)
    for module in (catalog, findings, page):
        monkeypatch.setattr(module, "PROBES", (*PROBES, probe))
    for module in (findings, page):
        monkeypatch.setattr(module, "METRICS", (*METRICS, (probe, probe.metrics[0])))
    found = [m for layer in (0, 1) for m in measure_all(nobody, Features("model", layer))]
    assert found == []  # no probe is shown what it doesn't see
    monkeypatch.setattr(catalog, "PROBES", (probe,))
    found = [m for layer in (0, 1) for m in measure_all(nobody, Features("model", layer, np.ones((1, 1))))]
    changed = replace(
        report, measures=(*report.measures, *found, measure("none", "random", None, "hits", 0.2)), best_layer=1
    )
    columns, rows = changed.table()
    assert [row[columns.index("hits")] for row in rows if row[0] in ("layer 0", "random")] == [0.5, 0.2]
    verdicts = {v.control: v.beats for v in changed.verdicts if v.probe == "planted"}
    assert verdicts == {"layer 0": False, "random": True}
    html = page.report_page(changed, []).html()
    assert "<dt>hits</dt><dd>share found.</dd>" in html
    assert "planted things: hits" in html


def test_verdicts_by_hand(report):
    """Higher wins, for divergences lower; intervals that touch decide nothing; layer 0 isn't held against itself."""

    def beats(probe, metric, own, control, others, layer=1, best=1):
        found = numbers(report, measure(probe, "model", layer, metric, own), *others, best=best).verdicts
        return {v.control: v.beats for v in found if (v.probe, v.metric) == (probe, metric)}.get(control)

    for value, wins in ((0.52, False), (0.47, True), (0.6, False)):
        position = [measure("depth", "position", None, "f1", value)]
        assert beats("depth", "f1", 0.5, "position", position) is wins
        left = [measure("none", "left", None, "f1", value)]
        assert beats("depth", "f1", 0.5, "left", left) is wins
        task = [measure("depth", "model", 1, "control accuracy", value)]
        assert beats("depth", "accuracy", 0.5, "control task", task) is wins
        first = [measure("depth", "model", 0, "f1", value)]
        assert beats("depth", "f1", 0.5, "layer 0", first) is wins
    assert beats("words", "kl", 0.5, "position", [measure("words", "position", None, "kl", 0.6)])
    assert beats("words", "kl", 0.5, "position", [measure("words", "position", None, "kl", 0.4)]) is False
    assert beats("depth", "f1", 0.5, "layer 0", [], layer=0, best=0) is None
    # A control with layers is taken at its best one; of the model, the layer that speaks for the probe.
    two = [measure("depth", "untrained", layer, "f1", value) for layer, value in ((0, 0.3), (1, 0.6))]
    assert beats("depth", "f1", 0.5, "untrained", two) is False
    two = [measure("words", "untrained", layer, "kl", value) for layer, value in ((0, 0.3), (1, 0.6))]
    assert beats("words", "kl", 0.5, "untrained", two) is False
    assert beats("words", "kl", 0.5, "position", [measure("words", "position", None, "kl", 0.6)], best=0)


def test_the_summary_says_what_was_measured(report):
    own = [measure("span-two-layer", "model", 1, metric, value) for metric, value in (("f1", 0.4), ("f1 share", 0.8), ("r2", 0.3))]  # fmt: skip
    control = measure("span-two-layer", "position", None, "r2", 0.1)
    found = numbers(report, *own, control)
    assert found.summary == [
        "Trees decoded from layer 1, the best by description length, reach F1 0.400 [0.390, 0.410], which is 0.800 [0.790, 0.810] of the binarised true trees.",
        "Span marginals can be read there with R2 0.300 [0.290, 0.310].",
        "Every comparison with a control is won by more than the 95% intervals.",
    ]
    better = measure("span-two-layer", "position", None, "f1", 0.5)
    assert "of the binarised true trees, but don't clearly beat position." in numbers(report, *own, better).summary[0]
    assert found.unbeaten == []
    lost = numbers(report, *own, control, measure("span-two-layer", "untrained", 0, "r2", 0.5))
    assert lost.summary[-1] == "1 of the 2 comparisons with controls is won by more than the 95% intervals."
    assert lost.unbeaten == ["span-two-layer r2: untrained"]
    excess = {"excess": {"value": 0.25, "low": 0.2, "high": 0.3}, "optimum": 1.5, "by_position": [], "by_masks": []}
    exact = replace(found, loss=excess, exact=True)
    assert "masked words are predicted 0.250 nats [0.200, 0.300] above the optimum of 1.500" in exact.summary[1]
    assert "of the grammar's own minimum-risk trees" in exact.summary[0]
    assert numbers(report).summary == ["Layer 1 describes the training spans in the fewest bits."]
    assert any("embeddings" in line for line in replace(report, best_layer=0).remarks)
    assert not any("embeddings" in line for line in replace(report, best_layer=1).remarks)


def test_the_table_has_a_row_a_source_and_a_star(report):
    columns, rows = report.table()
    names = [row[0] for row in rows]
    assert names[: len(report.layers)] == [f"layer {n}{' *' * (n == report.best_layer)}" for n in report.layers]
    assert names[-7:] == ["word identity", "position", "length", "left", "right", "random", "ceiling"]
    ceiling = dict(zip(columns, rows[-1], strict=True))
    assert ceiling["of ceiling"] == 1.0
    assert ceiling["DSpr"] is None
    assert re.match(r" +R2 linear", report.text())
    assert len(report.text().splitlines()) == len(rows) + 1


def test_a_report_is_shown_in_a_line_and_in_a_notebook(report):
    assert len(repr(report)) <= 200
    assert "\n" not in repr(report)
    assert repr(report).startswith("<ProbeReport: Trees decoded from layer")
    shown = report._repr_html_()
    assert "<table>" in shown
    assert len(shown) < 30_000
