"""Expectation-maximisation of rules with unary chains, against every tree there is."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Word
from pcfg.grammars.text_format import read_rules
from pcfg.inference.chart import inside_outside
from pcfg.learning.expectation_maximization import fit
from tests.support.chained_rules import ENGINES, MANY, chained, probabilities
from tests.support.enumeration import rule_trees


def round_of_em(rules, start, sentences, steps):
    """One round by the list of trees: likelihood, and the rules with their relative expected counts."""
    counts, likelihood, parents = Counter(), 0.0, Counter()
    for words in sentences:
        trees = rule_trees(rules, start, words, steps)
        total = math.fsum(p for _, p, _ in trees)
        likelihood += math.log(total) if trees else 0.0
        for _, p, used in trees:
            for rule, times in used.items():
                counts[rule] += times * p / total
                parents[rule[0]] += times * p / total
    return likelihood, [
        rule._replace(probability=counts[rule.parent, rule.children] / parents[rule.parent])
        if parents[rule.parent]
        else rule
        for rule in rules
    ]


def test_a_symbol_and_its_preterminal_twin_are_fitted_as_one():
    grammar = Grammar.from_text("S -> S S [0.3] | 'a' [0.5] | 'b' [0.2]")
    found = fit(grammar, [["a", "b", "a"], ["a"], ["b", "b"]], 300)
    # Three uses of S -> S S among nine rules, and three of each word: one third each.
    assert found.log_likelihoods[-1] == pytest.approx(math.log(2 * (1 / 3) ** 9), abs=1e-9)
    assert found.log_likelihoods[-1] == pytest.approx(-9.194, abs=1e-3)
    assert list(probabilities(found.grammar).values()) == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_rounds_are_exact_em_on_the_rules(engine):
    rules, start = read_rules(MANY)
    sentences = [["a", "b"], ["b", "and", "a"], ["b"], ["a", "a", "b"], ["and"]]
    grammar = Grammar.from_text(MANY)
    for _ in range(3):
        likelihood, better = round_of_em(rules, start, sentences, 6)
        found = fit(grammar, sentences, 1, engine=engine)
        assert found.left_out == (4,)
        assert found.log_likelihoods[0] == pytest.approx(likelihood, abs=1e-10)
        given_back = probabilities(found.grammar)
        assert [given_back[rule.parent, rule.children] for rule in better] == pytest.approx(
            [rule.probability for rule in better], abs=1e-4
        )
        rules, grammar = better, found.grammar


@given(chained(), st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=1, max_size=2))
def test_a_round_counts_the_rules_in_all_trees(rules, sentences):
    likelihood, better = round_of_em(rules, "A", sentences, 7)
    grammar = Grammar.from_rules(rules, "A")
    chart = inside_outside(grammar, sentences)
    if (
        abs(float(chart.log_z[chart.log_z > -math.inf].sum()) - likelihood) > 1e-5
        or not (chart.log_z > -math.inf).any()
    ):
        return  # the enumeration leaves too much out
    found = fit(grammar, sentences, 1)
    given_back = probabilities(found.grammar)
    for rule in better:
        assert given_back.get(rule[:2], 0.0) == pytest.approx(rule.probability, abs=2e-3)


@settings(max_examples=20)
@given(chained(), st.integers(0, 999))
def test_no_round_of_chained_rules_lowers_the_likelihood(rules, seed):
    random = np.random.default_rng(seed)
    sentences = [[str(word) for word in random.choice(["a", "b"], random.integers(1, 5))] for _ in range(6)]
    grammar = Grammar.from_rules(rules, "A")
    if not (inside_outside(grammar, sentences).log_z > -math.inf).any() or not {"a", "b"} <= set(grammar.words):
        return
    found = fit(grammar, sentences, 5)
    assert (np.diff(found.log_likelihoods) >= -1e-9).all()
    last = inside_outside(found.grammar, sentences).log_z.numpy()
    assert last[last > -math.inf].sum() == pytest.approx(found.log_likelihoods[-1])
    sums = Counter()
    for (parent, _), p in probabilities(found.grammar).items():
        sums[parent] += p
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))


def test_fitting_goes_on_from_a_saved_round_with_the_rules(tmp_path):
    grammar, sentences = Grammar.from_text(MANY), [["a", "b"], ["b", "and", "a"], ["b"], ["a", "a", "b"]]
    seen = []
    whole = fit(grammar, sentences, 5, on_round=lambda number, new, value: seen.append(new))
    seen[1].save(tmp_path / "saved.json")
    rest = fit(Grammar.load(tmp_path / "saved.json"), sentences, 3)
    assert rest.log_likelihoods.tolist() == whole.log_likelihoods[2:].tolist()
    assert rest.grammar.to_text() == whole.grammar.to_text()


def test_smoothing_counts_each_rule_once():
    grammar = Grammar.from_text("S -> S S [0.3] | 'a' [0.5] | 'b' [0.2]")
    found = fit(grammar, [["a", "b", "a"], ["a"], ["b", "b"]], 1, smoothing=1.0)
    assert list(probabilities(found.grammar).values()) == pytest.approx([4 / 12, 4 / 12, 4 / 12])


def test_a_rule_that_loses_all_its_uses_keeps_the_grammar_whole(tmp_path):
    grammar = Grammar.from_text("S -> A A [0.5] | 'b' [0.5]\nA -> B [0.5] | 'a' [0.5]\nB -> 'b' [1.0]")
    found = fit(grammar, [["a", "a"], ["b", "a"]], 2).grammar
    assert probabilities(found)["S", (Word("b"),)] == 0
    found.save(tmp_path / "a.json")
    again = Grammar.load(tmp_path / "a.json")
    log_z = inside_outside(again, [["b"], ["a", "b"]]).log_z.tolist()
    assert log_z[0] == -math.inf and math.exp(log_z[1]) == pytest.approx(0.1875)
