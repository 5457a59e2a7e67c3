"""Which key answers for which row, against distances computed one by one in double precision."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.unlearning import device_rows, key_selection
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT, Selector, as_products

CPU = torch.device("cpu")


@st.composite
def selectors(draw, states=(OPEN,)):
    """A selector and rows of small integers, so that every distance is exact and many are equal."""
    rows, width, codebooks, keys, d = (draw(st.integers(1, most)) for most in (9, 4, 3, 7, 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))

    def whole(*shape):
        return random.integers(-2, 3, shape).astype(np.float32)

    kinds = random.choice(np.array(states, np.uint8), (codebooks, keys))
    return Selector(whole(width), whole(codebooks, width, d), whole(codebooks, keys, d), kinds), whole(rows, width)


def ranked(selector, features):
    """`ranked[row][codebook]`: ids that aren't closed, by distance, then by id."""
    center, maps, keys = (array.astype(np.float64) for array in (selector.center, selector.projections, selector.keys))
    found = []
    for row in features.astype(np.float64):
        of_row = []
        for codebook in range(len(keys)):
            place = [
                sum((row[i] - center[i]) * maps[codebook, i, j] for i in range(len(row))) for j in range(keys.shape[2])
            ]
            away = [
                (sum((p - q) ** 2 for p, q in zip(place, key, strict=True)), number)
                for number, key in enumerate(keys[codebook].tolist())
                if selector.states[codebook, number] != CLOSED
            ]
            of_row.append([number for _, number in sorted(away)])
        found.append(of_row)
    return found


def check(selector, found, expected):
    """Ids as far as there are keys to name, and closed keys after them; never one twice."""
    for row, of_row in zip(found.tolist(), expected, strict=True):
        for codebook, (ids, wanted) in enumerate(zip(row, of_row, strict=True)):
            assert ids[: len(wanted)] == wanted[: len(ids)]
            assert all(selector.states[codebook, number] == CLOSED for number in ids[len(wanted) :])
            assert len(set(ids)) == len(ids)


@given(selectors(), st.data())
def test_the_nearest_keys_answer_and_of_equally_near_ones_the_first(made, data):
    selector, features = made
    top = data.draw(st.integers(1, selector.keys.shape[1]))
    found = selector.select(features, top=top)
    assert found.dtype == np.uint16 and found.shape == (len(features), len(selector.keys), top)
    check(selector, found, ranked(selector, features))


@given(selectors((OPEN, CLOSED, SILENT)), st.data(), st.sampled_from([1, 5, 16, 1000]))
def test_closed_keys_never_answer_whatever_the_size_of_the_blocks(made, data, scratch):
    selector, features = made
    top = data.draw(st.integers(1, selector.keys.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_selection, "_SCRATCH", scratch)
        patch.setattr(key_selection, "_FEW", 2)
        found = selector.select(features, top=top)
    check(selector, found, ranked(selector, features))


@given(selectors((OPEN, CLOSED, SILENT)), st.data())
def test_selecting_again_where_keys_were_closed_is_selecting(made, data):
    selector, features = made
    top = data.draw(st.integers(1, selector.keys.shape[1]))
    before = replace(
        selector,
        states=np.where(selector.states == CLOSED, data.draw(st.sampled_from([OPEN, SILENT])), selector.states).astype(
            np.uint8
        ),
    )
    ids = before.select(features, top=top)
    kept = ids.copy()
    again = selector.reselect(features, ids)
    check(selector, again, ranked(selector, features))
    np.testing.assert_array_equal(ids, kept)


@given(selectors((OPEN, CLOSED)), st.data(), st.sampled_from([1, 30, 1 << 20]), st.sampled_from([1, 4, 1024]))
def test_a_gpu_selects_the_same(made, data, scratch, block):
    """Its way, taken on a CPU, whatever the sizes of its blocks; the rows as an array or as a tensor."""
    selector, features = made
    top = data.draw(st.integers(1, selector.keys.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_rows, "SCRATCH", scratch)
        patch.setattr(device_rows, "ROWS", block)
        patch.setattr(key_selection, "off_cpu", lambda device: device is not None)
        given = data.draw(st.sampled_from([features, torch.from_numpy(features)]))
        found = selector.select(given, top=top, device=CPU)
    check(selector, found, ranked(selector, features))
    if not (selector.states == CLOSED).any():
        np.testing.assert_array_equal(found, selector.select(features, top=top))


@given(selectors((OPEN, CLOSED, SILENT)), st.data(), st.booleans())
def test_selecting_the_same_rows_again_under_other_states(made, data, gpu):
    selector, features = made
    top = data.draw(st.integers(1, selector.keys.shape[1]))
    random = np.random.default_rng(0)
    still = selector.with_states(np.zeros_like(selector.states))
    ids = still.select(features, top=top)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_selection, "off_cpu", lambda device: gpu and device is not None)
        ask = still.reselector(features, ids, CPU)
        for _ in range(3):
            states = random.permutation(selector.states.reshape(-1)).reshape(selector.states.shape)
            now = replace(selector, states=states)
            found = np.asarray(ask(states))
            check(now, found, ranked(now, features))
            np.testing.assert_array_equal(found, now.reselect(features, ids, device=CPU))
            np.testing.assert_array_equal(found, now.reselect(features, ids))


def test_keys_are_sent_once_however_often_their_states_change(monkeypatch):
    seen = []
    real = key_selection.DeviceSelector
    monkeypatch.setattr(key_selection, "DeviceSelector", lambda *given: seen.append(1) or real(*given))
    monkeypatch.setattr(key_selection, "off_cpu", lambda device: device is not None)
    keys = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    selector = Selector(
        np.zeros(3, np.float32), np.stack([np.eye(3, dtype=np.float32)] * 2), keys, np.zeros((2, 5), np.uint8)
    )
    features = np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32)
    ids = selector.select(features, device=CPU)
    for number in range(5):
        states = selector.states.copy()
        states[:, number] = CLOSED
        closed = selector.with_states(states)
        assert not (closed.reselect(features, ids, device=CPU) == number).any()
    assert len(seen) == 1


def test_the_next_nearest_answers_for_a_closed_key_and_none_does_where_all_are_closed():
    keys = np.array([[[0.0], [1.0], [5.0]], [[0.0], [1.0], [5.0]]], np.float32)
    states = np.array([[OPEN, CLOSED, OPEN], [CLOSED, CLOSED, CLOSED]], np.uint8)
    selector = Selector(np.zeros(1, np.float32), np.ones((2, 1, 1), np.float32), keys, states)
    found = selector.select(np.array([[0.9], [3.2], [0.4]], np.float32))[:, :, 0]
    assert found[:, 0].tolist() == [0, 2, 0]
    assert (states[1, found[:, 1]] == CLOSED).all()
    silent = replace(selector, states=np.array([[OPEN, SILENT, OPEN]] * 2, np.uint8))
    assert silent.select(np.array([[0.9]], np.float32)).ravel().tolist() == [1, 1]


def test_with_real_numbers_far_from_zero_the_key_is_as_near_as_the_nearest():
    random = np.random.default_rng(0)
    features = (1000 + random.standard_normal((300, 20))).astype(np.float32)
    maps = random.standard_normal((5, 20, 6)).astype(np.float32)
    center = features.mean(0)
    keys = np.stack([(features[random.permutation(300)[:40]] - center) @ map_ for map_ in maps])
    selector = Selector(center, maps, keys, np.zeros((5, 40), np.uint8))
    places = np.einsum("nd,cde->cne", (features - center).astype(np.float64), maps.astype(np.float64))
    away = ((places[:, :, None] - keys[:, None].astype(np.float64)) ** 2).sum(3)
    found = selector.select(features)[:, :, 0].T.astype(int)
    chosen = np.take_along_axis(away, found[:, :, None], 2)[:, :, 0]
    np.testing.assert_allclose(chosen, away.min(2), atol=1e-4)
    assert (found == away.argmin(2)).mean() > 0.995


def test_no_rows_select_nothing():
    selector = Selector(
        np.zeros(2, np.float32),
        np.ones((3, 2, 1), np.float32),
        np.ones((3, 4, 1), np.float32),
        np.zeros((3, 4), np.uint8),
    )
    assert selector.select(np.empty((0, 2), np.float32), top=2).shape == (0, 3, 2)


def test_the_last_dimension_of_the_product_is_half_the_squared_length():
    keys = np.array([[[3.0, 4.0], [-1.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(as_products(keys), [[[-3, 1], [-4, -2], [12.5, 2.5]]])


@pytest.mark.parametrize(
    ("rows", "codebooks", "keys", "top"),
    [(20_000, 4, 64, 1), (20_000, 4, 64, 3), (3_000, 256, 32, 1), (2_000, 8, 512, 1)],
)
def test_memory_stays_flat(rows, codebooks, keys, top):
    d, width = 8, 8
    random = np.random.default_rng(0)
    selector = Selector(
        np.zeros(width, np.float32),
        random.standard_normal((codebooks, width, d)).astype(np.float32),
        random.standard_normal((codebooks, keys, d)).astype(np.float32),
        np.zeros((codebooks, keys), np.uint8),
    )
    features = random.standard_normal((rows, width)).astype(np.float32)
    selector.select(features[:2], top=top)  # what it keeps of the keys
    tracemalloc.start()
    try:
        result = selector.select(features, top=top)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < (12 if top == 1 else 40) * 2**20
