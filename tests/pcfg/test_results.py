"""Results of the package: saved and loaded again, shown in one line and as a table; grammars and trees in a notebook."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from pcfg import Grammar, Samples, Tree, sample
from pcfg.errors import GrammarError, PcfgError, TreebankError
from pcfg.learning.excess_loss import MaskedLoss, MaskedSet
from pcfg.learning.expectation_maximization import Fitted, expected_counts, fit
from pcfg.learning.pretraining import Pretrained, pretrain
from pcfg.learning.pretraining_recipe import PretrainRecipe
from pcfg.treebanks.drawing import draw
from pcfg.treebanks.evalb import LabelledScore, UnlabelledScore, score_labelled, score_unlabelled
from pcfg.treebanks.induction import induce

GOLD = [Tree.parse("(S (NP (D the) (N dog)) (VP (V saw) (NP (N it))))"), Tree.parse("(S (N it) (V ran) (P .))")]
PARSES = [Tree.parse("(S (D the) (VP (N dog) (V saw) (NP (N it))))"), None]


@pytest.fixture(scope="module")
def grammar():
    return Grammar.random(3, 4, words=6, seed=1, temperature=2.0)


@pytest.fixture(scope="module")
def trained(grammar):
    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=64, max_length=8, batch_size=32, evaluation=20)
    return pretrain(grammar, recipe, seed=3, device="cpu")


def shown(result):
    """What a notebook and a terminal show, held to what every result promises."""
    columns, rows = result.table()
    assert rows and all(len(row) == len(columns) for row in rows)
    assert (
        len(repr(result)) <= 200 and "\n" not in repr(result) and repr(result).startswith(f"<{type(result).__name__}: ")
    )
    html = result._repr_html_()
    assert all(f">{name}<" in html for name in columns)
    return columns, rows


def test_samples(grammar, tmp_path):
    drawn = sample(grammar, 50, seed=4, max_length=9, first=7)
    _columns, rows = shown(drawn)
    assert rows[3] == [" ".join(drawn[3]), len(drawn[3]), str(drawn.tree(3, plain=True))] and len(rows) == 50
    assert "50 sentences" in repr(drawn) and "The first 20 sentences" in drawn._repr_html_()
    loaded = Samples.load(drawn.save(tmp_path / "drawn"))
    for name in ("words", "offsets", "steps", "numbers"):
        assert (getattr(loaded, name) == getattr(drawn, name)).all() and getattr(loaded, name).dtype == getattr(
            drawn, name
        ).dtype
    assert (loaded.method, loaded.acceptance, loaded.seed) == (drawn.method, drawn.acceptance, 4)
    assert loaded.grammar.fingerprint == grammar.fingerprint and list(loaded) == list(drawn)
    assert [loaded.bracketed(i, plain=True) for i in range(50)] == [drawn.bracketed(i, plain=True) for i in range(50)]
    (tmp_path / "drawn" / "samples.safetensors").write_bytes(b"no")
    with pytest.raises(GrammarError, match=r"samples.safetensors can't be read .*Samples.save"):
        Samples.load(tmp_path / "drawn")


def test_fits(grammar, tmp_path):
    text = [*sample(grammar, 30, seed=0, max_length=8), ["w0"] * 2]
    fitted = fit(Grammar.random(2, 3, words=6, seed=5), text, 3)
    _columns, rows = shown(fitted)
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    assert [row[1] for row in rows] == fitted.log_likelihoods.tolist()
    assert rows[2][2] == pytest.approx(fitted.log_likelihoods[2] / fitted.words)
    loaded = Fitted.load(fitted.save(tmp_path / "fit"))
    assert loaded.log_likelihoods.tolist() == fitted.log_likelihoods.tolist()
    assert (loaded.left_out, loaded.words) == (fitted.left_out, fitted.words)
    assert loaded.grammar.fingerprint == fitted.grammar.fingerprint
    (tmp_path / "fit" / "fit.json").write_text('{"schema": 1}')
    with pytest.raises(GrammarError, match=r"fit.json can't be read .*Fitted.save"):
        Fitted.load(tmp_path / "fit")


def test_scores_of_parses(tmp_path):
    labelled = score_labelled(GOLD, PARSES)
    columns, rows = shown(labelled)
    row = dict(zip(columns, rows[0], strict=True))
    assert (row["matched"], row["predicted"], row["gold"], row["unparsed"]) == (2, 3, 5, 1)
    assert row["f1"] == pytest.approx(2 * 2 / (3 + 5)) and dict(zip(columns, rows[1], strict=True))["gold"] == 4
    assert LabelledScore.load(labelled.save(tmp_path / "labelled")) == labelled
    unlabelled = score_unlabelled(GOLD, PARSES, kim=True)
    assert [f1 for _, f1 in shown(unlabelled)[1]] == list(unlabelled.f1s)
    assert UnlabelledScore.load(unlabelled.save(tmp_path / "unlabelled")) == unlabelled
    with pytest.raises(TreebankError, match=r"score.json can't be read .*UnlabelledScore.save"):
        UnlabelledScore.load(tmp_path / "labelled")


def test_pretrained_models(trained, grammar, tmp_path):
    _columns, rows = shown(trained)
    excess = trained.report["excess"]
    assert rows[0] == ["all", excess["value"], excess["low"], excess["high"], excess["count"]]
    assert sum(row[-1] for row in rows[1:]) == 2 * excess["count"]  # once by number of masks, once by position
    loaded = Pretrained.load(trained.save(tmp_path / "mlm"))
    assert loaded.report == trained.report and loaded.grammar.fingerprint == grammar.fingerprint
    state, own = loaded.module.state_dict(), trained.module.state_dict()
    assert state.keys() == own.keys() and all((state[name] == own[name]).all() for name in own)
    for name in ("loss", "optimum", "excess"):  # measured anew, on the same masks of the same sentences
        assert np.allclose(getattr(loaded.loss, name), getattr(trained.loss, name), atol=1e-6)
    (tmp_path / "mlm" / "report.json").write_text("{}")
    with pytest.raises(PcfgError, match="isn't a report of pretraining"):
        Pretrained.load(tmp_path / "mlm")
    with pytest.raises(PcfgError, match="nothing isn't a model that pretraining saved"):
        Pretrained.load(tmp_path / "nothing")


def test_a_grammar_in_a_notebook():
    grammar = Grammar.from_text(
        "S -> NP VP [1.0]\nNP -> 'a<b' [0.25] | 'it' [0.75]\nVP -> V NP [1.0]\nV -> 'saw' [1.0]"
    )
    html = grammar._repr_html_()
    assert "NP VP" in html and "2 nonterminals" in html and len(repr(grammar)) <= 200
    assert grammar.rules_of("S") == [("NP VP", 1.0)]
    assert grammar.rules_of("NP") == [("'a<b'", 0.25), ("'it'", 0.75)]
    one = Grammar.from_text("S -> 'a<b' [0.25] | 'it' [0.75]")
    html = one._repr_html_()
    assert html.index("it&#x27;") < html.index("a&lt;b") and "a<b" not in html


def test_a_tree_in_one_line():
    small = GOLD[0]
    assert eval(repr(small)) == small
    long = Tree("S", tuple(Tree("N", (f"word{i}",)) for i in range(60)))
    assert len(repr(long)) <= 200 and repr(long).startswith("<Tree: S over 60 words: word0 word1 ")


def test_a_tree_drawn():
    tree = Tree.parse("(S (NP (D the) (N d&g)) (VP (V saw) (NP (N it))))")
    root = ET.fromstring(tree._repr_html_())
    texts = [(node.text, float(node.get("x")), float(node.get("y"))) for node in root if node.tag.endswith("text")]
    lines = [tuple(float(node.get(name)) for name in ("x1", "y1", "x2", "y2")) for node in root if "line" in node.tag]
    names = [text for text, _, _ in texts]
    assert sorted(names) == sorted(["S", "NP", "D", "N", "VP", "V", "NP", "N", "the", "d&g", "saw", "it"])
    place = {text: (x, y) for text, x, y in texts}
    words = ["the", "d&g", "saw", "it"]
    assert sorted(words, key=lambda word: place[word][0]) == words and len({place[word][1] for word in words}) == 1
    assert len(lines) == len(names) - 1  # a line to each node but the root
    heights = sorted({y for _, y in place.values()})
    assert heights.index(place["S"][1]) == 0 and heights.index(place["VP"][1]) == 1
    # Each line goes down, from under a label to above another.
    assert all(y1 < y2 for _, y1, _, y2 in lines)
    tops = {(x, y + 5) for _, x, y in texts}
    assert all((x1, y1) in tops for x1, y1, _, _ in lines)
    middle = (place["D"][0] + next(x for text, x, _ in texts if text == "N")) / 2
    assert abs(next(x for text, x, _ in texts if text == "NP") - middle) < 12
    assert re.search(r'width="\d+" height="\d+"', draw(["a"], ["T"], []))


def test_everything_large_prints_in_a_line(grammar):
    induced = induce([GOLD[0]], min_count=2)
    drawn = [*sample(grammar, 40, seed=0, max_length=9)]
    masked = MaskedSet.draw(grammar, drawn, seed=0, device="cpu")
    zeros = np.zeros(3)
    loss = MaskedLoss(
        np.array([0, 0, 2]), np.arange(3), np.ones(3, np.int64), zeros, zeros, np.array([0.25, 0.5, 0.75])
    )
    lines = {
        induced: f"from 1 tree of {len(GOLD[0].words())} words",
        induced.lexicon: "4 words and",
        masked: "in 40 sentences",
        loss: "0.5 nats of excess over 3 masked words in 2 sentences",
        expected_counts(grammar, drawn, device="cpu"): "no sentences left out",
    }
    for thing, part in lines.items():
        assert part in repr(thing) and len(repr(thing)) <= 200 and "\n" not in repr(thing)
