"""The arithmetic around probes, by plain loops and planted numbers; nothing is trained here."""

import numpy as np
import pytest

from pcfg import sample
from probes.causal import _shares
from probes.dataset import Dataset
from probes.decoding import Reference, lca_depths
from probes.depths import depth_classes, depth_trees
from probes.distances import _wanted
from probes.example import example_grammar
from probes.experiment import best_layer
from probes.intervals import Measure, bootstrap, ratio
from probes.linear import PairClassifier
from probes.scorer import Scorer, Settings
from probes.sentence import Example
from surgery.progress import silent


@pytest.fixture(scope="module")
def dataset():
    return Dataset.of_grammar(example_grammar(), sample(example_grammar(), 60, seed=0, max_length=9), seed=0)


def test_relative_depths_are_steps_and_spell_the_true_trees(dataset):
    classes = depth_classes(dataset, dataset.test)
    wanted = []
    for i in dataset.test:
        before = 0
        for depth in lca_depths(dataset.trees[i]).tolist():
            wanted.append(min(5, max(-5, depth - before)))
            before = depth
    assert classes.tolist() == wanted
    assert min(wanted) < 0 < max(wanted)

    class Knowing(PairClassifier):
        def __call__(self, features, left):
            return classes

    _, trees = depth_trees(object.__new__(Knowing), np.zeros((1, 1)), dataset, dataset.test)
    f1s = [
        Reference.of(dataset.trees[i], punctuation=True).f1(tree) for i, tree in zip(dataset.test, trees, strict=True)
    ]
    assert f1s == [1.0] * len(f1s)  # a grammar's own trees are binary, and none of these steps is cut


def test_each_sentence_counts_as_the_mean_over_all_its_pairs(dataset):
    distances, weights = _wanted(dataset, dataset.test)
    for i, apart, weight in zip(dataset.test, distances, weights, strict=True):
        n = int(dataset.lengths[i])
        assert len(apart) == n * (n - 1) // 2
        assert weight.sum() == pytest.approx((n - 1) / n, rel=1e-5)  # of n * n pairs, n are of a word with itself


def test_attention_within_a_constituent_by_a_plain_loop():
    random = np.random.default_rng(0)
    heads, n = 2, 6
    between = random.random((heads, n, n))
    smallest = np.array([[1, 4], [1, 4], [1, 3], [1, 3], [-1, -1], [4, 6]])
    smallest[0] = (0, 2)
    wanted = np.zeros((heads, 3))
    for head in range(heads):
        for word, (start, end) in enumerate(smallest.tolist()):
            if start < 0:
                continue

            def share(first, stop, word=word, head=head):
                others = [between[head, word, j] for j in range(n) if j != word]
                return sum(between[head, word, j] for j in range(first, stop) if j != word) / sum(others)

            width = end - start
            alike = [share(s, s + width) for s in range(n - width + 1) if s <= word < s + width]
            wanted[head] += share(start, end), sum(alike) / len(alike), 1
    assert _shares(between, smallest) == pytest.approx(wanted)


def test_a_seed_sees_nine_tenths_of_the_training_sentences(dataset):
    scorer = Scorer(dataset, Settings(2, 3, None, None, silent))
    first, second = scorer.train_for(0), scorer.train_for(1)
    assert len(set(first.tolist())) == len(first) == round(0.9 * len(dataset.train))
    assert set(first.tolist()) < set(dataset.train.tolist())
    assert first.tolist() == scorer.train_for(0).tolist() != second.tolist()
    assert Scorer(dataset, Settings(2, 4, None, None, silent)).train_for(0).tolist() != first.tolist()


def test_selectivity_has_the_widest_interval_of_a_difference(dataset):
    scorer = Scorer(dataset, Settings(1, 0, None, None, silent))
    real = Measure("depth", "model", 0, "accuracy", "", 0.9, 0.8, 0.95, (0.9,))
    hits = np.stack([np.arange(len(dataset.test)) % 3, np.full(len(dataset.test), 4.0)], 1)
    control, difference = scorer.selectivity(real, "control accuracy", hits[None], ratio)
    assert difference.value == pytest.approx(0.9 - control.value)
    assert (difference.low, difference.high) == pytest.approx((0.8 - control.high, 0.95 - control.low))
    assert control.low < control.high


def test_the_best_layer_has_the_fewest_bits_and_is_the_first_of_equals():
    def bits(layer, value, source="model"):
        return Measure("span-two-layer", source, layer, "bits", "", value, None, None, (value,))

    measures = [bits(2, 0.4), bits(1, 0.4), bits(0, 0.6), bits(3, 0.5), bits(0, 0.1, "untrained"), bits(None, 0.1)]
    assert best_layer(measures) == 1


def test_an_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(size=400)
    stats = np.stack([values, np.ones(400)], 1)[None]
    value, low, high, _ = bootstrap(stats, ratio, 0)
    error = values.std() / 20
    assert (value - low, high - value) == pytest.approx((1.96 * error, 1.96 * error), rel=0.12)  # 90% would be 1.64


def test_a_chart_in_a_terminal_is_darker_where_a_span_is_likelier():
    rows = ((0.0, 0.1, 1.0), (0.0, 0.0, 0.7), (0.0, 0.0, 0.0))
    example = Example(("a", "b", "c"), 1, rows, rows, ((0, 3), (1, 3)), ((0, 3), (0, 2)))
    assert example.text().splitlines() == [
        "exact: (a (b c))", "    ··██  a", "      ▓▓  b", "          c",
        "predicted: ((a b) c)", "    ··██  a", "      ▓▓  b", "          c",
    ]  # fmt: skip
