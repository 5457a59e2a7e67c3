"""The sparse engine against the enumeration of all trees, and against CKY in plain Python where those are too many."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chisquare

from pcfg.errors import GrammarError, OptionError
from pcfg.sparse import engine as sparse
from pcfg.sparse.engine import SparseRules, inside_outside, k_best, parallel, sample_trees, viterbi


def random_case(seed, n=None, nonterminals=None, ties=False, low=1.0):
    """A small grammar of few rules, in no order, some of probability 0, and the scores of one sentence."""
    random = np.random.default_rng(seed)
    nonterminals = nonterminals or int(random.integers(1, 5))
    tags, n = int(random.integers(1, 4)), n or int(random.integers(1, 7))
    symbols = nonterminals + tags
    rules = [(a, b, c) for a in range(nonterminals) for b in range(symbols) for c in range(symbols)]
    random.shuffle(rules)
    rules = rules[: max(1, int(random.uniform(0.1, 0.7) * len(rules)))]
    shapes = len(rules), (n, tags), symbols
    if ties:
        probs, emissions, start = (random.choice([0.25, 0.5], shape) for shape in shapes)
    else:
        probs, emissions, start = (low ** random.random(shape) * random.random(shape) for shape in shapes)
        probs[random.random(len(rules)) < 0.1] = 0
        emissions[random.random((n, tags)) < 0.2] = 0
        start[random.random(symbols) < 0.3] = 0
    return nonterminals, tags, np.array(rules, np.int32), probs, start, emissions


def built(case):
    """What the engine takes."""
    nonterminals, tags, rules, probs, start, emissions = case
    return SparseRules.build(nonterminals, tags, *rules.T, probs), start, emissions


def all_trees(case):
    """Every tree as ((symbol, i, j), ...) in preorder, with its log probability and its rules."""
    nonterminals, _, rules, probs, start, emissions = case
    known = {}

    def over(symbol, i, j):
        if (symbol, i, j) in known:
            return known[symbol, i, j]
        found = []
        if symbol >= nonterminals and j - i == 1 and emissions[i, symbol - nonterminals]:
            found.append((((symbol, i, j),), math.log(emissions[i, symbol - nonterminals]), ()))
        for rule, (parent, left, right) in enumerate(rules.tolist()):
            if parent == symbol and probs[rule]:
                for m in range(i + 1, j):
                    found += [
                        (((symbol, i, j), *x, *y), math.log(probs[rule]) + p + q, (rule, *r, *s))
                        for x, p, r in over(left, i, m)
                        for y, q, s in over(right, m, j)
                    ]
        known[symbol, i, j] = found
        return found

    return [
        (tree, math.log(start[root]) + p, used) for root in np.flatnonzero(start).tolist()
        for tree, p, used in over(root, 0, len(emissions))
    ]  # fmt: skip


def case_with_trees(n, least):
    """The first small case of n words with at least so many trees."""
    for seed in range(1000):
        case = random_case(seed, n=n, nonterminals=2)
        case[-1][:] += 0.2
        if least <= len(all_trees(case)) <= 20 * least:
            return case
    raise AssertionError("no such case")


def log_sum(logs):
    """Log of a sum of exponentials, without losing small ones."""
    return max(logs) + math.log(math.fsum(math.exp(value - max(logs)) for value in logs))


def near(logs, tolerance=1e-12):
    """Equal to 1e-12, or to the last digits of a log score far from 0."""
    return pytest.approx(logs, abs=tolerance, rel=1e-14)


def key(spans):
    """A tree as `all_trees` writes it."""
    return tuple(zip(*(part.tolist() for part in spans), strict=True))


def plain_cky(case):
    """Inside sums and Viterbi maxima in logs, by the three loops of the textbook."""
    nonterminals, tags, rules, probs, start, emissions = case
    n = len(emissions)
    with np.errstate(divide="ignore"):
        emissions, probs, start = np.log(emissions), np.log(probs), np.log(start)
    total, best = (defaultdict(lambda: -math.inf) for _ in range(2))
    for i in range(n):
        for tag in range(tags):
            total[nonterminals + tag, i, i + 1] = best[nonterminals + tag, i, i + 1] = emissions[i, tag]
    for width in range(2, n + 1):
        for i in range(n - width + 1):
            j = i + width
            for (a, b, c), prob in zip(rules.tolist(), probs, strict=True):
                for m in range(i + 1, j):
                    found = prob + total[b, i, m] + total[c, m, j]
                    total[a, i, j] = np.logaddexp(total[a, i, j], found)
                    best[a, i, j] = max(best[a, i, j], prob + best[b, i, m] + best[c, m, j])
    roots = range(nonterminals + tags)
    return np.logaddexp.reduce([start[a] + total[a, 0, n] for a in roots]), max(start[a] + best[a, 0, n] for a in roots)


@pytest.fixture(params=["scaled", "wide"])
def engine(request, monkeypatch):
    """Each way of keeping values; the second is otherwise taken only when the first might underflow."""
    if request.param == "wide":
        monkeypatch.setattr(sparse, "_bottom_up", lambda *_, **__: None)
    return request.param


def check_against_trees(case):
    """Everything the engine says of a sentence, from its list of trees."""
    rules, start, emissions = built(case)
    nonterminals, tags, n = case[0], case[1], len(emissions)
    trees = all_trees(case)
    chart, (score, tree) = inside_outside(rules, start, emissions), viterbi(rules, start, emissions)
    if not trees:
        assert (chart.log_z, score, tree) == (-math.inf, -math.inf, None)
        assert not chart.span_marginals().any() and not chart.rule_counts().any()
        assert k_best(rules, start, emissions, 3) == [] and sample_trees(chart, 3, 0) == []
        return 0
    z = log_sum([p for _, p, _ in trees])
    spans, labels = np.zeros((n, n + 1)), np.zeros((n, n + 1, nonterminals + tags))
    counts, roots = np.zeros(len(case[3])), np.zeros(nonterminals + tags)
    for nodes, p, used in trees:
        part = math.exp(p - z)
        roots[nodes[0][0]] += part
        for symbol, i, j in nodes:
            spans[i, j] += part
            labels[i, j, symbol] += part
        np.add.at(counts, list(used), part)
    assert chart.log_z == near(z)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(chart.span_marginals(), spans, **close)
    np.testing.assert_allclose(chart.label_marginals(), labels[..., :nonterminals], **close)
    np.testing.assert_allclose(chart.tag_posteriors(), labels[range(n), range(1, n + 1), nonterminals:], **close)
    np.testing.assert_allclose(chart.rule_counts(), counts, **close)
    np.testing.assert_allclose(chart.start_counts(), roots, **close)
    best = sorted((p for _, p, _ in trees), reverse=True)
    probs = {nodes: p for nodes, p, _ in trees}
    assert score == near(best[0])
    assert probs[key(tree)] == near(best[0])
    for k in (1, 2, 7, min(len(trees) + 1, 500)):
        found = k_best(rules, start, emissions, k)
        assert [s for s, _ in found] == near(best[:k])
        assert len({key(t) for _, t in found}) == len(found)  # ties: each tree once, and with its own score
        assert all(probs[key(t)] == near(s) for s, t in found)
    return len(trees)


@pytest.mark.parametrize("ties", [False, True])
def test_everything_is_what_the_list_of_all_trees_says(engine, ties):
    seen = [
        check_against_trees(random_case(seed, n=1 + seed % 4, nonterminals=1 + seed % 3, ties=ties))
        for seed in range(100)
    ]
    assert seen.count(0) > 2 and max(seen) > 100


@pytest.mark.parametrize("low", [1e-30, 1e-290])
def test_peaked_grammars(low):
    assert (
        max(check_against_trees(random_case(seed, n=1 + seed % 5, nonterminals=2, low=low)) for seed in range(40)) > 20
    )


def test_inside_and_outside_values(engine):
    """Inside by enumeration under each symbol; outside as what multiplies it in the sum over trees."""
    for seed in range(10):
        case = random_case(seed, n=4, nonterminals=2)
        chart = inside_outside(*built(case))
        trees = all_trees(case)
        items = chart.items
        for item in range(len(items.symbols)):
            place = int(items.symbols[item]), int(items.starts[item]), int(items.ends[item])
            alone = np.zeros(case[0] + case[1])
            alone[place[0]] = 1
            inner = log_sum([p for _, p, _ in all_trees((*case[:4], alone, case[5][place[1] : place[2]]))])
            assert chart.log_inside[item] == near(inner)
            with_it = [p for nodes, p, _ in trees if place in nodes]
            if with_it:
                assert chart.log_outside[item] == near(log_sum(with_it) - inner, 1e-11)
            else:
                assert chart.log_outside[item] == -math.inf


@pytest.mark.parametrize("n", [9, 30, 70])
def test_equals_plain_cky(engine, n):
    """Longer sentences, and more than 64 words: there positions share bits."""
    case = random_case(11 + n, n=n, nonterminals=3)
    case[-1][:] += 0.1
    total, best = plain_cky(case)
    assert np.isfinite(best)
    rules, start, emissions = built(case)
    chart, (score, tree) = inside_outside(rules, start, emissions), viterbi(rules, start, emissions)
    assert (chart.log_z, score) == (pytest.approx(total, rel=1e-12), pytest.approx(best, rel=1e-12))
    assert len(tree.symbols) == 2 * n - 1
    spans = chart.span_marginals()
    assert np.triu(spans, 2).sum() == pytest.approx(n - 1, rel=1e-12)
    assert chart.rule_counts().sum() == pytest.approx(n - 1, rel=1e-12)
    np.testing.assert_allclose(chart.tag_posteriors().sum(1), 1, rtol=1e-12)
    best_two = k_best(rules, start, emissions, 2)
    assert best_two[0][0] == pytest.approx(best, rel=1e-12) and best_two[1][0] <= best_two[0][0]


def test_rule_counts_are_the_gradient_of_log_z(engine):
    """A second oracle where trees are too many to list: differences in one rule's log score."""
    case = random_case(5, n=25, nonterminals=3)
    case[-1][:] += 0.1
    counts = inside_outside(*built(case)).rule_counts()
    for rule in np.argsort(counts)[-3:]:
        z = []
        for step in (1e-4, -1e-4):
            probs = case[3].copy()
            probs[rule] *= math.exp(step)
            z.append(inside_outside(*built((*case[:3], probs, *case[4:]))).log_z)
        assert counts[rule] == pytest.approx((z[0] - z[1]) / 2e-4, rel=1e-6)


def test_the_two_engines_agree_where_values_span_300_orders(monkeypatch):
    """60 words at 1e-300 each: far below the least float, though every span is well scaled."""
    n = 60
    probs, start, emissions = np.array([1e-300, 0.5, 1e-20, 1.0]), np.array([1.0, 0, 0]), np.full((n, 1), 1e-300)
    rules = np.array([[0, 2, 0], [0, 2, 2], [0, 2, 1], [1, 2, 0]], np.int32)
    case = 2, 1, rules, probs, start, emissions
    total, best = plain_cky(case)
    built_case = built(case)
    scaled, score = inside_outside(*built_case), viterbi(*built_case)[0]
    assert total < -60 * 690
    assert (scaled.log_z, score) == (pytest.approx(total, rel=1e-12), pytest.approx(best, rel=1e-12))
    monkeypatch.setattr(sparse, "_bottom_up", lambda *_, **__: None)
    wide = inside_outside(*built_case)
    assert wide.log_z == pytest.approx(scaled.log_z, rel=1e-13)
    np.testing.assert_allclose(wide.span_marginals(), scaled.span_marginals(), rtol=1e-11, atol=1e-290)
    np.testing.assert_allclose(wide.rule_counts(), scaled.rule_counts(), rtol=1e-11, atol=1e-290)


def test_a_value_that_only_seems_lost_is_kept():
    """The only whole tree needs a symbol 1e-320 times as likely as the other over its words."""
    rules = np.array([[1, 4, 4], [2, 4, 4], [3, 2, 4], [0, 3, 4]], np.int32)
    case = 4, 1, rules, np.array([1.0, 1e-320, 1e-200, 1e-100]), np.array([1.0, 0, 0, 0, 0]), np.ones((4, 1))
    assert check_against_trees(case) == 1


@pytest.mark.parametrize("scale", [1e-320, 1e-100, 1e100, 1e300])
def test_scores_of_any_size(scale):
    case = random_case(3, n=5, nonterminals=2)
    case[-1][:] = (case[-1] + 0.1) * scale
    case[3][:] = np.maximum(case[3], 0.1) * min(scale, 1e200)
    assert check_against_trees(case) > 1


def test_samples_pass_a_chi_squared_test(engine):
    case = case_with_trees(4, 20)
    trees = {nodes: p for nodes, p, _ in all_trees(case)}
    z, count = log_sum(list(trees.values())), 20_000
    chart = inside_outside(*built(case))
    drawn = Counter(key(tree) for tree in sample_trees(chart, count, seed=1))
    assert set(drawn) <= set(trees) and len(trees) >= 20
    expected = {nodes: math.exp(p - z) * count for nodes, p in trees.items()}
    often = [nodes for nodes in trees if expected[nodes] >= 5]
    rest = count - sum(drawn[nodes] for nodes in often), count - sum(expected[nodes] for nodes in often)
    observed, wanted = [drawn[nodes] for nodes in often], [expected[nodes] for nodes in often]
    if rest[1] > 1:
        observed, wanted = [*observed, rest[0]], [*wanted, rest[1]]
    wanted = np.array(wanted) * sum(observed) / sum(wanted)
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_samples_follow_their_seed():
    case = case_with_trees(4, 20)
    chart = inside_outside(*built(case))
    drawn = [[key(tree) for tree in sample_trees(chart, 50, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_word_is_a_preterminal_root(engine):
    rules = SparseRules.build(1, 2, *np.array([[0, 1, 2]], np.int32).T, np.array([1.0]))
    start, emissions = np.array([0.5, 0.3, 0.2]), np.array([[0.5, 0.1]])
    score, tree = viterbi(rules, start, emissions)
    assert score == pytest.approx(math.log(0.15)) and key(tree) == ((1, 0, 1),)
    chart = inside_outside(rules, start, emissions)
    assert chart.log_z == pytest.approx(math.log(0.17))
    np.testing.assert_allclose(chart.tag_posteriors(), [[15 / 17, 2 / 17]])
    np.testing.assert_allclose(chart.start_counts(), [0, 15 / 17, 2 / 17])
    assert viterbi(rules, np.array([1.0, 0, 0]), emissions) == (-math.inf, None)


@pytest.mark.parametrize("emissions", [np.zeros((3, 2)), np.zeros((0, 2)), np.array([[1.0, 0], [0, 0], [1, 0]])])
def test_no_parse_is_a_score_and_no_error(engine, emissions):
    rules = SparseRules.build(1, 2, *np.array([[0, 1, 2], [0, 0, 0]], np.int32).T, np.array([0.5, 0.5]))
    start = np.array([1.0, 0, 0])
    assert viterbi(rules, start, emissions) == (-math.inf, None)
    assert k_best(rules, start, emissions, 2) == []
    chart = inside_outside(rules, start, emissions)
    assert chart.log_z == -math.inf and sample_trees(chart, 2, 0) == []
    assert not chart.span_marginals().any() and not chart.label_marginals().any() and not chart.tag_posteriors().any()
    assert not chart.rule_counts().any() and not chart.start_counts().any()


def test_no_rules(engine):
    none = np.zeros(0, np.int32)
    for probs, children in ((np.zeros(0), none), (np.zeros(1), np.zeros(1, np.int32))):
        rules = SparseRules.build(1, 1, children, children, children, probs)
        assert viterbi(rules, np.ones(2), np.ones((2, 1))) == (-math.inf, None)
        assert viterbi(rules, np.ones(2), np.ones((1, 1)))[0] == 0


def test_memory_grows_as_needed_and_is_used_again():
    """Long and short sentences in turn, in the same space, which is too small at first."""
    case = case_with_trees(4, 20)
    rules, start, emissions = built(case)
    rules.spaces.rows, rules.spaces.items = 16, 16
    for n in (3, 40, 5, 100, 4):
        words = np.resize(emissions, (n, case[1]))
        again, fresh = inside_outside(rules, start, words), inside_outside(built(case)[0], start, words)
        assert again.log_z == fresh.log_z
        np.testing.assert_array_equal(again.marginals, fresh.marginals)
        if n < 10:
            assert again.log_z == near(plain_cky((*case[:5], words))[0])
    assert rules.spaces.items > 2 * (case[0] + case[1]) + 1024


def test_a_chart_survives_the_next_sentence():
    case = case_with_trees(4, 20)
    rules, start, emissions = built(case)
    chart = inside_outside(rules, start, emissions)
    before = chart.span_marginals().copy(), sample_trees(chart, 5, 0)
    inside_outside(rules, start, np.ones((9, case[1])))
    fresh = inside_outside(rules, start, emissions)
    np.testing.assert_array_equal(chart.span_marginals(), before[0])
    assert [key(t) for t in before[1]] == [key(t) for t in sample_trees(fresh, 5, 0)]


def test_workers_give_the_same_results():
    case = random_case(2, n=4, nonterminals=4)
    rules, start, _ = built(case)
    random = np.random.default_rng(0)
    sentences = [random.random((int(n), case[1])) for n in random.integers(1, 15, 40)]
    one, three = (
        parallel(lambda x: (viterbi(rules, start, x)[0], inside_outside(rules, start, x).log_z), sentences, workers)
        for workers in (1, 3)
    )
    assert one == three


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": [1]}, "rule 0 has parent 1: give a number from 0 to 0"),
        ({"left": [3]}, "rule 0 has left child 3"),
        ({"right": [-1]}, "rule 0 has right child -1"),
        ({"probs": [math.nan]}, "rule 0 has probability nan"),
        ({"probs": [-0.5]}, "rule 0 has probability -0.5"),
    ],
)
def test_rules_that_make_no_grammar(change, message):
    given = {"parents": [0], "left": [1], "right": [2], "probs": [1.0]} | change
    arrays = {name: np.array(values, float if name == "probs" else np.int32) for name, values in given.items()}
    with pytest.raises(GrammarError, match=message):
        SparseRules.build(1, 2, **arrays)


def test_scores_that_do_not_fit():
    rules = SparseRules.build(1, 2, *np.array([[0, 1, 2]], np.int32).T, np.array([1.0]))
    for function in (viterbi, inside_outside, lambda *given: k_best(*given, 1)):
        with pytest.raises(GrammarError, match=r"give \[3\] and \[n, 2\]"):
            function(rules, np.ones(3), np.ones((2, 3)))
        with pytest.raises(GrammarError, match="emissions has a score that is negative"):
            function(rules, np.ones(3), np.full((2, 2), np.nan))
    with pytest.raises(OptionError, match="0 best trees"):
        k_best(rules, np.ones(3), np.ones((2, 2)), 0)


def test_frozen_and_transposed_arrays_are_taken_as_they_are():
    nonterminals, tags, rules, probs, start, emissions = case_with_trees(4, 20)
    frozen = [array.copy() for array in (rules, probs, start, np.asfortranarray(emissions))]
    for array in frozen:
        array.flags.writeable = False
    known = len(sparse.inside_pass.signatures)
    chart = inside_outside(*built((nonterminals, tags, *frozen)))
    assert chart.log_z == inside_outside(*built((nonterminals, tags, rules, probs, start, emissions))).log_z
    assert len(sparse.inside_pass.signatures) <= max(known, 1)
