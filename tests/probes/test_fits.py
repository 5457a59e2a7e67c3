"""Probes find what is planted, find nothing in noise, and give the same for the same seed."""

import numpy as np
import pytest

from pcfg import sample
from probes.causal import Whitening, probed_directions
from probes.dataset import Dataset
from probes.decoding import Reference, tree_distances
from probes.depths import depth_classes, depth_trees, fit_depths, gap_rows
from probes.distances import DistanceProbe, distance_correlations, distance_trees
from probes.example import example_grammar
from probes.intervals import entropy_bits, r_squared, squares
from probes.linear import MOST_ROWS, PairRegression
from probes.masked_words import MaskedWords, divergence
from probes.spans import KINDS, TwoLayer, description_length, fit_spans, predict_spans
from probes.word_posteriors import fit_words


@pytest.fixture(scope="module")
def dataset():
    return Dataset.of_grammar(example_grammar(), sample(example_grammar(), 240, seed=0, max_length=9), seed=0)


def planted(dataset):
    """States whose first numbers decide the targets: sigmoid(a of the first word - b of the last)."""
    states = np.random.default_rng(0).normal(size=(int(dataset.bounds[-1]), 6)).astype(np.float32)
    left, right = dataset.ends(np.arange(len(dataset.sentences)))
    targets = 1 / (1 + np.exp(-(2 * states[left, 0] - 2 * states[right, 1])))
    return states, targets[:, None].astype(np.float32)


def score(kind, states, targets, dataset, seed=0):
    fitted = fit_spans(kind, states, dataset, dataset.train, targets, seed)
    predicted = predict_spans(fitted, states, dataset, dataset.test)
    wanted = targets[dataset.span_rows(dataset.test)]
    sums = squares(predicted[:, 0], wanted[:, 0], dataset.owners(dataset.test), len(dataset.test)).sum(0)
    return predicted, float(r_squared(sums))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_found_and_noise_is_not(kind, dataset):
    states, targets = planted(dataset)
    noise = np.random.default_rng(1).normal(size=states.shape).astype(np.float32)
    assert score(kind, states, targets, dataset)[1] > 0.9
    assert score(kind, noise, targets, dataset)[1] < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind, dataset, monkeypatch):
    monkeypatch.setattr("probes.linear.MOST_ROWS", 200)
    states, targets = planted(dataset)
    first, second, other = (score(kind, states, targets, dataset, seed)[0] for seed in (0, 0, 1))
    assert (first == second).all()
    assert (first != other).any()


def test_two_layers_find_what_one_cant(dataset):
    states = np.sign(planted(dataset)[0])
    left, right = dataset.ends(np.arange(len(dataset.sentences)))
    targets = (states[left, :1] * states[right, :1] > 0).astype(np.float32)
    assert score("linear", states, targets, dataset)[1] < 0.05
    assert score("two-layer", states, targets, dataset)[1] > 0.8


def test_pair_regression_is_ridge_by_the_normal_equations():
    random = np.random.default_rng(0)
    states, left, right = random.normal(size=(80, 3)).astype(np.float32), np.arange(0, 60), np.arange(20, 80)
    targets = random.normal(size=(60, 2)).astype(np.float32)
    probe = PairRegression.fit(states, left, right, targets, seed=0, penalty=2.0)
    assert len(left) < MOST_ROWS
    x = np.concatenate([probe.scale(states[left]), probe.scale(states[right])], 1).astype(np.float64)
    center, y = x - x.mean(0), targets - targets.mean(0)
    weights = np.linalg.solve(center.T @ center + 2 * np.eye(6), center.T @ y)
    assert np.concatenate([probe.left, probe.right]) == pytest.approx(weights, abs=1e-4)
    wanted = center @ weights + targets.mean(0)
    assert probe(states, left, right) == pytest.approx(wanted, abs=1e-4)


def test_description_length_is_short_for_what_is_planted(dataset):
    states, targets = planted(dataset)
    noise = np.random.default_rng(1).normal(size=states.shape).astype(np.float32)
    floor = entropy_bits(targets[dataset.span_rows(dataset.train), 0].astype(np.float64))
    short, long = (description_length(some, dataset, targets, 0) for some in (states, noise))
    assert floor < short < long


def test_description_length_codes_each_portion_by_those_before(dataset, monkeypatch):
    """With a coin for a probe, a span costs a bit; each probe has seen what was coded before it, and nothing else."""
    seen, coded = [], []

    class Coin:
        def predict(self, features, dataset, numbers):
            coded.append(set(numbers.tolist()))
            return np.full((len(dataset.span_rows(numbers)), 1), 0.5, np.float32)

    def fit(features, dataset, numbers, targets, *, seed):
        assert seed == 7
        seen.append(set(numbers.tolist()))
        return Coin()

    monkeypatch.setattr(TwoLayer, "fit", fit)
    states, targets = planted(dataset)
    assert description_length(states, dataset, targets, 7) == pytest.approx(1.0)
    assert len(seen) == 4
    for before, now, after in zip(seen, coded, [*seen[1:], set(dataset.train.tolist())], strict=True):
        assert not before & now
        assert before | now == after
    assert [round(len(now) / len(before), 1) for before, now in zip(seen, coded, strict=True)] == pytest.approx(
        [1] * 4, abs=0.2
    )
    assert seen[-1] != set(dataset.train[: len(seen[-1])].tolist())  # drawn, not the first


def test_entropy_of_a_coin_is_a_bit():
    assert entropy_bits(np.array([0.5, 0.5])) == pytest.approx(1.0)
    assert entropy_bits(np.array([0.0, 1.0])) == pytest.approx(0.0, abs=1e-9)


def test_distances_are_found_in_states_that_spell_the_tree(dataset):
    """A word's state says which nodes are above it: squared distances are then the tree's, less a constant."""
    width = 40
    states = np.zeros((int(dataset.bounds[-1]), width), np.float32)
    for i, tree in enumerate(dataset.trees):
        for number, (_, start, end) in enumerate(tree.spans()[:width]):
            states[dataset.bounds[i] + start : dataset.bounds[i] + end, number] = 1.0
    random = np.random.default_rng(1)
    noise = random.normal(size=states.shape).astype(np.float32)
    # As after some layers: in mixed directions, beside as much of something else.
    mixed = (np.concatenate([states, noise], 1) @ random.normal(size=(2 * width, 2 * width))).astype(np.float32)
    means = []
    for some in (states, noise, mixed):
        probe = DistanceProbe.fit(some, dataset, dataset.train, seed=0)
        found = probe.predict(some, dataset, dataset.test)
        assert all(np.allclose(table, table.T) and (np.diagonal(table) == 0).all() for table in found)
        means.append(distance_correlations(dataset, dataset.test, found).mean())
    assert means[0] > 0.9 > 0.3 > means[1]
    assert means[2] > 0.8


def test_trees_of_true_distances_are_nearly_the_true_ones(dataset):
    """The word before the widest gap ends the first part; true distances lose little on the way."""
    table = np.array([[0, 2, 5, 5], [2, 0, 4, 4], [5, 4, 0, 2], [5, 4, 2, 0]], float)
    assert {tuple(span) for span in distance_trees([table])[0].tolist()} == {(0, 4), (0, 2), (2, 4)}
    trees = [dataset.trees[i] for i in dataset.test]
    found = distance_trees([tree_distances(tree) for tree in trees])
    f1s = [Reference.of(tree, punctuation=True).f1(spans) for tree, spans in zip(trees, found, strict=True)]
    assert np.mean(f1s) > 0.93


def test_depths_are_found_in_states_that_say_them(dataset):
    everything = np.arange(len(dataset.sentences))
    states = np.zeros((int(dataset.bounds[-1]), 11), np.float32)
    states[gap_rows(dataset, everything), depth_classes(dataset, everything) + 5] = 1.0
    probe = fit_depths(states, dataset, dataset.train, depth_classes(dataset, dataset.train), 0)
    classes, trees = depth_trees(probe, states, dataset, dataset.test)
    assert (classes == depth_classes(dataset, dataset.test)).mean() > 0.95
    assert len(trees) == len(dataset.test)


def test_posteriors_of_masked_words_are_read_off_states_that_hold_them(dataset):
    words = MaskedWords.draw(dataset, seed=0)
    rows = np.arange(len(words.sentence))
    exact = words.posterior(rows)
    assert exact.sum(1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    train, test = words.rows(dataset.train), words.rows(dataset.test)
    assert sorted([*train, *test]) == rows.tolist()
    noise = np.random.default_rng(0).normal(size=exact.shape).astype(np.float32)
    held = fit_words(exact, words, train, test, 0)
    assert (held >= -1e-6).all()
    assert held.mean() < 0.5 * fit_words(noise, words, train, test, 0).mean()


def test_divergence_is_the_sum():
    p, q = np.array([[0.25, 0.75, 0.0]]), np.array([[0.5, 0.25, 0.25]])
    wanted = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.25)
    assert divergence(p, np.log(q)) == pytest.approx([wanted])
    assert divergence(p, np.log(np.maximum(p, 1e-300))) == pytest.approx([0.0])


def test_probed_directions_hold_what_the_probe_reads(dataset):
    states, targets = planted(dataset)
    left, right = dataset.ends(dataset.train)
    probe = PairRegression.fit(states, left, right, targets[dataset.span_rows(dataset.train)], seed=0)
    space = Whitening.of(states)
    basis = probed_directions(probe, space)
    assert basis.shape == (6, 1)
    assert basis.T @ basis == pytest.approx(np.eye(1))
    reads = np.abs(basis[:, 0])
    assert reads[:2].max() > 5 * reads[2:].max()
