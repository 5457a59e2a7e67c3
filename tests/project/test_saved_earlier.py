"""What earlier code saved is loaded, and means what it meant: see tests/data/saved/README.md for how each was made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pcfg import Grammar, Tree, inside_outside
from pcfg.learning.pretraining import Pretrained
from pcfg.learning.resumable_fit import fit_file
from probes import ProbeReport
from surgery import Checkpoint, Recipe, Skill, Task, Tuned, score, tune
from surgery.tasks.examples import Example
from surgery.tasks.scoring import Score
from surgery.tint import Run, Verification
from surgery.unlearning import Bottleneck, Eraser, Report
from tests.support.tiny import expected_fingerprint, hashes, weights

SAVED = Path(__file__).resolve().parents[1] / "data" / "saved"
BASE = "d246c1f36bae793a6d8e6de40a1b454d396cbc5eb3072b5bd481233c81a79fd6"
TUNED = "098f65fe5399650ea650a573921a3b1b4a198cd6f7beb93fa7beda662bb44d52"
PATCHED = "5ba5764af581c1785f2338ed24ca1fa972ed4d17617421ac4a395025caa16698"
LOGITS = [
    *([0.23615966737270355, 0.04709828644990921], [0.2361668199300766, 0.04701866954565048]),
    *([0.23627565801143646, 0.047232091426849365], [0.23620745539665222, 0.04715854674577713]),
]


@pytest.fixture
def task():
    labelled = (("good", "positive"), ("bad", "negative"), ("great", "positive"), ("awful", "negative"))
    rows = [Example(f"the film was {word}", "", label) for word, label in labelled]
    return Task.load("sst2", train=rows * 2, dev=rows, test=rows * 2)


def test_a_skill_is_applied_and_reverted_to_the_bit(tmp_path):
    skill = Skill.load(SAVED / "skill")
    assert (skill.delta.weights, skill.delta.movable, skill.delta.base_fingerprint) == (20, 2224, BASE)
    assert skill.task.labels == ("negative", "positive")
    assert skill.report["graft"]["accuracy"] == 0.5 and skill.report["graft"]["ece"] == 0.06355832519520122
    assert skill.report["method"] == "averaging" and skill.report["seed"] == 0
    base = tmp_path / "base"
    shutil.copytree(SAVED / "base", base)
    before = hashes(base)
    skill.apply(base, in_place=True)
    assert expected_fingerprint(weights(base)) == PATCHED
    skill.revert(base, in_place=True)
    assert hashes(base) == before
    assert Skill.load(SAVED / "skill").save(tmp_path / "again", figures=False) == tmp_path / "again"
    one, two = (load_file(folder / "skill.safetensors") for folder in (SAVED / "skill", tmp_path / "again"))
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_tuned_checkpoint_scores_as_it_did_and_its_recipe_is_one(task):
    report = json.loads((SAVED / "tuned" / "report.json").read_text())
    kept = {"optimizer", "rate", "l1", "steps", "batch_size", "accumulate", "momentum", "warmup", "clip", "evaluations"}
    recipe = Recipe(**{name: value for name, value in report["recipe"].items() if name in {*kept, "patience"}})
    assert recipe == Recipe("adamw", rate=0.05, l1=0.0, steps=6, batch_size=4)
    assert report["moved"] == 2224 and report["losses"] == [0.7091, 0.69761, 0.73259, 0.66549]
    assert Checkpoint(SAVED / "tuned").fingerprint == expected_fingerprint(weights(SAVED / "tuned")) == TUNED
    found = score(SAVED / "tuned", task, against=SAVED / "base", device="cpu")
    assert found.logits == pytest.approx(np.array(LOGITS * 2), abs=1e-5)
    assert (found.accuracy, found.agreement) == (0.5, 1.0)
    again = tune(SAVED / "base", task, recipe, device="cpu", seed=1)
    assert again.report["losses"] == pytest.approx(report["losses"], abs=1e-4)


def test_a_tuned_checkpoint_is_read_as_the_result_that_it_was():
    tuned = Tuned.load(SAVED / "tuned", base=SAVED / "base")
    assert tuned.report["losses"] == [0.7091, 0.69761, 0.73259, 0.66549] and tuned.task.labels == (
        "negative",
        "positive",
    )
    whole = load_file(SAVED / "tuned" / "model.safetensors")
    assert all(np.array_equal(tensor.numpy(), whole[name]) for name, tensor in tuned.tensors.items())
    assert sum(tensor.numel() for tensor in tuned.tensors.values()) == 2224


def test_a_score_report_holds_every_example():
    found = Score.load(SAVED / "score")
    assert found.logits.tolist() == LOGITS * 2 and found.targets.tolist() == [1, 0] * 4
    assert (found.accuracy, found.agreement, found.metric) == (0.5, 1.0, "accuracy")
    assert found.labels == ("negative", "positive")


ROWS = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)
BOTTLENECKS = {
    "sgd": ("4aa1dc8cb90d16eb1104561c4d8eb15a11ceffbe97e490b22f68dd915b4fb7cf", "c0 c0 c0 c1 c1", "c0 c0 c0 c0 c0"),
    "counts": ("c63821adafd7973355e588b366ff8f0b6fe74c6b55f9920c5174c24c7776bf9e", "c0 c0 c2 c1 c1", "c0 c0 c2 c0 c0"),
}
ERASED = {
    "sgd": "e42b945624e2d6dea9e633716dbf2f0a5998be68937cbadebb40d02dfdd87635",
    "counts": "ff893be4dde58e3be5af61ba540e707453cae8285b30f9e3328196e14f993d48",
}


@pytest.mark.parametrize("values", BOTTLENECKS)
def test_an_eraser_takes_a_class_out_of_its_bottleneck_and_is_undone_to_the_bit(values, tmp_path):
    fingerprint, before, after = BOTTLENECKS[values]
    bottleneck, eraser = Bottleneck.load(SAVED / f"bottleneck-{values}"), Eraser.load(SAVED / f"eraser-{values}")
    assert bottleneck.fingerprint == fingerprint and list(bottleneck.classes) == ["c0", "c1", "c2"]
    assert bottleneck.predict(ROWS).tolist() == before.split()
    erased = eraser.apply(bottleneck)
    assert erased.fingerprint == ERASED[values] and erased.predict(ROWS).tolist() == after.split()
    eraser.undo(erased).save(tmp_path / "undone")
    for file in ("model.safetensors", "training.safetensors"):
        one, two = load_file(SAVED / f"bottleneck-{values}" / file), load_file(tmp_path / "undone" / file)
        assert one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert Bottleneck.load(tmp_path / "undone").fingerprint == fingerprint


def test_a_verify_report():
    content = Report.load(SAVED / "verify-report").content
    assert content["forgotten"] == "c1" and content["bit_identical"] is False and content["exact"] is False
    points = content["points"]
    assert points["after"]["per_class"] == {"c0": 0.9, "c1": 0.0, "c2": 0.2}
    assert (points["before"]["retain_accuracy"], points["refitted"]["retain_accuracy"]) == (0.3, 0.5)
    assert points["after"]["membership"]["loss"]["auc"] == pytest.approx(17 / 26)
    assert points["after"]["relearn"]["curve"] == {"1": 0.1, "2": 0.2, "5": 0.8, "10": 1.0}


def test_a_grammar_of_rules_with_unary_chains():
    grammar = Grammar.load(SAVED / "grammars" / "rules.json")
    sentences = [["the", "dog", "sees"], ["dog", "sees", "the", "cat"], ["a", "fish", "the"]]
    chart = inside_outside(grammar, sentences, device="cpu")
    assert chart.log_z.tolist() == pytest.approx([-2.3671236141316165, -5.832859516931344, np.log(1 / 8)], abs=1e-12)
    trees = [trees[0][1] for trees in chart.k_best(1, plain=True)]
    assert list(map(str, trees)) == [
        "(S (NP (/the the) (N dog)) (VP sees))",
        "(S (NP (N dog)) (VP (/sees sees) (NP (/the the) (N cat))))",
        "(S (VP (X (/a a) (/fish fish) (/the the))))",
    ]


def test_a_treebank_grammar_with_its_lexicon(tmp_path):
    grammar = Grammar.load(SAVED / "grammars" / "treebank.json")
    sentences = [["the", "dog", "sees", "a", "dogs"], ["fish", "sees"]]  # dogs was never seen
    for again in (grammar, (grammar.save(tmp_path / "again.json"), Grammar.load(tmp_path / "again.json"))[1]):
        chart = inside_outside(again, sentences, device="cpu")
        assert chart.log_z.tolist() == pytest.approx([4.012669461722156, 2.1282317058492684], abs=1e-12)
        assert [str(again.undo(tree)) for tree in chart.best_trees()] == [
            "(S (NP (DT the) (NN dog)) (VP (VB sees) (NP (DT a) (NN dogs))))",
            "(S (NP (NN fish)) (VP (VB sees)))",
        ]
        assert Tree.parse(str(again.undo(chart.best_trees()[1]))).words() == sentences[1]


def test_a_stopped_estimation_goes_on_from_its_rounds(tmp_path):
    shutil.copytree(SAVED / "em", tmp_path / "em")
    start, sentences = Grammar.load(tmp_path / "em" / "start.json"), ["a b a b a b", "a b", "b a a b", "a a a b"]
    state = tmp_path / "em" / "fitted.json.partial" / "000002" / "state.json"
    state.write_text(json.dumps([-100.0, -50.0]))  # if they are read, these are told again
    found = fit_file(start, [text.split() for text in sentences], 4, tmp_path / "em" / "fitted.json")
    rest = [-13.209369308761032, -12.883644138086607, -12.837105941353435]
    assert found.log_likelihoods.tolist() == pytest.approx([-100, -50, *rest], abs=1e-9)
    assert not state.exists() and Grammar.load(tmp_path / "em" / "fitted.json").symbols == found.grammar.symbols


def test_a_pretrained_model_has_its_grammar_and_its_figures():
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    pretrained = Pretrained.load(SAVED / "pretrained")
    report = pretrained.report
    assert float(pretrained.loss.excess.mean()) == pytest.approx(report["excess"]["value"], abs=1e-5)
    assert report["excess"]["value"] == 1.4848696455571944 and report["optimum"] == pytest.approx(np.log(2))
    assert [row["excess"] for row in report["history"]][-1] == report["excess"]["value"]
    grammar = Grammar.load(SAVED / "pretrained" / "grammar.pcfg.json")
    assert inside_outside(grammar, [["a", "d"]], device="cpu").log_z.tolist() == pytest.approx([np.log(1 / 4)])
    model = AutoModelForMaskedLM.from_pretrained(SAVED / "pretrained")
    tokenizer = AutoTokenizer.from_pretrained(SAVED / "pretrained")
    assert sum(x.numel() for x in model.parameters()) == report["parameters"] == 1121
    assert tokenizer("a d")["input_ids"][1:-1] == tokenizer.convert_tokens_to_ids(["a", "d"])


def test_a_probe_report():
    report = ProbeReport.load(SAVED / "probe-report")
    assert report.layers == (0, 1) and report.counts == {"train": 24, "test": 8, "words": 192, "spans": 448}
    linear = report.find("span-linear", "model", "r2", 1)
    assert (linear.value, linear.seeds) == (0.8132869802287215, (0.8132869802287215,))
    assert report.find("distance", "model", "spearman", 0).value == 0.9384614242487439
    assert report.find("none", "left", "f1").value == pytest.approx(1 / 3)
    verdicts = {(verdict.probe, verdict.metric, verdict.control): verdict.beats for verdict in report.verdicts}
    assert verdicts["span-linear", "r2", "word identity"] and not verdicts["span-linear", "r2", "untrained"]


def test_a_run_of_tint():
    run = Run.load(SAVED / "tint-run")
    assert run.value("frozen", 0.5) == 87.68627373109467
    assert 87.3 < run.value("TinT exact", 0.5) < 87.4
    point = next(point for point in run.points if point["method"] == "frozen")
    assert point["losses"] == [4.478860855102539, 4.463574409484863, 4.478860855102539]


def test_a_task_of_tint():
    run = Run.load(SAVED / "tint-task")
    assert (run.value("zero-shot"), run.value("few-shot, TinT exact")) == (0.75, 0.5)


def test_a_verification_of_tint():
    found = Verification.load(SAVED / "tint-verification")
    assert found.forward_error == 0.0
    assert found.worst("exact", "full")["relative_error"] == pytest.approx(2.8e-7, abs=0.06e-7)
