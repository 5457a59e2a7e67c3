"""Divergence against sums over trees."""

import math

import numpy as np
import pytest

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.divergence import kl
from tests.support.enumeration import all_trees, log_weight, random_sentence, sparse_grammar


@pytest.mark.parametrize("seed", range(10))
def test_kl_is_the_sum_over_trees(seed):
    p = sparse_grammar(seed)
    random = np.random.default_rng(seed)
    probs = p.rule_probs * random.random(len(p.rule_probs))
    words = random.random(len(p.tags))  # q also spells what p doesn't
    q = p.replaced(
        rule_probs=probs / np.bincount(p.parents, probs)[p.parents],
        word_probs=words / np.bincount(p.tags, words)[p.tags],
    )
    q = Grammar(dict(reversed(q.roots.items())), dict(reversed(q.binary.items())), dict(reversed(q.lexical.items())))
    sentences = [random_sentence(p, 100 * seed + i) for i in range(4)]
    for sentence, found in zip(sentences, kl(p, q, sentences), strict=True):
        trees = all_trees(p, sentence)
        if not trees:
            assert math.isnan(found)
            continue
        logs = [(math.log(weight), log_weight(q, tree)) for tree, weight in trees]
        totals = [np.logaddexp.reduce([log_weight(g, tree) for tree, _ in all_trees(g, sentence)]) for g in (p, q)]
        expected = sum(math.exp(a - totals[0]) * ((a - totals[0]) - (b - totals[1])) for a, b in logs)
        assert found == pytest.approx(expected, abs=1e-9)


def test_kl_of_a_grammar_and_itself_is_0_and_of_one_that_lacks_a_tree_infinite():
    one = Grammar(
        {"S": 1.0},
        {("S", "A", "S"): 0.3, ("S", "S", "A"): 0.3, ("S", "A", "A"): 0.4},
        {("A", "a"): 0.5, ("A", "b"): 0.5},
    )
    other = Grammar({"S": 1.0}, {("S", "A", "S"): 0.5, ("S", "A", "A"): 0.5}, {("A", "a"): 0.5, ("A", "b"): 0.5})
    sentences = [["a", "a"], ["a", "b", "a"]]
    assert kl(one, one, sentences) == pytest.approx([0, 0], abs=1e-12)
    assert kl(one, other, sentences).tolist() == [0, math.inf]
    assert kl(other, one, sentences) == pytest.approx([0, math.log(2)])
    with pytest.raises(GrammarError, match="preterminals: only one has B"):
        kl(one, Grammar({"S": 1.0}, {("S", "A", "B"): 1.0}, {("A", "a"): 1.0, ("B", "b"): 1.0}), sentences)
