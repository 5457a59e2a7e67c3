"""Probes held to a model of which the answer is known: a grammar compiled into a transformer."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from pcfg import Grammar, compile_transformer, sample
from pcfg.compiled.compiling import save
from pcfg.compiled.layers import InsideLayer
from pcfg.sampling.tokenizer import tokenizer
from probes import ProbeReport, probe_spans
from probes.activations import Activations
from probes.calibration import Calibration, WidthCheck, calibrate
from probes.dataset import Dataset
from probes.linear import PairRegression
from probes.probed_model import ProbedModel
from surgery.errors import CheckpointError

LENGTH = 6
RULES = """
    S -> NP VP [1.0]
    NP -> Det N [0.5] | NP PP [0.3] | 'fish' [0.2]
    VP -> V NP [0.7] | VP PP [0.3]
    PP -> P NP [1.0]
    Det -> 'the' [0.7] | 'that' [0.3]
    N -> 'fish' [0.4] | 'light' [0.4] | 'watch' [0.2]
    V -> 'light' [0.5] | 'watch' [0.5]
    P -> 'like' [0.5] | 'with' [0.5]
"""


@pytest.fixture(scope="module")
def grammar():
    return Grammar.random(2, 3, 12, seed=2, temperature=1.5)


@pytest.fixture(scope="module")
def built(grammar, tmp_path_factory):
    return save(compile_transformer(grammar, max_length=LENGTH), grammar, tmp_path_factory.mktemp("built") / "model")


def insides(grammar, sentence):
    """Inside scores of nonterminals over words i..j, [i, j, N], by the textbook's loops."""
    n, inner = len(sentence), len(grammar.nonterminals)
    found = np.zeros((n, n, inner + len(grammar.preterminals)))
    for i, word in enumerate(sentence):
        found[i, i, inner:] = [grammar.lexical.get((tag, word), 0.0) for tag in grammar.preterminals]
    symbols = (*grammar.nonterminals, *grammar.preterminals)
    for width in range(2, n + 1):
        for i in range(n - width + 1):
            for (a, b, c), p in grammar.binary.items():
                left, right = symbols.index(b), symbols.index(c)
                j = i + width - 1
                found[i, j, symbols.index(a)] += p * sum(
                    found[i, k, left] * found[k + 1, j, right] for k in range(i, j)
                )
    return found[..., :inner]


def test_linear_probes_find_inside_scores_once_they_are_there(grammar, built, tmp_path):
    """R squared of at least .999 from the layer on that completes a width, and less before."""
    random, model = np.random.default_rng(0), ProbedModel.load(built, device="cpu")
    sentences = [tuple(random.choice(grammar.words, LENGTH)) for _ in range(300)]
    states = Activations.collect(model, sentences, tmp_path, range(model.layers + 1))
    numbers = tokenizer(grammar).get_vocab()
    scales = np.array([[model.module.scales[numbers[word]].item() for word in sentence] for sentence in sentences])
    exact = np.stack([insides(grammar, sentence) for sentence in sentences])
    first, train = np.arange(len(sentences)) * LENGTH, slice(0, 200)
    for width in range(2, LENGTH + 1):
        for layer in range(LENGTH):
            worst = []
            for i in range(LENGTH - width + 1):
                j = i + width - 1
                wanted = exact[:, i, j] * np.exp(scales[:, i : j + 1].sum(1))[:, None]
                last, some = first + j, states.layer(layer)  # of the last word's state, where the span's scores stand
                probe = PairRegression.fit(some, last[train], last[train], wanted[train], seed=0, penalty=0.01)
                found = probe(some, last, last)[200:]
                missed = ((found - wanted[200:]) ** 2).sum(0) / ((wanted[200:] - wanted[200:].mean(0)) ** 2).sum(0)
                worst.append(1 - missed.max())
            assert min(worst) >= 0.999 if layer >= width - 1 else max(worst) < 0.99, (width, layer, worst)


@pytest.fixture(scope="module")
def english():
    return Grammar.from_text(RULES)


@pytest.fixture(scope="module")
def data(english):
    return Dataset.of_grammar(english, sample(english, 600, seed=0, max_length=LENGTH), seed=0)


def calibrated(grammar, data, folder, length=LENGTH):
    model = ProbedModel.load(save(compile_transformer(grammar, max_length=length), grammar, folder / "m"), device="cpu")
    layers = range(model.layers + 1)
    return calibrate(model, data, Activations.collect(model, data.sentences, folder / "states", layers), layers)


def test_calibration_finds_inside_scores_by_layer(grammar, tmp_path):
    """Each width from its own layer on, and less before: any three words can be a constituent here."""
    data = Dataset.of_grammar(grammar, sample(grammar, 400, seed=0, max_length=LENGTH), seed=0)
    found = calibrated(grammar, data, tmp_path)
    assert found.holds() and found.after() >= 0.999 > 0.9 > found.before()
    assert [(check.words, check.complete) for check in found.widths[:3]] == [(2, 1), (3, 2), (4, 3)]


@pytest.mark.parametrize(("r2", "holds"), [((0.5, 0.99), False), ((1.0, 0.9991), True), ((0.5, None), True)])
def test_what_probes_find_decides_from_the_layer_on_that_completes_a_width(r2, holds):
    found = Calibration((0, 1), (WidthCheck(2, 1, r2),), ())
    assert (found.before(), found.after(), found.holds()) == (*r2, holds)


def test_calibration_finds_the_spans_that_need_a_head(english, data, tmp_path):
    found = calibrated(english, data, tmp_path)
    assert found.holds() and {"NP", "VP", "N"} <= {head.symbol for head in found.heads if head.needing}
    assert sum(head.random_zeroed for head in found.heads) < sum(head.needing for head in found.heads)


@pytest.mark.parametrize("broken", ["heads", "layers", "symbol"])
def test_calibration_fails_where_something_is_wrong(english, data, tmp_path, broken, monkeypatch):
    """Heads that do the next one's work; a layer that does nothing; one nonterminal of which nothing is written."""
    step = InsideLayer.step

    def wrong(self, state, rules, places, mask):
        if broken == "layers":
            return state
        if broken == "heads":
            return step(self, state, rules, places, None if mask is None else mask.roll(1))
        found = step(self, state, rules, places, mask)
        found[..., self.slots["inside", "VP"]] = state[..., self.slots["inside", "VP"]]
        return found

    monkeypatch.setattr(InsideLayer, "step", wrong)
    found = calibrated(english, data, tmp_path)
    assert not found.holds()
    assert any(head.others for head in found.heads) if broken == "heads" else found.after() < 0.999


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("V NP [0.7] | VP PP [0.3]", "V NP [0.6] | VP PP [0.4]"),
        ("'fish' [0.4] | 'light' [0.4]", "'fish' [0.3] | 'light' [0.5]"),
    ],
)
def test_nothing_is_calibrated_on_another_grammar(data, tmp_path, own, other):
    """Rules, or words, with other probabilities."""
    assert calibrated(Grammar.from_text(RULES.replace(own, other)), data, tmp_path) is None


def test_fewer_sentences_than_dimensions_are_no_alarm(tmp_path):
    """A probe is asked only for states that those it was trained on determine, and then finds what is there."""
    grammar = Grammar.random(10, 20, 60, seed=1, temperature=1.5)
    data = Dataset.of_grammar(grammar, sample(grammar, 400, seed=0, max_length=8), seed=0)
    found = calibrated(grammar, data, tmp_path, 8)
    assert found.holds() and found.after() >= 0.999
    asked = [r2 for check in found.widths for r2 in check.r2]
    assert None in asked and len(asked) - asked.count(None) > 20


def test_the_report_of_a_compiled_model(grammar, built, tmp_path):
    """All probes run, beside a random grammar's as the untrained control, and the model's own words are the exact posterior."""
    report = probe_spans(built, grammar, 150, layers=[2 * (LENGTH - 1)], seeds=1, device="cpu")
    assert report.calibration.holds() and report.calibration.layers == (0, 2 * (LENGTH - 1))
    assert "Linear probes find inside scores from the layer on that completes them with R2 " in " ".join(report.remarks)
    page = (report.save(tmp_path / "report") / "README.md").read_text()
    assert "Against what is known" in page and (tmp_path / "report" / "calibration.png").exists()
    assert ProbeReport.load(tmp_path / "report") == report
    assert report.find("none", "model", "kl", None).value == pytest.approx(0, abs=1e-5)
    assert report.find("span-linear", "untrained", "r2", report.layers[-1]) is not None
    assert report.loss["excess"]["value"] == pytest.approx(0, abs=1e-5)
    assert any("TransformerLens" in note for note in report.notes)
    unasked = replace(report, calibration=replace(report.calibration, widths=()))
    assert unasked.calibration.holds() and "Too few sentences to ask linear probes" in " ".join(unasked.remarks)


@pytest.mark.parametrize("name", ["rules", "scales"])
def test_a_compiled_model_with_a_weight_that_is_no_number_is_refused(built, tmp_path, name):
    shutil.copytree(built, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"its tensor {name} holds NaN or infinity"):
        ProbedModel.load(tmp_path / "m", device="cpu")


def test_a_compiled_model_with_other_symbols_is_refused(built, tmp_path):
    shutil.copytree(built, tmp_path / "m")
    content = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**content, "nonterminals": content["nonterminals"][::-1]}))
    with pytest.raises(CheckpointError, match="aren't those that the weights were compiled for"):
        ProbedModel.load(tmp_path / "m", device="cpu")


def test_a_compiled_model_without_some_of_its_weights_is_refused(built, tmp_path):
    shutil.copytree(built, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    lacking = {name: tensor for name, tensor in tensors.items() if name != "rules"}
    assert len(lacking) == len(tensors) - 1
    save_file(lacking, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors, rules first"):
        ProbedModel.load(tmp_path / "m", device="cpu")
