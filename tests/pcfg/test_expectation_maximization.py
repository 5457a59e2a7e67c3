"""Estimation against counts over the list of all trees, and against what must be so of any EM."""

import math
from collections import Counter

import numpy as np
import pytest

from pcfg.errors import GrammarError, OptionError, TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.learning.expectation_maximization import expected_counts, fit
from pcfg.learning.pruning_by_use import expected_uses, prune
from pcfg.learning.tree_counts import from_trees
from pcfg.treebanks.lexicon import SmoothedLexicon
from pcfg.treebanks.trees import Tree
from tests.support.enumeration import all_trees, random_sentence, sparse_grammar, used


def texts(grammar, count, seed=0):
    return [random_sentence(grammar, 1000 * seed + i) for i in range(count)]


def round_of_em(grammar, sentences):
    """One round by the list of trees: relative expected counts of everything, by name."""
    counts, likelihood = Counter(), 0.0
    for sentence in sentences:
        trees = all_trees(grammar, sentence)
        total = math.fsum(p for _, p in trees)
        likelihood += math.log(total) if trees else 0.0
        for tree, p in trees:
            for rule, times in used(tree).items():
                counts[rule] += times * p / total
    parents = Counter()
    for rule, count in counts.items():
        parents[rule[0]] += count
    return likelihood, {rule: count / parents[rule[0]] for rule, count in counts.items()}, parents


@pytest.mark.parametrize("engine", ["dense", "sparse"])
@pytest.mark.parametrize("seed", range(6))
def test_a_round_is_relative_expected_counts(engine, seed):
    grammar = sparse_grammar(seed)
    sentences = texts(grammar, 8, seed)
    likelihood, expected, parents = round_of_em(grammar, sentences)
    found = fit(grammar, sentences, 1, engine=engine)
    assert found.log_likelihoods[0] == pytest.approx(likelihood, abs=1e-11)
    assert found.left_out == tuple(i for i, sentence in enumerate(sentences) if not all_trees(grammar, sentence))
    assert found.words == sum(len(s) for i, s in enumerate(sentences) if i not in found.left_out)
    for name, p in found.grammar.roots.items():
        assert p == pytest.approx(expected["root", name], abs=1e-12)
    for table, old in ((found.grammar.binary, grammar.binary), (found.grammar.lexical, grammar.lexical)):
        for rule, p in table.items():
            assert p == pytest.approx(expected.get(rule, 0) if parents[rule[0]] else old[rule], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_no_round_lowers_the_likelihood(seed):
    grammar = Grammar.random(4, 4, 5, seed)
    sentences = texts(grammar, 30, seed)
    found = fit(grammar, sentences, 15)
    assert found.rounds == 15 and (np.diff(found.log_likelihoods) >= -1e-10).all()
    assert found.log_likelihoods[-1] > found.log_likelihoods[0] + 1
    last = inside_outside(found.grammar, sentences).log_z.sum()
    assert found.log_likelihoods[-1] == pytest.approx(float(last))


def test_a_share_too_small_to_tell_becomes_0():
    # B is `a` only in S -> A B, which always loses against S -> A A: both shares fall, the faster the smaller they are.
    binary = {("S", "A", "A"): 0.3, ("S", "A", "B"): 0.3, ("S", "C", "B"): 0.4}
    lexical = {("A", "a"): 1.0, ("B", "a"): 0.5, ("B", "b"): 0.5, ("C", "c"): 1.0}
    grammar = Grammar(roots={"S": 1.0}, binary=binary, lexical=lexical)
    found = []
    fit(grammar, [["a", "a"]] * 5 + [["c", "b"]] * 5, 9, on_round=lambda _, better, __: found.append(better))
    own, other, as_a = 0.3, 0.3, 0.5
    for better in found:
        uses = 5 * other * as_a / (own + other * as_a)
        own, other, as_a = (5 - uses) / 10, uses / 10, uses / (5 + uses)
        if uses / 10 > 1e-28:
            assert better.binary["S", "A", "B"] == pytest.approx(other, rel=1e-9)
    assert found[3].binary["S", "A", "B"] > 0 and other < 1e-60
    assert found[-1].binary["S", "A", "B"] == 0 == found[-1].lexical["B", "a"]


def test_smoothing_climbs_its_own_hill_and_keeps_what_has_weight():
    grammar = sparse_grammar(5)
    sentences, goals = texts(grammar, 20), []

    def climb(number, new, likelihood):
        goals.append(likelihood)
        priors.append(goal(new))

    def goal(g):
        return sum(0.5 * np.log(probs[probs > 0]).sum() for probs in (g.start, g.rule_probs, g.word_probs))

    priors = [goal(grammar)]
    found = fit(grammar, sentences, 8, smoothing=0.5, on_round=climb)
    assert (np.diff(found.log_likelihoods + priors) >= -1e-10).all()
    for name in ("start", "rule_probs", "word_probs"):
        assert ((getattr(found.grammar, name) > 0) == (getattr(grammar, name) > 0)).all()


def test_going_on_from_a_saved_round_is_as_if_nothing_had_come_between(tmp_path):
    grammar = Grammar.random(3, 3, 3, 1)
    sentences, seen = texts(grammar, 12), []
    whole = fit(grammar, sentences, 5, on_round=lambda number, new, value: seen.append((number, new, value)))
    assert [number for number, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [value for _, _, value in seen] == whole.log_likelihoods[:-1].tolist()
    assert seen[-1][1] is whole.grammar
    seen[1][1].save(tmp_path / "saved.json")
    rest = fit(Grammar.load(tmp_path / "saved.json"), sentences, 3)
    assert rest.log_likelihoods.tolist() == whole.log_likelihoods[2:].tolist()
    assert rest.grammar.binary == whole.grammar.binary


def test_it_stops_when_a_round_gains_too_little():
    grammar = Grammar.random(2, 2, 2, 0)
    sentences = texts(grammar, 10)
    found = fit(grammar, sentences, 100, tolerance=0.01)
    gains = np.diff(found.log_likelihoods) / found.words
    assert found.rounds < 100 and gains[-1] < 0.01 and (gains[:-1] >= 0.01).all()


def test_fitting_finds_the_grammar_of_unambiguous_text():
    # One tree each, so a round is counting: S -> A S twice, S -> A A three times.
    grammar = Grammar({"S": 1.0}, {("S", "A", "S"): 0.9, ("S", "A", "A"): 0.1}, {("A", "a"): 0.1, ("A", "b"): 0.9})
    found = fit(grammar, [["a", "b"], ["a", "a", "b"], ["b", "a", "a"]], 1).grammar
    assert found.binary == pytest.approx({("S", "A", "S"): 0.4, ("S", "A", "A"): 0.6})
    assert found.lexical == pytest.approx({("A", "a"): 5 / 8, ("A", "b"): 3 / 8})


def test_a_smoothed_lexicon_stays_as_it_is():
    grammar = Grammar(
        {"S": 1.0},
        {("S", "A", "VP"): 0.5, ("S", "A", "B"): 0.5, ("VP", "B", "A"): 1.0},
        {("A", "ann"): 1.0, ("B", "go"): 1.0},
    )
    seen, rare = {("ann", 0): 3.0, ("bo", 0): 1.0, ("go", 1): 4.0}, {("<unk>", 0): 1.0}
    grammar = grammar.replaced(lexicon=SmoothedLexicon.count(seen, rare, 2))
    found = fit(grammar, [["ann", "go", "cy"], ["bo", "go", "ann"], ["bo", "go"]], 3)
    assert found.grammar.lexicon is grammar.lexicon and found.grammar.lexical == grammar.lexical
    assert found.grammar.binary["S", "A", "VP"] == pytest.approx(2 / 3)
    assert (np.diff(found.log_likelihoods) >= -1e-12).all()


def test_progress_is_told_and_batches_change_nothing(monkeypatch):
    grammar = Grammar.random(3, 3, 3, 1)
    sentences, told = texts(grammar, 12), []
    whole = fit(grammar, sentences, 2)
    monkeypatch.setattr("pcfg.learning.expectation_maximization._BATCH", 5)
    found = fit(grammar, sentences, 2, progress=lambda done, total, line: told.append((done, total, line)))
    assert found.log_likelihoods == pytest.approx(whole.log_likelihoods, abs=1e-11)
    assert [done for done, _, _ in told[:-1]] == [5, 10, 12, 17, 22, 24, 29, 34, 36]
    assert told[3][1:] == (36, f"round 1: log-likelihood {whole.log_likelihoods[0]:,.4f}")


def test_what_cant_be_fitted_is_refused():
    grammar = Grammar({"S": 1.0}, {("S", "A", "B"): 1.0}, {("A", "a"): 1.0, ("B", "b"): 1.0})
    for options, message in (
        ({"rounds": 0}, "0 rounds"),
        ({"rounds": 1, "smoothing": -1.0}, "smoothing is -1.0"),
        ({"rounds": 1, "smoothing": math.nan}, "smoothing is nan"),
        ({"rounds": 1, "tolerance": -1.0}, "tolerance is -1.0"),
    ):
        with pytest.raises(OptionError, match=message):
            fit(grammar, [["a", "b"]], **options)
    with pytest.raises(OptionError, match="no sentences"):
        fit(grammar, [], 1)
    with pytest.raises(
        GrammarError, match=r"sentence 2: the word 'zebra' \(number 1.*; 1 other word is unknown too: 'yak'"
    ):
        fit(grammar, [["a", "b"], ["zebra", "b"], ["a", "yak"]], 1)
    with pytest.raises(GrammarError, match="no sentence has a parse"):
        fit(grammar, [["b", "a"], []], 1)
    assert fit(grammar, [["b", "a"], ["a", "b"], []], 1).left_out == (0, 2)


# -- trees -----------------------------------------------------------------------------------------------------------

TREES = [
    Tree.parse("(S (A a) (S (A b) (B b)))"),
    Tree.parse("(S (A a) (B b))"),
    Tree.parse("(B b)"),
]


def test_relative_frequencies_of_trees():
    grammar = from_trees(TREES)
    assert grammar.roots == pytest.approx({"S": 2 / 3, "B": 1 / 3})
    assert grammar.binary == pytest.approx({("S", "A", "S"): 1 / 3, ("S", "A", "B"): 2 / 3})
    assert grammar.lexical == pytest.approx({("A", "a"): 2 / 3, ("A", "b"): 1 / 3, ("B", "b"): 1.0})


def test_smoothing_counts_every_possible_rule_once_more():
    grammar = from_trees(TREES, smoothing=1.0)
    assert grammar.roots == pytest.approx({"S": 3 / 6, "A": 1 / 6, "B": 2 / 6})
    assert len(grammar.binary) == 9 and grammar.binary["S", "A", "B"] == pytest.approx(3 / 12)
    assert grammar.binary["S", "B", "B"] == pytest.approx(1 / 12)
    assert grammar.lexical == pytest.approx(
        {("A", "a"): 3 / 5, ("A", "b"): 2 / 5, ("B", "a"): 1 / 5, ("B", "b"): 4 / 5}
    )
    nearly, plain = from_trees(TREES, smoothing=1e-9), from_trees(TREES)
    assert all(p == pytest.approx(plain.binary.get(rule, 0), abs=1e-8) for rule, p in nearly.binary.items())


def test_trees_of_another_shape_are_refused(monkeypatch):
    for text, message in (("(S (A a) (B b) (A a))", "of 3 children"), ("(S (A a))", "of 1 children")):
        with pytest.raises(TreebankError, match=rf"tree 2 has a node S {message}.*transform"):
            from_trees([TREES[0], Tree.parse(text)])
    with pytest.raises(TreebankError, match="no trees"):
        from_trees([])
    monkeypatch.setattr("pcfg.learning.tree_counts._MOST_RULES", 12)
    with pytest.raises(OptionError, match="weight to 13 rules"):
        from_trees(TREES, smoothing=1.0)


# -- pruning ---------------------------------------------------------------------------------------------------------


def test_uses_in_its_own_sentences_are_uses_in_the_trees_it_was_read_off():
    trees = [
        Tree.parse("(S (X (A a) (A a)) (X (A a) (Y (A b) (A a))))"),
        Tree.parse("(S (A a) (Y (A a) (A a)))"),
        *TREES[1:2],
    ]
    grammar = from_trees(trees)
    counts = Counter(node.label for tree in trees for node in tree.nodes() if not node.is_preterminal)
    assert expected_uses(grammar) == pytest.approx([counts[name] / 3 for name in grammar.nonterminals])


def test_the_most_used_stay_and_what_needs_the_others_goes():
    grammar = Grammar(
        {"S": 0.9, "R": 0.1},
        {("S", "A", "X"): 0.5, ("S", "A", "Y"): 0.25, ("S", "A", "A"): 0.25, ("X", "A", "A"): 1.0, ("Y", "A", "Z"): 1.0}
        | {("Z", "A", "A"): 1.0, ("R", "A", "B"): 1.0},
        {("A", "a"): 1.0, ("B", "b"): 1.0},
    )
    two = prune(grammar, 2)
    assert two.nonterminals == ("S", "X") and two.preterminals == ("A",) and two.words == ("a",)
    assert two.roots == {"S": 1.0}
    assert two.binary == pytest.approx({("S", "A", "X"): 2 / 3, ("S", "A", "A"): 1 / 3, ("X", "A", "A"): 1.0})
    # Y comes before Z in a tie; and without Z it derives nothing.
    assert prune(grammar, 3).binary == two.binary
    assert set(prune(grammar, 99).nonterminals) == set(grammar.nonterminals)
    # In these sentences, Y and Z come oftener than X does.
    text = [["a", "a", "a", "a"]] * 3 + [["a", "a", "a"]]
    assert set(prune(grammar, 3, text).nonterminals) == {"S", "Y", "Z"}
    assert prune(grammar, 1, [["a", "b"]]).nonterminals == ("R",)


@pytest.mark.parametrize("seed", range(4))
def test_use_is_expected_counts(seed):
    grammar = sparse_grammar(seed)
    sentences = texts(grammar, 6, seed)
    _, _, parents = round_of_em(grammar, sentences)
    uses = expected_counts(grammar, sentences).by_nonterminal(grammar)
    assert uses == pytest.approx([parents[name] for name in grammar.nonterminals], abs=1e-12)


def test_what_cant_be_pruned_is_refused():
    grammar = Grammar({"S": 1.0}, {("S", "X", "X"): 1.0, ("X", "A", "A"): 1.0}, {("A", "a"): 1.0})
    with pytest.raises(OptionError, match="0 nonterminals"):
        prune(grammar, 0)
    with pytest.raises(OptionError, match="no sentences"):
        prune(grammar, 1, [])
    with pytest.raises(GrammarError, match="1 nonterminals used most derive no sentence"):
        prune(grammar, 1)


def test_a_start_that_sums_to_a_little_more_than_1_gains_nothing_by_it():
    p = 1.0000009
    grammar = Grammar({"S": p}, {("S", "T", "T"): p}, {("T", "a"): p})
    assert fit(grammar, [["a", "a"]] * 100, 2).log_likelihoods == pytest.approx([0, 0, 0], abs=1e-12)
