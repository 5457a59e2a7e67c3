"""Values learnt by SGD, against torch's autograd; values by counting, against plain loops and fractions."""

from fractions import Fraction
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import OptionError
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT
from surgery.unlearning.values import Sgd, Table, count, from_counts, learn_values


@st.composite
def tables(draw, states=(OPEN,)):
    """`ids, targets, states, classes` of a few rows."""
    rows, codebooks, keys, classes = (
        draw(st.integers(least, most)) for least, most in ((1, 12), (1, 4), (2, 5), (2, 4))
    )
    top = draw(st.integers(1, keys))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.array([[random.permutation(keys)[:top] for _ in range(codebooks)] for _ in range(rows)], np.uint16)
    kinds = random.choice(np.array(states, np.uint8), (codebooks, keys))
    return ids, random.integers(classes, size=rows), kinds, classes


def pairs_that_answer(row, states):
    return [(c, int(k)) for c, chosen in enumerate(row) for k in chosen if states[c, k] == OPEN]


def by_autograd(ids, targets, states, classes, recipe, order):
    """Plain SGD on the summed cross-entropy with smoothed targets; the average's 1/n left out of the gradient."""
    values = torch.zeros(*states.shape, classes, dtype=torch.float64)
    for batch in order:
        step = torch.zeros_like(values)
        for row in batch:
            chosen = pairs_that_answer(ids[row], states)
            if not chosen:
                continue
            leaf = values.clone().requires_grad_()
            logits = torch.stack([leaf[pair] for pair in chosen]).mean(0) * len(chosen)
            shift = logits.detach() * (1 - 1 / len(chosen))  # the loss is taken at the average, its gradient at the sum
            loss = torch.nn.functional.cross_entropy(
                (logits - shift)[None], torch.tensor([targets[row]]), label_smoothing=recipe.smoothing
            )
            step += torch.autograd.grad(loss, leaf)[0]
        values = values - recipe.rate * step
    return values.numpy()


def order_of(rows, recipe, seed):
    random = np.random.default_rng([seed, 2])
    for _ in range(recipe.epochs):
        mixed = random.permutation(rows).tolist()
        for start in range(0, rows, recipe.batch):
            yield mixed[start : start + recipe.batch]


@given(tables((OPEN, OPEN, CLOSED, SILENT)), st.integers(1, 5), st.sampled_from([0.0, 0.1, 0.4]))
def test_learning_is_the_published_update(made, batch, smoothing):
    ids, targets, states, classes = made
    recipe = Sgd(rate=0.3, epochs=2, batch=batch, smoothing=smoothing)
    found = learn_values(ids, targets, states, classes, recipe, seed=7)
    expected = by_autograd(ids, targets, states, classes, recipe, order_of(len(ids), recipe, 7))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    touched = {pair for row in ids for pair in pairs_that_answer(row, states)}
    for c, k in np.ndindex(states.shape):
        assert (c, k) in touched or not found[c, k].any()


def test_one_step_by_hand():
    ids = np.array([[[0], [2]]], np.uint16)
    found = learn_values(ids, np.array([1]), np.zeros((2, 3), np.uint8), 4, Sgd(rate=0.5, epochs=1, smoothing=0.2))
    step = 0.5 * (np.array([0.05, 0.85, 0.05, 0.05]) - 0.25)
    expected = np.zeros((2, 3, 4))
    expected[0, 0] = expected[1, 2] = step
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_same_seed_same_bits_and_another_order_other_bits():
    random = np.random.default_rng(0)
    ids, targets = random.integers(4, size=(40, 3, 1)).astype(np.uint16), random.integers(3, size=40)
    made = [
        learn_values(ids, targets, np.zeros((3, 4), np.uint8), 3, Sgd(batch=8), seed).tobytes() for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"epochs": 0},
        {"batch": 0},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
    ],
)
def test_recipes_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match="rate must be positive"):
        Sgd(**wrong)


# -- answers ---------------------------------------------------------------------------------------------------------


@given(tables((OPEN, CLOSED, SILENT)))
def test_the_answer_is_the_mean_over_what_answers(made):
    ids, _, states, classes = made
    values = np.random.default_rng(0).standard_normal((*states.shape, classes)).astype(np.float32)
    logits, abstained = Table(values, states).answer(ids)
    for row, found, silent in zip(ids, logits, abstained, strict=True):
        chosen = [values[pair].astype(np.float64) for pair in pairs_that_answer(row, states)]
        assert silent == (not chosen)
        np.testing.assert_allclose(found, np.mean(chosen, 0) if chosen else np.zeros(classes), atol=1e-6)


def test_many_rows_are_answered_in_parts_and_closing_can_be_taken_back():
    random = np.random.default_rng(0)
    values = random.standard_normal((2, 3, 4)).astype(np.float32)
    ids = random.integers(3, size=(2500, 2, 1)).astype(np.uint16)
    table = Table(values, np.zeros((2, 3), np.uint8))
    expected = (values[0, ids[:, 0, 0]].astype(np.float64) + values[1, ids[:, 1, 0]]) / 2
    first = table.answer(ids)[0]
    np.testing.assert_allclose(first, expected, atol=1e-6)
    table.close(np.full((2, 3), SILENT, np.uint8))
    assert table.answer(ids)[1].all() and not table.answer(ids)[0].any()
    table.close(np.zeros((2, 3), np.uint8))
    np.testing.assert_array_equal(table.answer(ids)[0], first)
    np.testing.assert_array_equal(table.values, values)


# -- counts ----------------------------------------------------------------------------------------------------------


def counted(ids, targets, keys, classes):
    found = np.zeros((ids.shape[1], keys, classes), int)
    for row, target in zip(ids.tolist(), targets.tolist(), strict=True):
        for codebook, chosen in enumerate(row):
            for key in chosen:
                found[codebook, key, target] += 1
    return found


def formula(counts):
    """The closed form in exact fractions up to the logarithm."""
    totals = [sum(int(counts[0, k, y]) for k in range(counts.shape[1])) for y in range(counts.shape[2])]
    found = np.zeros(counts.shape)
    if not sum(totals):
        return found
    shares = [Fraction(total, sum(totals)) for total in totals]
    there = [y for y, share in enumerate(shares) if share]
    for c, k in np.ndindex(counts.shape[:2]):
        rows = sum(map(int, counts[c, k]))
        for y in there:
            found[c, k, y] = log((int(counts[c, k, y]) + shares[y]) / (rows + 1) / shares[y])
    absent = [y for y in range(counts.shape[2]) if y not in there]
    found[:, :, absent] = found[:, :, there].min() - 1
    return found


@given(tables())
def test_counts_and_their_values(made):
    ids, targets, states, classes = made
    found = count(ids, targets, states.shape[1], classes)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, counted(ids, targets, states.shape[1], classes))
    np.testing.assert_allclose(from_counts(found), formula(found), atol=1e-6)


@given(tables(), st.data())
def test_taking_rows_out_of_counts_is_counting_without_them(made, data):
    ids, targets, states, classes = made
    keys = states.shape[1]
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    every, out, rest = (count(ids[rows], targets[rows], keys, classes) for rows in (slice(None), gone, ~gone))
    np.testing.assert_array_equal(every - out, rest)
    assert from_counts(every - out).tobytes() == from_counts(rest).tobytes()


def test_a_pair_that_no_row_selects_says_nothing_and_a_class_without_rows_always_loses():
    ids, targets = np.array([[[0]], [[0]], [[1]]], np.uint16), np.array([0, 0, 2])
    values = from_counts(count(ids, targets, 3, 4))
    np.testing.assert_allclose(values[0, 2, [0, 2]], 0, atol=1e-7)
    assert (values[..., [1, 3]] < values[..., [0, 2]].min()).all()
    assert not from_counts(np.zeros((2, 3, 4), np.int32)).any()


def test_an_equal_share_says_nothing_and_more_of_a_class_says_more():
    counts = np.array([[[2, 2], [3, 1], [0, 2]]], np.int32)
    values = from_counts(counts)
    np.testing.assert_allclose(values[0, 0], 0, atol=1e-7)
    assert values[0, 1, 0] > 0 > values[0, 1, 1] and values[0, 2, 1] > 0 > values[0, 2, 0]
