"""A whole experiment on a tiny model: the report, its schema, its pages, its figures, the command."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from pcfg import Grammar, sample
from pcfg.errors import GrammarError, PcfgError
from pcfg.learning.pretraining import HELD_OUT, PretrainRecipe, pretrain
from pcfg.sentences import fingerprint
from pcfg.treebanks.trees import Tree, format_trees
from probes import ProbedModel, ProbeReport, probe_spans, probe_trees
from probes.dataset import Dataset
from probes.errors import ProbeError
from probes.experiment import _notes
from probes.intervals import Measure, r_squared, squares
from probes.scorer import Scorer, Settings
from probes.spans import fit_spans
from surgery.errors import CheckpointError, OptionError
from surgery.progress import silent

CONTROLS = {"layer 0", "untrained", "word identity", "position"}


@pytest.fixture(scope="module")
def grammar():
    return Grammar.random(3, 4, words=6, seed=1, temperature=2.0)


@pytest.fixture(scope="module")
def model(grammar, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed") / "mlm"
    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=320, max_length=9, batch_size=32, evaluation=20)
    pretrain(grammar, recipe, device="cpu").save(folder)
    return folder


@pytest.fixture(scope="module")
def report(model, grammar):
    return probe_spans(model, grammar, sample(grammar, 80, seed=0, max_length=8), seeds=2, device="cpu")


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "report"
    report.save(folder)
    return folder


def test_every_probe_and_control_is_there_at_every_layer(report):
    assert report.layers == (0, 1)
    for layer in report.layers:
        for probe in ("span-linear", "span-two-layer"):
            for metric in ("r2", "pearson", "spearman", "f1", "f1 share", "control r2", "selectivity"):
                found = report.find(probe, "model", metric, layer)
                assert found is not None, (probe, metric, layer)
                assert len(found.seeds) == 2
        for probe, metric in (
            ("depth", "accuracy"),
            ("depth", "selectivity"),
            ("distance", "spearman"),
            ("distance", "f1"),
            ("words", "kl"),
        ):
            assert report.find(probe, "model", metric, layer) is not None
            assert metric == "selectivity" or report.find(probe, "untrained", metric, layer) is not None
    compared = {(v.probe, v.metric): set() for v in report.verdicts}
    for verdict in report.verdicts:
        compared[verdict.probe, verdict.metric].add(verdict.control)
    assert compared["span-two-layer", "r2"] >= CONTROLS - {"layer 0"} | {"length", "control task"}
    assert compared["span-two-layer", "f1"] >= CONTROLS - {"layer 0"} | {"left", "right", "random"}
    assert report.find("none", "ceiling", "f1 share").value == 1.0
    assert report.loss["excess"]["value"] > 0
    assert len(report.removals) == 2
    assert len(report.heads) == 2
    assert {m.group for m in report.measures} >= {"2", "3", "N0"}


def test_intervals_hold_their_values(report):
    for m in report.measures:
        assert math.isfinite(m.value)
        assert m.value == pytest.approx(np.mean(m.seeds))
        if m.low is not None and m.metric != "selectivity":
            assert m.low <= m.high
            assert m.low - 0.05 <= m.value <= m.high + 0.05, m


def test_a_verdict_is_whether_intervals_touch(report):
    best = report.best_layer
    own = report.find("span-two-layer", "model", "f1", best)
    others = [m for m in report.measures if m is not own and (m.source, m.metric) != ("right", "f1")]

    def beats(low, high):
        right = Measure("none", "right", None, "f1", "", (low + high) / 2, low, high, (0.0,))
        changed = replace(report, measures=(own, right, *others))
        return next(v.beats for v in changed.verdicts if (v.probe, v.control) == ("span-two-layer", "right"))

    assert beats(own.low - 0.2, own.low - 0.1)
    assert not beats(own.low - 0.2, own.low + 0.01)


def test_masked_words_are_judged_at_the_last_layer(report):
    changed = replace(report, best_layer=0)
    values = {v.probe: v.value.layer for v in changed.verdicts}
    assert values["words"] == 1
    assert values["span-two-layer"] == 0


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_report(model, grammar, report, saved, tmp_path, monkeypatch):
    resume, drawn = tmp_path / "report.partial", sample(grammar, 80, seed=0, max_length=8)

    def kill(done, total, line):
        if line == "probes: untrained, layer 0":
            raise KilledError

    with pytest.raises(KilledError):
        probe_spans(model, grammar, drawn, seeds=2, device="cpu", resume=resume, progress=kill)
    assert sorted(path.name for path in resume.iterdir()) == ["call.json", "model-0.json", "model-1.json"]
    with pytest.raises(PcfgError, match="state of another run"):
        probe_spans(model, grammar, drawn, seeds=3, device="cpu", resume=resume)
    fitted = []

    def count(kind, features, *rest):
        fitted.append(kind)
        return fit_spans(kind, features, *rest)

    monkeypatch.setattr("probes.spans.fit_spans", count)
    again = probe_spans(model, grammar, drawn, seeds=2, device="cpu", resume=resume)
    assert fitted == 4 * [
        "linear",
        "linear",
        "two-layer",
        "two-layer",
    ]  # two untrained layers, words, places; two seeds
    made = {**again.provenance, "made": report.provenance["made"]}
    replace(again, provenance=made, seconds=report.seconds).save(tmp_path / "again")
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_what_is_saved_is_loaded_and_is_by_the_schema(report, saved):
    assert ProbeReport.load(saved) == report
    schema = json.loads((saved / "report.schema.json").read_text())
    content = json.loads((saved / "report.json").read_text())
    check(content, schema)
    with pytest.raises(AssertionError):
        check({**content, "best_layer": "one"}, schema)
    with pytest.raises(AssertionError):
        check({**content, "measures": [{"probe": "x"}]}, schema)


def check(value, schema):
    """The part of JSON Schema that the report's schema uses."""
    if "anyOf" in schema:
        return assert_any(value, schema["anyOf"])
    if "const" in schema:
        assert value == schema["const"]
    if "enum" in schema:
        assert value in schema["enum"]
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(is_kind(value, kind) for kind in kinds), (value, kinds)
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value)
        assert schema.get("additionalProperties", True) or set(value) <= set(schema["properties"])
        for key, inner in schema.get("properties", {}).items():
            check(value[key], inner) if key in value else None
    if isinstance(value, list):
        assert len(value) >= schema.get("minItems", 0)
        for item in value:
            check(item, schema.get("items", {}))
    return None


def assert_any(value, schemas):
    for schema in schemas:
        try:
            return check(value, schema)
        except AssertionError:
            continue
    raise AssertionError(value)


def is_kind(value, kind):
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in kinds:
        return isinstance(value, kinds[kind])
    return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)


def test_pages_and_figures(report, saved):
    names = {path.name for path in saved.iterdir()}
    assert names >= {
        "report.json",
        "README.md",
        "index.html",
        "f1.png",
        "marginals.png",
        "selectivity.png",
        "loss.png",
        "causal.png",
        "heads.png",
        "sentence-1.png",
    }
    for path in saved.glob("*.png"):
        with Image.open(path) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    page = (saved / "README.md").read_text()
    assert set(re.findall(r"\((\S+\.png)\)", page)) == {name for name in names if name.endswith(".png")}
    html = (saved / "index.html").read_text()
    body = re.sub(r"<(meta|img)([^>]*)>", r"<\1\2/>", html.removeprefix("<!doctype html>\n"))
    assert ElementTree.fromstring(body).tag == "html"
    assert report.text().count("\n") == len(report.table()[1])
    assert any("above the optimum" in line for line in report.summary)


def test_a_sentence_in_a_terminal(report):
    example = report.examples[0]
    shown = example.text()
    assert shown.count("(") == 2 * (len(example.words) - 1)
    assert all(shown.count(word) >= 4 for word in example.words)


def test_the_same_seed_gives_the_same_report_byte_for_byte(model, grammar, report, saved, tmp_path):
    again = probe_spans(model, grammar, sample(grammar, 80, seed=0, max_length=8), seeds=2, device="cpu")
    made = {**again.provenance, "made": report.provenance["made"]}
    replace(again, provenance=made, seconds=report.seconds).save(tmp_path / "again")
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_drawn_sentences_are_not_those_trained_on(model, grammar):
    report = probe_spans(model, grammar, 40, layers=[0], seeds=1, max_length=9, device="cpu")
    trained, new = (
        fingerprint([s for s in sample(grammar, 40, seed=0, max_length=9, first=first) if len(s) > 2])
        for first in (0, HELD_OUT)
    )
    assert report.provenance["inputs"]["sentences"] == new != trained


def test_damaged_reports_are_refused(saved, tmp_path):
    with pytest.raises(ProbeError, match="can't be read"):
        ProbeReport.load(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ProbeError, match="isn't JSON"):
        ProbeReport.load(tmp_path)
    (tmp_path / "report.json").write_text('{"schema": 1}')
    with pytest.raises(ProbeError, match="isn't a probe report of schema 1"):
        ProbeReport.load(tmp_path)
    content = json.loads((saved / "report.json").read_text())
    del content["measures"][0]["value"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ProbeError, match="is damaged"):
        ProbeReport.load(tmp_path)


def trees():
    nouns, verbs = ["cat", "dog", "fox", "hen"], ["sees", "bites"]
    return [
        Tree.parse(f"(S (NP-SBJ (DT the) (NN {a})) (VP (VBZ {v}) (NP (DT a) (NN {b}))) (. .))")
        for a in nouns
        for b in nouns
        for v in verbs
    ]


def test_a_model_of_text_against_trees(tiny, tmp_path):
    report = probe_trees(
        tiny("bert"), trees(), layers=[1], seeds=1, device=torch.device("cpu"), resume=tmp_path / "state"
    )
    assert not report.exact
    assert report.layers == (0, 1)
    assert report.loss is None
    assert report.removals == ()
    assert report.find("words", "model", "kl", 1) is None
    assert any("no grammar" in note for note in report.notes)
    report.save(tmp_path / "report")
    assert ProbeReport.load(tmp_path / "report") == report


def test_words_that_the_model_does_not_know_are_counted_and_said(model, grammar):
    probed, known = ProbedModel.load(model, device="cpu"), grammar.words
    sentences = [(known[0], "zebra", known[1]), ("zebra", known[2], "yak"), ("<unk>", known[0])]
    assert probed.unknown_words(sentences) == ["zebra", "zebra", "yak"]
    bank = [Tree.parse(f"(S (A (B {known[i % 4]}) (C {known[i // 4]})) (D yak))") for i in range(16)]
    (said,) = (note for note in _notes(probed, Dataset.of_trees(bank, seed=0)) if "unknown" in note)
    assert said == (
        "33.3% of the words (16 of 48, 1 different: 'yak') are unknown to the model, which reads all of them as <unk>"
    )
    assert not any(
        "unknown" in note
        for note in _notes(probed, Dataset.of_grammar(grammar, sample(grammar, 40, seed=0, max_length=8), seed=0))
    )


def test_bad_input(model, tiny, grammar):
    with pytest.raises(PcfgError, match=r"isn't a token of the model's own; \d+ others aren't either: '"):
        probe_spans(tiny("bert"), grammar, 20)
    with pytest.raises(OptionError, match="there is no layer 9"):
        probe_spans(model, grammar, 40, layers=[9])
    with pytest.raises(OptionError, match="`seeds` must be 1 or more"):
        probe_spans(model, grammar, 40, seeds=0)
    with pytest.raises(ProbeError, match="too few"):
        probe_spans(model, grammar, [["w0", "w1", "w2"]])
    with pytest.raises(ProbeError, match="tree 1 and sentence 1 disagree at word 2"):
        probe_trees(tiny("bert"), trees()[:1], [["the", "mouse", "sees", "a", "cat", "."]])


BAD = {
    "no model": (lambda model, grammar, file: probe_spans("/nowhere", grammar), CheckpointError),
    "a word of no grammar": (lambda model, grammar, file: probe_spans(model, grammar, [["zebu"] * 3] * 9), GrammarError),
    "another grammar": (lambda model, grammar, file: probe_spans(model, Grammar.random(3, 4, words=9, seed=0)), GrammarError),
    "fewer than none": (lambda model, grammar, file: probe_spans(model, grammar, -1), OptionError),
    "no words": (lambda model, grammar, file: probe_spans(model, grammar, 40, max_length=0), OptionError),
    "no words in trees": (lambda model, grammar, file: probe_trees(model, trees(), max_length=2), OptionError),
    "no trees": (lambda model, grammar, file: probe_trees(model, []), ProbeError),
    "a seed below 0": (lambda model, grammar, file: probe_spans(model, grammar, 40, seed=-1), OptionError),
    "no device": (lambda model, grammar, file: probe_spans(model, grammar, 40, device="abacus"), OptionError),
    "a state that is a file": (lambda model, grammar, file: probe_spans(model, grammar, 80, resume=file), OptionError),
    "a cache that is a file": (lambda model, grammar, file: probe_spans(model, grammar, 80, cache=file), ProbeError),
    "a model that isn't there": (lambda model, grammar, file: ProbedModel.load("/nowhere"), CheckpointError),
    "a report in a model's place": (lambda model, grammar, file: ProbeReport.load(model), ProbeError),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_whatever_is_wrong_is_a_probe_error_and_of_its_own_kind(name, model, grammar, tmp_path):
    call, kind = BAD[name]
    (tmp_path / "file").write_text("something")
    with pytest.raises(ProbeError) as caught:
        call(model, grammar, tmp_path / "file")
    assert isinstance(caught.value, kind)
    assert (tmp_path / "file").read_text() == "something"


def test_a_report_takes_nothing_elses_place(report, tmp_path):
    (tmp_path / "mine.txt").write_text("something")
    for overwrite in (False, True):
        with pytest.raises(ProbeError, match=r"exists already|holds no report\.schema\.json"):
            report.save(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "shape", ["(S (A {}) (A {}) (A {}))", "(S (X (A {}) (A {})) (. {}))"], ids=["flat", "punctuation"]
)
def test_trees_without_a_span_to_find(shape, tiny):
    bank = [Tree.parse(shape.format(a, b, c)) for a in ("the", "a") for b in ("cat", "dog") for c in (".", "sees", "!")]
    with pytest.raises(ProbeError, match="nothing to find: give more or longer sentences"):
        probe_trees(tiny("bert"), bank, seeds=1, device="cpu")


def test_a_control_task_that_never_changes_is_left_out(grammar):
    """A few short test sentences may have one class of words alone: its R^2 is no number, which no JSON holds."""
    dataset = Dataset.of_grammar(grammar, sample(grammar, 80, seed=0, max_length=8))
    scorer = Scorer(dataset, Settings(1, 0, None, None, silent))
    real, count = Measure("span-linear", "model", 0, "r2", "", 0.5, 0.4, 0.6, (0.5,)), len(dataset.test)
    for task, found in ((np.ones(9), 0), (np.arange(9.0), 2)):
        stats = squares(np.linspace(0, 1, 9), task, np.arange(9) % count, count)
        assert len(scorer.selectivity(real, "control r2", stats[None], r_squared)) == found


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_the_commands_as_written(grammar, tmp_path):
    grammar.save(tmp_path / "g.pcfg.json")
    done = run("pcfg", "pretrain", tmp_path / "g.pcfg.json", "--layers", 1, "--heads", 2, "--width", 16, "--sentences", "2e2", "--max-length", 8, "--evaluation", 20, "-o", tmp_path / "mlm", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 4
    assert not (tmp_path / "mlm.partial").exists()
    done = run("probe", tmp_path / "mlm", "--grammar", tmp_path / "g.pcfg.json", "--sentences", 40, "--max-length", 7, "--seeds", 1, "--layers", "1", "-o", tmp_path / "report")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert re.search(r"^layer 1( \*)?  +-?\d\.\d{3}", done.stdout, re.MULTILINE)  # not folded to a letter a line
    assert ProbeReport.load(tmp_path / "report").layers == (0, 1)
    assert not (tmp_path / "report.partial").exists()
    again = run("probe", tmp_path / "mlm", "-o", tmp_path / "report")
    assert "exists already" in str(again.exception)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text("{}")  # as a model's folder
    again = run("probe", tmp_path / "mlm", "-o", tmp_path / "other", "--overwrite")
    assert "holds no report.schema.json, so it isn't overwritten" in str(again.exception)
    alone = run("probe", "-o", tmp_path / "report2")  # mlm is beside it, of another grammar
    assert "mlm is in the way, and isn't the example's model" in str(alone.exception)
    alone = run("probe", "--text", tmp_path / "g.pcfg.json", "-o", tmp_path / "report2")
    assert "MODEL is missing" in str(alone.exception)
    (tmp_path / "trees.txt").write_text(format_trees(trees()))
    both = run("probe", tmp_path / "mlm", "--trees", tmp_path / "trees.txt", "--grammar", tmp_path / "g.pcfg.json", "-o", tmp_path / "r2")  # fmt: skip
    assert "one of --grammar, --trees" in str(both.exception)
    for number in ("many", "inf", "nan", "1.5", "0"):
        wrong = run("pcfg", "pretrain", tmp_path / "g.pcfg.json", "--sentences", number, "-o", tmp_path / "m2")
        assert f"--sentences {number} must be a whole number" in str(wrong.exception)
    wrong = run("pcfg", "pretrain", tmp_path / "g.pcfg.json", "--device", "none", "-o", tmp_path / "m2")
    assert "`device` none can't be used here" in str(wrong.exception)
    assert not list(tmp_path.glob("m2*"))
    wrong = run("pcfg", "pretrain", tmp_path / "g.pcfg.json", "-o", tmp_path / "report", "--overwrite")
    assert "holds no grammar.pcfg.json, so it isn't overwritten" in str(wrong.exception)  # before any training


def test_trees_and_their_sentences_by_the_command(tiny, tmp_path):
    bank = trees()
    (tmp_path / "trees.txt").write_text(format_trees(bank))
    words = [" ".join(tree.words()) for tree in bank]
    (tmp_path / "wrong.txt").write_text("\n".join([*words[:4], "the dog sees a bird .", *words[5:]]))
    wrong = run("probe", tiny("bert"), "--trees", tmp_path / "trees.txt", "--text", tmp_path / "wrong.txt", "-o", tmp_path / "r")  # fmt: skip
    assert re.search(r"tree 5 and sentence 5 disagree at word \d", str(wrong.exception))
    assert not (tmp_path / "r").exists()
