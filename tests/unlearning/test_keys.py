"""Projections, and keys placed without labels, against Lloyd's rounds written as plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import OptionError
from surgery.unlearning.keys import KEY_METHODS, _kmeans, _moving_average, fit_keys, random_projections, segments


def identity(width, codebooks=1):
    return np.stack([np.eye(width, dtype=np.float32)] * codebooks)


def blobs(rows=60, width=4, groups=3, seed=0):
    random = np.random.default_rng(seed)
    middles = random.integers(-9, 10, (groups, width)) * 3
    return (middles[random.integers(groups, size=rows)] + random.standard_normal((rows, width))).astype(np.float32)


def squared(points, keys):
    """[points, keys] squared distances, in double precision."""
    return ((points[:, None].astype(np.float64) - keys[None].astype(np.float64)) ** 2).sum(2)


def inertia(points, keys):
    return squared(points, keys).min(1).sum()


def test_segments_hand_each_codebook_its_own_features():
    maps = segments(7, 3, 2)
    assert maps.shape == (3, 7, 2) and maps.dtype == np.float32
    row = np.arange(7, dtype=np.float32) * 10
    assert [(row @ one).tolist() for one in maps] == [[0, 10], [20, 30], [40, 50]]
    with pytest.raises(OptionError, match=r"4 disjoint segments of 2 features need 8, and there are 7"):
        segments(7, 4, 2)


def test_random_projections_keep_squared_lengths_on_average_and_follow_the_seed():
    maps = random_projections(50, 40, 10, 3)
    assert maps.shape == (40, 50, 10) and maps.dtype == np.float32
    row = np.random.default_rng(1).standard_normal(50)
    lengths = ((row @ maps.astype(np.float64)) ** 2).sum(1)
    assert abs(lengths.mean() / (row**2).sum() - 1) < 0.2
    assert np.array_equal(maps, random_projections(50, 40, 10, 3))
    assert not np.array_equal(maps, random_projections(50, 40, 10, 4))
    assert np.unique(maps.reshape(40, -1), axis=0).shape[0] == 40
    with pytest.raises(OptionError, match="`key_dim` 6 is more than the 5 features"):
        random_projections(5, 2, 6, 0)


@pytest.mark.parametrize("method", KEY_METHODS)
def test_shapes_and_same_seed_same_bits(method):
    features = blobs()
    maps = random_projections(4, 5, 3, 0)
    one, same, other = (fit_keys(features, maps, 8, method=method, seed=seed) for seed in (1, 1, 2))
    assert one.keys.shape == (5, 8, 3) and one.keys.dtype == np.float32
    assert one.states.shape == (5, 8) and not one.states.any()
    assert one.keys.tobytes() == same.keys.tobytes() and one.center.tobytes() == same.center.tobytes()
    assert not np.array_equal(one.keys, other.keys)
    assert (np.abs(one.center - features.astype(np.float64).mean(0)) <= 2 * features.std()).all()
    assert np.isfinite(one.keys).all()


def test_codebooks_start_from_rows_of_their_own():
    found = fit_keys(blobs(), identity(4, 3), 8, method="sample")
    assert len({keys.tobytes() for keys in found.keys}) == 3


def test_a_sample_is_of_different_rows():
    features = blobs()
    found = fit_keys(features, identity(4), 20, method="sample")
    rows = (features - found.center).tolist()
    numbers = [rows.index(key) for key in found.keys[0].tolist()]
    assert len(set(numbers)) == 20


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 5))
def test_kmeans_is_never_worse_than_the_rows_it_starts_from(seed, keys, groups):
    features = blobs(rows=40, groups=groups, seed=seed)
    start = fit_keys(features, identity(4), keys, method="sample", seed=seed)
    found = fit_keys(features, identity(4), keys, method="kmeans", seed=seed)
    points = features - found.center
    assert inertia(points, found.keys[0]) <= inertia(points, start.keys[0]) * (1 + 1e-5) + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_is_lloyds_rounds(seed, monkeypatch):
    features = blobs(rows=50, groups=5, seed=seed)
    keys = fit_keys(features, identity(4), 6, method="sample", seed=seed).keys[0].astype(np.float64)
    rounds = []
    monkeypatch.setattr(
        "surgery.unlearning.keys._far_rows", lambda *_: pytest.fail("a key died: this data is for living ones")
    )
    found = fit_keys(features, identity(4), 6, seed=seed)
    points = (features - found.center).astype(np.float64)
    for _ in range(12):
        own = [min(range(6), key=lambda k: (sum((p - keys[k]) ** 2), k)) for p in points]
        assert set(own) == set(range(6))
        if rounds and rounds[-1] == own:
            break
        rounds.append(own)
        keys = np.array([np.mean([p for p, k in zip(points, own, strict=True) if k == key], 0) for key in range(6)])
    np.testing.assert_allclose(found.keys[0], keys, atol=1e-4)


@pytest.mark.parametrize("place", [_kmeans, _moving_average])
def test_dead_keys_move_to_rows_far_from_their_keys(place):
    random = np.random.default_rng(0)
    far = np.array([[50.0, 0], [0, 50], [-50, 0]] * 20)
    points = np.concatenate([random.normal(0, 0.1, (200, 2)), far]).astype(np.float32)
    start = np.array([[0.0, 0]] * 6 + [[900, 900]] * 2, np.float32)  # all but the first are dead
    for seed in range(3):
        found = place(points, start, np.random.default_rng(seed))
        own = squared(points, found).argmin(1)
        assert len(np.unique(found, axis=0)) == 8 and len(set(own.tolist())) >= 4
        assert inertia(points, found) < 0.01 * inertia(points, start)
    np.testing.assert_array_equal(start[:6], 0)  # what it was given stays as it was


@pytest.mark.parametrize("method", KEY_METHODS)
def test_more_keys_than_different_rows(method):
    """Keys on top of one another, the later of which no row selects."""
    features = np.repeat(np.array([[0.0, 0], [4, 0], [0, 4]], np.float32), 5, 0)
    found = fit_keys(features, identity(2), 9, method=method, seed=0)
    points = features - found.center
    assert np.isfinite(found.keys).all() and inertia(points, found.keys[0]) < 0.5
    alike = np.full((6, 2), 3.0, np.float32)
    np.testing.assert_allclose(fit_keys(alike, identity(2), 6, method=method).keys, 0)


def test_moving_averages_end_at_the_means():
    features = np.concatenate([blobs(400, 3, 1, seed=1), blobs(400, 3, 1, seed=4)])
    middles = [features[:400].mean(0), features[400:].mean(0)]
    for seed in range(3):
        found = fit_keys(features, identity(3), 2, method="ema", seed=seed)
        assert squared(np.array(middles), found.keys[0] + found.center).min(1).max() < 0.2


def test_keys_lie_in_the_projected_space():
    features = blobs(width=6)
    maps = random_projections(6, 2, 3, 0)
    found = fit_keys(features, maps, 5, method="sample", seed=2)
    for codebook in range(2):
        points = (features - found.center).astype(np.float64) @ maps[codebook].astype(np.float64)
        assert squared(found.keys[codebook], points).min(1).max() < 1e-9


def test_progress_counts_codebooks():
    seen = []
    fit_keys(blobs(), identity(4, 3), 4, progress=lambda *now: seen.append(now[:2]))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("keys", [-1, 0, 1, 61])
def test_sizes_that_cannot_be_are_refused(keys):
    with pytest.raises(OptionError, match=rf"`keys` {keys} must lie between 2 and 60: the 60 rows"):
        fit_keys(blobs(), identity(4), keys)


def test_more_keys_than_an_id_can_name_are_refused():
    with pytest.raises(OptionError, match="`keys` 65537 must lie between 2 and 65,536"):
        fit_keys(np.zeros((70_000, 1), np.float32), identity(1), 65_537)
