"""Unary chains of rules that people wrote: the likeliest tree, the best few, drawn ones, marginals, files; against every tree there is."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pcfg.errors import GrammarError, TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Word
from pcfg.grammars.text_format import read_rules
from pcfg.inference.chain_marginals import ChainMarginals
from pcfg.inference.chart import inside_outside
from pcfg.inference.divergence import kl
from pcfg.inference.parsing import parse
from pcfg.learning.expectation_maximization import fit
from pcfg.sampling.sampler import sample
from pcfg.treebanks.trees import Tree
from surgery.files import replace_json
from tests.support.chained_rules import COMPETING, ENGINES, MANY, chained, probabilities
from tests.support.enumeration import rule_trees


def log(p):
    return math.log(p) if p else -math.inf


@pytest.mark.parametrize("engine", ENGINES)
def test_the_likeliest_tree_wins_against_a_sum_of_chains(engine):
    chart = inside_outside(Grammar.from_text(COMPETING), [["a", "b"]], engine=engine)
    assert str(chart.grammar.undo(chart.best_trees()[0])) == "(S (C a) (D b))"
    assert chart.best_scores == pytest.approx([math.log(0.1)])
    assert float(chart.log_z[0]) == pytest.approx(math.log(0.25)), "sums stay sums"
    best = [(str(tree), math.exp(score)) for score, tree in chart.k_best(9, plain=True)[0]]
    assert best[0][0] == "(S (C a) (D b))" and [p for _, p in best] == pytest.approx([0.1, 0.05, 0.05, 0.05])
    assert {tree for tree, _ in best[1:]} == {f"(S (A ({x} a)) (B b))" for x in "XYZ"}
    assert [math.exp(score) for score, _ in chart.k_best(9)[0]] == pytest.approx([0.1, 0.05])
    assert [str(tree) for tree in parse(chart.grammar, [["a", "b"]])] == ["(S (C a) (D b))"]


@pytest.mark.parametrize("engine", ENGINES)
@given(chained(), st.lists(st.sampled_from("ab"), min_size=1, max_size=2))
def test_best_trees_are_the_best_of_all_trees_of_the_rules(engine, rules, words):
    trees = rule_trees(rules, "A", words, 9)
    chart = inside_outside(Grammar.from_rules(rules, "A"), [words], engine=engine)
    assert chart.best_scores[0] == pytest.approx(log(trees[0][1]) if trees else -math.inf)
    probability = {tree: p for tree, p, _ in trees}
    found = chart.k_best(5, plain=True)[0]
    assert len(found) >= min(5, len(trees)) and len({tree for _, tree in found}) == len(found)
    found = found[: len(trees)]  # a circle has no end, the enumeration has
    assert [math.exp(score) for score, _ in found] == pytest.approx([p for _, p, _ in trees[:5]])
    assert all(math.exp(score) == pytest.approx(probability[tree]) for score, tree in found)
    if trees:
        assert probability[chart.grammar.undo(chart.best_trees()[0])] == pytest.approx(trees[0][1])
        plain = [chart.grammar.undo(tree) for _, tree in chart.k_best(5)[0]]
        assert [probability[tree] for tree in plain] == sorted((probability[t] for t in plain), reverse=True)


WORDS = [["a", "b"], ["a", "and", "b"], ["b", "a", "a"], ["a"]]


@pytest.mark.parametrize("engine", ENGINES)
def test_trees_have_all_their_chains_and_their_start(engine):
    rules, start = read_rules(MANY)
    for words in WORDS:
        trees = rule_trees(rules, start, words)
        chart = inside_outside(Grammar.from_text(MANY), [words], engine=engine)
        assert float(chart.log_z[0]) == pytest.approx(math.log(math.fsum(p for _, p, _ in trees)), abs=1e-10)
        assert chart.best_scores[0] == pytest.approx(math.log(trees[0][1]))
        best = parse(chart.grammar, [words])[0]
        assert best.label == "ROOT" and {t: p for t, p, _ in trees}[best] == pytest.approx(trees[0][1])


@pytest.mark.parametrize("engine", ENGINES)
def test_drawn_trees_have_drawn_chains(engine):
    rules, start = read_rules(MANY)
    trees = rule_trees(rules, start, ["a", "b"])
    chart, total = inside_outside(Grammar.from_text(MANY), [["a", "b"]], engine=engine), sum(p for _, p, _ in trees)
    drawn = Counter(chart.sample_trees(1000, seed=3, plain=True)[0])
    likely = [(tree, p / total) for tree, p, _ in trees if 1000 * p / total > 8]
    rest = 1 - sum(p for _, p in likely)
    seen = [drawn[tree] for tree, _ in likely]
    assert len(likely) > 6
    assert chisquare([*seen, 1000 - sum(seen)], [1000 * p for _, p in likely] + [1000 * rest]).pvalue > 1e-3
    assert chart.sample_trees(9, seed=3, plain=True)[0] == chart.sample_trees(9, seed=3, plain=True)[0]


def test_sampled_sentences_have_trees_with_drawn_chains():
    grammar = Grammar.from_text(COMPETING)
    samples = sample(grammar, 6000, seed=1)
    trees = [samples.bracketed(i, plain=True) for i in range(len(samples))]
    expected = {"(S (C r) (D b))": 0.4, "(S (A q) (B b))": 0.35, "(S (C a) (D b))": 0.1}
    expected |= {f"(S (A ({x} a)) (B b))": 0.05 for x in "XYZ"}
    seen = Counter(trees)
    assert set(seen) == set(expected)
    assert chisquare([seen[t] for t in expected], [6000 * p for p in expected.values()]).pvalue > 1e-3
    assert trees[:200] == [str(samples.tree(i, plain=True)) for i in range(200)]
    numbers = np.arange(50, 5000, 7)
    assert [samples.take(numbers).bracketed(i, plain=True) for i in range(20)] == [trees[i] for i in numbers[:20]]
    again = sample(grammar, 10, seed=1, first=90)
    assert [again.bracketed(i, plain=True) for i in range(10)] == trees[90:100], "shards are parts of one draw"


def test_the_start_symbol_stands_over_sampled_trees_too():
    samples = sample(Grammar.from_text(MANY), 300, seed=0, max_length=6)
    for i in range(300):
        tree = samples.tree(i, plain=True)
        assert tree.label == "ROOT" and tree.words() == samples[i] and str(tree) == samples.bracketed(i, plain=True)


@given(chained(), st.lists(st.sampled_from("ab"), min_size=1, max_size=2))
def test_marginals_of_labels_count_whole_chains(rules, words):
    trees = rule_trees(rules, "A", words, 7)
    grammar, total = Grammar.from_rules(rules, "A"), math.fsum(p for _, p, _ in trees)
    chart = inside_outside(grammar.whole, [words], engine="sparse")
    phrases, tags = defaultdict(float), defaultdict(float)
    if not trees:
        assert chart.mbr_trees() == [None]
        return
    for tree, p, _ in trees:
        for span in set(tree.spans()):
            phrases[span] += p / total
        for i, tag in enumerate(tree.tags()):
            tags[i, tag] += p / total
    found = ChainMarginals(grammar.chains, grammar.whole).of(chart._charts[0], words)
    lost = 20 * (1 - total / math.exp(float(chart.log_z[0]))) + 1e-9  # by the limit of the enumeration
    for k, label in enumerate(found.labels):
        for i in range(len(words)):
            for j in range(i + 1, len(words) + 1):
                assert found.phrases[i, j, k] == pytest.approx(phrases[label, i, j], abs=lost)
    for k, tag in enumerate(found.tags):
        assert found.tag_posteriors[:, k] == pytest.approx([tags[i, tag] for i in range(len(words))], abs=lost)


def test_minimum_risk_trees_have_their_chains():
    grammar = Grammar.from_text("""
        TOP -> S [1.0]
        S -> NP VP [0.9] | X [0.1]
        NP -> N [1.0]
        VP -> V [0.5] | V NP [0.5]
        X -> N V [1.0]
        N -> 'dogs' [0.5] | 'cats' [0.5]
        V -> 'bark' [0.5] | 'see' [0.5]""")
    found = parse(grammar, [["dogs", "bark"], ["cats", "see", "dogs"]], rule="mbr", cost=0.4)
    assert [str(tree) for tree in found] == [
        "(TOP (S (NP (N dogs)) (VP (V bark))))",
        "(TOP (S (NP (N cats)) (VP (V see) (NP (N dogs)))))",
    ]
    assert found == parse(grammar, [["dogs", "bark"], ["cats", "see", "dogs"]])


def test_the_order_of_labels_in_minimum_risk_trees_is_that_of_their_chains():
    grammar = Grammar.from_text(
        "Z -> Y Y [0.4] | Y [0.6]\nY -> M [0.5] | 'y' [0.5]\nM -> A [1.0]\nA -> 'a' [0.5] | 'a' 'a' [0.5]"
    )
    found = parse(grammar, [["a", "a"], ["a"]], rule="mbr", cost=0.1)
    assert str(found[1]) == "(Z (Y (M (A a))))"
    assert str(found[0]).startswith("(Z (Y (M (A ")


@given(chained(), st.lists(st.sampled_from("ab"), min_size=1, max_size=2))
def test_entropies_and_divergences_are_those_of_trees_with_their_chains(rules, words):
    trees = rule_trees(rules, "A", words, 7)
    if not trees:
        return
    other = [rule._replace(probability=rule.probability + 0.25) for rule in rules]
    sums = Counter()
    for rule in other:
        sums[rule.parent] += rule.probability
    other = [rule._replace(probability=rule.probability / sums[rule.parent]) for rule in other if rule.probability]
    mine, theirs = Grammar.from_rules(rules, "A"), Grammar.from_rules(other, "A")
    chart, total = inside_outside(mine, [words]), math.fsum(p for _, p, _ in trees)
    if 1 - total / math.exp(float(chart.log_z[0])) > 1e-5:
        return  # the enumeration leaves too much out
    posterior = [p / total for _, p, _ in trees]
    assert chart.entropy()[0] == pytest.approx(-sum(p * math.log(p) for p in posterior), abs=1e-3)
    given_by = {(rule.parent, rule.children): rule.probability for rule in other}
    logs = [sum(n * math.log(given_by[rule]) for rule, n in used.items()) for _, _, used in trees]
    if set(mine.symbols) == set(theirs.symbols):
        log_q = float(inside_outside(theirs, [words]).log_z[0])
        expected = sum(p * (math.log(p) - q + log_q) for p, q in zip(posterior, logs, strict=True))
        assert kl(mine, theirs, [words])[0] == pytest.approx(expected, abs=1e-3)


def test_the_rules_are_saved_and_written_as_text(tmp_path):
    grammar = Grammar.from_text(MANY)
    grammar.save(tmp_path / "a.json")
    loaded = Grammar.load(tmp_path / "a.json")
    assert parse(loaded, WORDS) == parse(grammar, WORDS)
    assert loaded.to_text() == grammar.to_text() and "1" not in {name[-1] for name in loaded.to_text().split()[1::4]}
    assert sorted(read_rules(loaded.to_text())[0]) == sorted(read_rules(MANY)[0])
    again = Grammar.from_text(loaded.to_text())
    assert (again.roots, again.binary, again.lexical) == (grammar.roots, grammar.binary, grammar.lexical)
    theirs = Grammar.from_nltk(grammar.to_nltk())
    assert parse(theirs, WORDS) == parse(grammar, WORDS)


def test_a_grammar_saved_without_its_rules_is_as_it_was(tmp_path):
    grammar = Grammar.from_text("S -> S S [0.3] | X [0.5] | 'b' [0.2]\nX -> 'a' [1.0]")
    grammar.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    del content["origin"]
    replace_json(tmp_path / "a.json", content)
    old = Grammar.load(tmp_path / "a.json")
    assert old.origin is None and old.binary == grammar.binary
    assert [str(tree) for tree in parse(old, [["a", "b"]])] == ["(S (S a) (S b))"]
    assert [str(tree) for tree in parse(grammar, [["a", "b"]])] == ["(S (S (X a)) (S b))"]
    sentences = [["a", "b", "a"], ["a"], ["b", "b"]]
    assert fit(old, sentences, 300).log_likelihoods[-1] == pytest.approx(
        -7.978, abs=1e-2
    )  # of its own rules, as before


def test_a_grammar_without_rules_of_its_own_has_the_fingerprint_of_earlier_versions():
    grammar = Grammar({"S": 1.0}, {("S", "A", "A"): 1.0}, {("A", "a"): 0.5, ("A", "b"): 0.5})
    assert grammar.fingerprint == "286c03509ee2159b6424d21d6f20c501445327289cfa08c47634e1d516eea30a"
    text = Grammar.from_text("S -> A A [1.0]\nA -> 'a' [0.5] | 'b' [0.5]")
    assert text.fingerprint == text.fingerprint != text.replaced(transformed=False).fingerprint


def test_rules_that_do_not_fit_their_grammar_are_refused(tmp_path):
    path = tmp_path / "a.json"
    grammar = Grammar.from_text(MANY)
    for change, message in (
        (lambda c: c["origin"]["rules"][0].__setitem__(2, 0.5), "rules of ROOT sum to 0.75"),
        (lambda c: [c["origin"]["rules"][i].__setitem__(2, 0.5) for i in (0, 1)], "start isn't what the rules"),
        (lambda c: c["origin"]["rules"].pop(), "rules of V sum to 0.25"),
        (lambda c: c["origin"].__setitem__("start", "S"), "other symbols|isn't what"),
        (lambda c: c["origin"].pop("rules"), "is damaged"),
        (lambda c: c.__setitem__("origin", [1]), "is damaged"),
        (lambda c: c["origin"]["rules"][0].__setitem__(1, [7]), "is damaged"),
        (lambda c: c["origin"]["rules"][0].__setitem__(1, [[["x"]]]), "is damaged"),
        (lambda c: c["origin"]["rules"][0].__setitem__(0, 3), "is damaged"),
    ):
        grammar.save(path)
        content = json.loads(path.read_text())
        change(content)
        replace_json(path, content)
        with pytest.raises(GrammarError, match=message):
            Grammar.load(path)


def test_a_tree_of_another_grammar_is_refused():
    grammar = Grammar.from_text(COMPETING)
    with pytest.raises(TreebankError, match="the tree has S over B A"):
        grammar.undo(Tree.parse("(S (B b) (A a))"))
    with pytest.raises(TreebankError, match="the tree has E over"):
        grammar.undo(Tree.parse("(E a)"))
    with pytest.raises(GrammarError, match="'zebra'"):
        grammar.undo(Tree.parse("(S (A zebra) (B b))"))


def test_trees_that_were_written_and_read_again_are_still_the_grammars():
    grammar = Grammar.from_text("S -> '(' A ')' [1.0]\nA -> B [0.5] | 'x' [0.5]\nB -> 'x' [0.5] | ']' [0.5]")
    for words in (["(", "x", ")"], ["(", "]", ")"]):
        tree = inside_outside(grammar, [words]).best_trees()[0]
        again = Tree.parse(str(tree))
        assert again.words()[0] == "-LRB-" and str(grammar.undo(again)) == str(grammar.undo(tree))
        assert inside_outside(grammar, [again.words()]).log_z == inside_outside(grammar, [words]).log_z


@pytest.mark.parametrize(
    ("first", "second"), [("ROOT -> S [1.0]", "TOP -> S [1.0]"), ("ROOT -> S [1.0]", ""), ("", "TOP -> S [1.0]")]
)
def test_divergence_does_not_depend_on_what_the_start_symbol_is_called(first, second):
    p, q = (Grammar.from_text(start + COMPETING) for start in (first, second))
    assert kl(p, q, [["a", "b"]]) == pytest.approx([0.0], abs=1e-12)


def test_divergence_counts_the_roots_of_both():
    rules = "\nS -> A A [1.0]\nT -> A A [0.5] | A S [0.5]\nA -> B [0.5] | 'a' [0.5]\nB -> 'a' [1.0]"
    p, q = (Grammar.from_text(start + rules) for start in ("R -> S [0.5] | T [0.5]", "Q -> S [0.2] | T [0.8]"))
    # Of "a a", p's roots are S : T as .5 : .25, and q's as .2 : .4.
    assert kl(p, q, [["a", "a"]]) == pytest.approx([2 / 3 * math.log(2) + 1 / 3 * math.log(0.5)])


def test_pruned_grammars_know_their_chains():
    spare = Grammar.from_text(COMPETING + "U -> U U [1.0]\nW -> X [1.0]")
    assert spare.pruned().to_text() == Grammar.from_text(COMPETING).to_text()
    assert [str(tree) for tree in parse(spare.pruned(), [["a", "b"]])] == ["(S (C a) (D b))"]
    words = Grammar.from_text(
        "S -> 'a' [0.5] | S S [0.25] | X X [0.25] | U U [0]\nX -> 'b' [1.0]\nU -> 'u' [1.0]"
    ).pruned()
    assert words.words == ("a", "b") and len(words.origin.rules) == 4


@pytest.mark.parametrize("start", ["", "TOP -> S [0.75] | N [0.25]\n"])
def test_pruned_rules_are_those_given_that_trees_end(start):
    rules, first = read_rules(f"{start}S -> S S [0.5] | M [0.25] | N N [0.25]\nM -> N [0.5] | S [0.5]\nN -> 'n' [1.0]")
    grammar = Grammar.from_rules(rules, first)
    assert math.isinf(grammar.expected_length)
    left = grammar.pruned()
    left.check_proper()
    # S ends with q = q^2/2 + 1/8 + q/8 + 1/4, the smaller root.
    q = 0.875 - math.sqrt(0.875**2 - 0.75)
    m, top = (1 + q) / 2, 0.75 * q + 0.25
    expected = {("S", ("S", "S")): q / 2, ("S", ("M",)): m / 4 / q, ("S", ("N", "N")): 1 / 4 / q}
    expected |= {("M", ("N",)): 0.5 / m, ("M", ("S",)): q / 2 / m, ("N", (Word("n"),)): 1}
    if start:
        expected |= {("TOP", ("S",)): 0.75 * q / top, ("TOP", ("N",)): 0.25 / top}
    assert probabilities(left) == pytest.approx(expected)
    words = ["n", "n", "n"]
    assert parse(left, [words]) == parse(grammar, [words])
    lost = inside_outside(grammar, [words]).log_z - inside_outside(left, [words]).log_z
    assert float(lost[0]) == pytest.approx(math.log(top if start else q))


def test_other_numbers_are_not_those_of_the_rules():
    grammar = Grammar.from_text(COMPETING)
    assert grammar.origin is not None and grammar.replaced(transformed=False).origin is None
