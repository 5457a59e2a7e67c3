"""What competence is summed up from: divergences of masks in sentences of any length, means of them, and the regression on rules."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.sparse import csc_array

from pcfg import Grammar, sample
from probes import measure_competence
from probes.emergence import independent_skills, tangled_skills
from probes.emergence.divergences import mask_divergences
from probes.emergence.explaining import explain
from probes.emergence.scores import TextFailures
from probes.errors import ProbeModelError
from probes.example import example_grammar
from tests.support.exact_model import exact_model


def test_sentences_of_different_lengths_keep_their_order():
    grammar = example_grammar()
    model = exact_model(grammar, uniform=0.1)
    drawn = sample(grammar, 5, seed=2, max_length=8)
    found = mask_divergences(grammar, drawn, [model, exact_model(grammar, uniform=0.3)])
    assert len(set(drawn.lengths.tolist())) > 2
    alone = [mask_divergences(grammar, sample(grammar, 1, seed=2, max_length=8, first=i), [model]) for i in range(5)]
    assert found.kl[0] == pytest.approx(np.concatenate([each.kl[0] for each in alone]), abs=1e-9)
    assert found.variation[0] == pytest.approx(np.concatenate([each.variation[0] for each in alone]), abs=1e-9)
    assert found.entropy == pytest.approx(np.concatenate([each.entropy for each in alone]), abs=1e-9)
    assert (found.kl[1] > found.kl[0]).mean() > 0.9


@pytest.mark.parametrize("kind", [independent_skills, tangled_skills])
def test_the_optimum_as_the_model_has_no_excess(kind):
    grammar = kind(10, 3, words=6)
    drawn = sample(grammar, 12, seed=0)
    found = mask_divergences(grammar, drawn, [exact_model(grammar)])
    assert found.kl.max() < 1e-10
    assert found.variation.max() < 1e-7


def test_excess_is_a_mean_over_masks_of_texts_of_any_length():
    """Of the model, and of the comparisons over training: longer texts have more masks."""
    rules = {("S", "S", "A"): 0.6, ("S", "A", "B"): 0.4}
    words = {("A", "a"): 0.5, ("A", "b"): 0.3, ("A", "c"): 0.2, ("B", "b"): 0.9, ("B", "d"): 0.1}
    grammar = Grammar({"S": 1.0}, rules, words)
    drawn = sample(grammar, 40, seed=0, max_length=8)
    models = [exact_model(grammar, uniform=share) for share in (0.9, 0.2)]
    found = mask_divergences(grammar, drawn, models)
    report = measure_competence(models, grammar, drawn, rules=["A -> *"], least=5)
    assert len(set(drawn.lengths)) > 3
    of_texts = np.mean([found.kl[1, found.sentence == text].mean() for text in range(len(drawn))])
    assert of_texts != pytest.approx(found.kl[1].mean(), rel=1e-3)
    assert report.last.excess.value == pytest.approx(found.kl[1].mean())
    assert [row.excess.value for row in report.comparisons] == pytest.approx([found.kl[1].mean()] * 6)


def test_a_regression_finds_the_rules_that_fail():
    random = np.random.default_rng(4)
    uses = random.poisson(0.8, size=(400, 10)).astype(float)
    failed = uses @ np.array([2.0, 1.0, *[0.0] * 8]) + random.normal(size=400) * 0.1
    masks = np.full(400, 50)
    found = explain(
        tuple("abcdefghij"),
        csc_array(uses),
        uses.sum(1).astype(int),
        TextFailures(failed / 50, failed, failed / 50, masks),
        seed=0,
    )
    assert found[0].r2.value > 0.98 > found[0].count_r2.value + 0.3
    assert [name for name, _ in found[0].coefficients[:2]] == ["a", "b"]
    assert dict(found[0].coefficients)["a"] == pytest.approx(2.0, abs=0.1)
    assert (found[0].train, found[0].test) == (300, 100)


def test_a_model_without_finite_predictions_is_refused():
    grammar = independent_skills(4, 2, words=4)
    model = exact_model(grammar, uniform=0.1)
    module = model.module
    model.module = lambda **given: SimpleNamespace(logits=module(**given).logits * float("nan"))
    model.module.device = "cpu"
    with pytest.raises(ProbeModelError, match="exact gives some masked words no finite log probability"):
        mask_divergences(grammar, sample(grammar, 2, seed=0), [model])
