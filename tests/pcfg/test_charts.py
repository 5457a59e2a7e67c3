"""Charts: both engines against the list of all trees, against each other, and what is said of sentences that can't be."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference import posteriors
from pcfg.inference.chart import inside_outside
from pcfg.inference.engines import pick_engine
from pcfg.inference.masked_words import word_posteriors
from pcfg.inference.prefixes import prefix_log_z
from tests.support.enumeration import all_trees, log_weight, random_sentence, sparse_grammar, used

ENGINES = ("dense", "sparse")


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def expectations(grammar, sentence, trees):
    """Marginals and counts from the list of trees."""
    n, inner = len(sentence), len(grammar.nonterminals)
    labels, tags, counts = np.zeros((n, n + 1, inner)), np.zeros((n, len(grammar.preterminals))), Counter()
    total = math.fsum(p for _, p in trees)
    for tree, p in trees:
        for label, start, end in tree.spans():
            labels[start, end, grammar.nonterminals.index(label)] += p / total
        for position, tag in enumerate(tree.tags()):
            tags[position, grammar.preterminals.index(tag)] += p / total
        for rule, times in used(tree).items():
            counts[rule] += times * p / total
    return labels, tags, counts


@pytest.mark.parametrize("seed", range(30))
def test_everything_agrees_with_the_list_of_trees(engine, seed):
    grammar = sparse_grammar(seed)
    sentences = [random_sentence(grammar, 100 * seed + i) for i in range(4)]
    chart = inside_outside(grammar, sentences, engine=engine)
    total, names = Counter(), grammar.symbols
    for row, sentence in enumerate(sentences):
        n, trees = len(sentence), all_trees(grammar, sentence)
        if not trees:
            assert chart.log_z[row] == -math.inf and math.isnan(chart.entropy()[row])
            assert not chart.label_marginals[row].any() and not chart.tag_posteriors[row].any()
            assert chart.best_trees()[row] is None and chart.k_best(2)[row] == [] and chart.sample_trees(2)[row] == []
            assert chart.best_scores[row] == -math.inf
            continue
        labels, tags, counts = expectations(grammar, sentence, trees)
        total.update(counts)
        log_z = math.log(math.fsum(p for _, p in trees))
        assert float(chart.log_z[row]) == pytest.approx(log_z, abs=1e-12)
        assert np.abs(chart.label_marginals[row, :n, : n + 1].numpy() - labels).max() < 1e-12
        assert np.abs(chart.span_marginals[row, :n, : n + 1].numpy() - labels.sum(2)).max() < 1e-12
        assert float(chart.span_marginals[row].sum()) == pytest.approx(n - 1, abs=1e-12)
        assert np.abs(chart.tag_posteriors[row, :n].numpy() - tags).max() < 1e-12
        assert not chart.label_marginals[row, n:].any()
        shares = [p / math.exp(log_z) for _, p in trees]
        assert chart.entropy()[row] == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-12)
        assert chart.best_scores[row] == pytest.approx(math.log(trees[0][1]), abs=1e-12)
        assert log_weight(grammar, chart.best_trees()[row]) == pytest.approx(math.log(trees[0][1]), abs=1e-12)
        best = chart.k_best(7)[row]
        assert [score for score, _ in best] == pytest.approx([math.log(p) for _, p in trees[:7]], abs=1e-12)
        assert [log_weight(grammar, tree) for _, tree in best] == pytest.approx([s for s, _ in best], abs=1e-12)
        assert len({str(tree) for _, tree in best}) == len(best) == min(7, len(trees))
        assert all(tree.words() == sentence for tree in chart.sample_trees(3)[row])
    rules = [
        total[names[a], names[b], names[c]]
        for a, b, c in zip(grammar.parents, grammar.left, grammar.right, strict=True)
    ]
    assert chart.rule_counts() == pytest.approx(rules, abs=1e-12)
    assert chart.start_counts() == pytest.approx([total["root", name] for name in names], abs=1e-12)
    words = [
        total[grammar.preterminals[t], grammar.words[w]] for t, w in zip(grammar.tags, grammar.tokens, strict=True)
    ]
    assert chart.word_counts() == pytest.approx(words, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_engines_agree_beyond_what_can_be_listed(seed):
    grammar = Grammar.random(5, 6, 4, seed, temperature=2.0)
    sentences = [random_sentence(grammar, seed + n, n) for n in (1, 2, 9, 17)]
    dense, sparse = (inside_outside(grammar, sentences, engine=engine) for engine in ENGINES)
    for name in ("log_z", "span_marginals", "label_marginals", "tag_posteriors"):
        assert (getattr(dense, name) - getattr(sparse, name)).abs().max() < 1e-10, name
    for name in ("rule_counts", "start_counts", "word_counts", "entropy"):
        assert np.abs(getattr(dense, name)() - getattr(sparse, name)()).max() < 1e-10, name
    assert [str(tree) for tree in dense.mbr_trees(0.3)] == [str(tree) for tree in sparse.mbr_trees(0.3)]
    for mine, theirs in zip(dense.k_best(20), sparse.k_best(20), strict=True):
        assert [score for score, _ in mine] == pytest.approx([score for score, _ in theirs], abs=1e-10)
        # Trees of the same rules in another order have the same score.
        assert [log_weight(grammar, tree) for _, tree in mine] == pytest.approx([score for score, _ in mine], abs=1e-10)
        assert len({str(tree) for _, tree in mine}) == len(mine)
    assert [log_weight(grammar, tree) for tree in dense.best_trees()] == pytest.approx(dense.best_scores, abs=1e-10)
    assert dense.best_scores == pytest.approx(sparse.best_scores, abs=1e-10)


def test_sentences_of_other_lengths_beside_it_change_nothing(engine):
    grammar = Grammar.random(3, 4, 5, 0)
    sentences = [random_sentence(grammar, n, n) for n in (7, 1, 4, 2)]
    together = inside_outside(grammar, sentences, engine=engine)
    for row, sentence in enumerate(sentences):
        n, alone = len(sentence), inside_outside(grammar, [sentence], engine=engine)
        assert float(together.log_z[row]) == pytest.approx(float(alone.log_z[0]), abs=1e-13)
        assert (together.label_marginals[row, :n, : n + 1] - alone.label_marginals[0]).abs().max() < 1e-13
        assert not together.label_marginals[row, n:].any() and not together.label_marginals[row, :, n + 1 :].any()
        assert not together.tag_posteriors[row, n:].any()


def test_a_sentence_without_a_parse_leaves_the_others_alone(engine):
    grammar = Grammar({"S": 1.0}, {("S", "A", "B"): 1.0}, {("A", "a"): 1.0, ("B", "b"): 1.0})
    chart = inside_outside(grammar, [["b", "a"], ["a", "b"], [], ["a"]], engine=engine)
    assert chart.log_z.tolist() == [-math.inf, 0.0, -math.inf, -math.inf]
    assert chart.span_marginals.sum((1, 2)).tolist() == [0, 1, 0, 0]
    assert [tree is None for tree in chart.best_trees()] == [True, False, True, True]
    assert chart.rule_counts().tolist() == [1.0]
    assert np.isnan(chart.entropy()).tolist() == [True, False, True, True]
    only = inside_outside(grammar, [[]], engine=engine)
    assert only.log_z.tolist() == [-math.inf] and not only.span_marginals.any() and not only.tag_posteriors.any()
    with pytest.raises(OptionError, match="no sentences"):
        inside_outside(grammar, [], engine=engine)


def test_one_word_has_a_tag_for_its_root(engine):
    grammar = Grammar({"A": 0.25, "B": 0.75}, {}, {("A", "a"): 1.0, ("B", "a"): 0.5, ("B", "b"): 0.5})
    chart = inside_outside(grammar, [["a"]], engine=engine)
    assert float(chart.log_z[0]) == pytest.approx(math.log(0.625))
    assert chart.tag_posteriors[0, 0].tolist() == pytest.approx([0.4, 0.6])
    assert not chart.span_marginals.any()


def test_samples_follow_the_posterior_and_seeds_are_their_own(engine):
    grammar = Grammar.random(2, 2, 2, 3)
    sentence = ["w0", "w1", "w1", "w0"]
    trees = all_trees(grammar, sentence)
    chart = inside_outside(grammar, [sentence, sentence], engine=engine)
    drawn = [[str(tree) for tree in row] for row in chart.sample_trees(20_000, seed=5)]
    for row in drawn:
        counts = Counter(row)
        expected = np.array([p for _, p in trees])
        observed = np.array([counts[str(tree)] for tree, _ in trees])
        often = expected / expected.sum() * 20_000 > 5
        groups = [np.append(x[often], x[~often].sum() + 1e-9) for x in (observed, expected / expected.sum() * 20_000)]
        assert (
            observed.sum() == 20_000
            and chisquare(groups[0], groups[1] * groups[0].sum() / groups[1].sum()).pvalue > 1e-4
        )
    assert drawn[0] != drawn[1]
    again, other = ([[str(t) for t in row] for row in chart.sample_trees(50, seed=s)] for s in (5, 6))
    assert again == [[str(t) for t in row] for row in chart.sample_trees(50, seed=5)]
    assert other[0] != again[1], "a seed's second sentence isn't the next seed's first"
    longer = inside_outside(grammar, [sentence, [*sentence, *sentence]], engine=engine)
    assert [str(t) for t in longer.sample_trees(50, seed=5)[0]] == again[0], "the batch changes nothing"


def test_masked_words_and_prefixes_are_asked_of_a_chart(engine):
    grammar = sparse_grammar(2)
    sentences = [random_sentence(grammar, seed, 4) for seed in range(3)]
    chart = inside_outside(grammar, sentences, engine=engine)
    for mine, theirs in zip(chart.word_posteriors(), word_posteriors(grammar, sentences), strict=True):
        assert mine.shape == (4, len(grammar.words)) and np.abs(mine - theirs).max() < 1e-12
        assert ((np.abs(mine.sum(1) - 1) < 1e-12) | (mine == 0).all(1)).all()
    assert (chart.prefix_log_z() == prefix_log_z(grammar, sentences)).all()
    assert (chart.prefix_log_z() >= chart.log_z.numpy() - 1e-12).all()


def test_names_are_a_treebanks_only_where_the_grammar_says_so(engine):
    grammar = Grammar({"S+X": 1.0}, {("S+X", "A", "B^C"): 1.0}, {("A", "a"): 1.0, ("B^C", "b"): 1.0})
    trees = [
        str(inside_outside(grammar.replaced(transformed=said), [["a", "b"]], engine=engine).mbr_trees()[0])
        for said in (False, True)
    ]
    assert trees == ["(S+X (A a) (B^C b))", "(S (X (A a) (B b)))"]


def test_a_sparse_grammars_forest_is_refused_before_it_fills_the_memory(monkeypatch):
    grammar = Grammar.random(4, 4, 2, 0)
    monkeypatch.setattr("pcfg.sparse.engine.MOST_EDGES", 5000)
    chart = inside_outside(grammar, [["w0"] * 12], engine="sparse")
    assert float(chart.log_z[0]) < 0
    for ask in (lambda: chart.k_best(2), lambda: chart.sample_trees(1)):
        with pytest.raises(OptionError, match="ways of building what trees hold"):
            ask()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_float32_is_within_its_precision(temperature):
    grammar = Grammar.random(4, 5, 6, 1, temperature=temperature)
    sentences = [random_sentence(grammar, n, n) for n in (3, 12)]
    single, double = (inside_outside(grammar, sentences, engine="dense", dtype=d) for d in ("float32", "float64"))
    assert (single.log_z - double.log_z).abs().max() < 1e-5
    assert (single.label_marginals - double.label_marginals).abs().max() < 1e-5
    assert single.label_marginals.dtype == torch.float32


def test_what_cant_be_is_refused_with_its_place(engine, monkeypatch):
    grammar = Grammar.random(2, 2, 2, 0)
    with pytest.raises(GrammarError, match=r"'zebra' \(number 2 of its sentence\)"):
        inside_outside(grammar, [["w0"], ["w0", "zebra"]], engine=engine)
    with pytest.raises(GrammarError, match="list of words"):
        inside_outside(grammar, ["w0"], engine=engine)
    with pytest.raises(OptionError, match="engine 'fast'"):
        inside_outside(grammar, [["w0"]], engine="fast")
    with pytest.raises(OptionError, match="dtype 'float16'"):
        inside_outside(grammar, [["w0"]], dtype="float16")
    with pytest.raises(OptionError, match="`device` quantum"):
        inside_outside(grammar, [["w0"]], engine=engine, device="quantum")
    for wrong in ({"count": -1}, {"count": 1, "seed": -1}):
        with pytest.raises(OptionError, match="neither can be negative"):
            inside_outside(grammar, [["w0"]], engine=engine).sample_trees(**wrong)
    with pytest.raises(OptionError, match="0 best trees"):
        inside_outside(grammar, [["w0"]], engine=engine).k_best(0)
    with pytest.raises(OptionError, match="`cost` of a label is 7"):
        inside_outside(grammar, [["w0"]], engine=engine).mbr_trees(7.0)
    with pytest.raises(OptionError, match="workers is 0"):
        inside_outside(grammar, [["w0"]], engine=engine, workers=0)
    monkeypatch.setattr(posteriors, "free_memory", lambda device: 1000)
    small = inside_outside(grammar, [["w0"]], engine=engine)
    small._refuse(899)
    with pytest.raises(OptionError, match="some of it for others"):
        small._refuse(901)
    with pytest.raises(OptionError, match=r"sentences of up to 60 words would take 0.0 GB, and 0.0 GB are free"):
        _ = inside_outside(grammar, [["w0"] * 60], engine=engine).log_z


def test_the_engine_follows_size_and_density():
    assert pick_engine(Grammar.random(3, 3, 3, 0)) == "dense"
    assert pick_engine(Grammar.random(60, 60, 1, 0, rules=600)) == "sparse"
    assert pick_engine(Grammar.random(60, 60, 1, 0, rules=100_000)) == "dense"


def test_threads_change_nothing():
    grammar = sparse_grammar(4)
    sentences = [random_sentence(grammar, seed) for seed in range(12)]
    one, three = (inside_outside(grammar, sentences, engine="sparse", workers=workers) for workers in (1, 3))
    assert torch.equal(one.log_z, three.log_z) and torch.equal(one.label_marginals, three.label_marginals)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_sentences_chains_are_drawn_by_the_seed_and_for_itself(engine):
    rules = "S -> X [0.5] | Y [0.5]\nX -> A B [1.0]\nY -> A B [1.0]\nA -> 'a' [1.0]\nB -> 'b' [1.0]"
    chart = inside_outside(Grammar.from_text(rules), [["a", "b"]] * 2, engine=engine, device="cpu")
    first, second = chart.sample_trees(60, seed=1, plain=True)
    assert {str(tree) for tree in first} == {"(S (X (A a) (B b)))", "(S (Y (A a) (B b)))"}
    assert first != second and chart.sample_trees(60, seed=2, plain=True)[0] != first
    assert chart.sample_trees(60, seed=1, plain=True) == [first, second]
