"""Keys of many codebooks placed at once, as on a GPU: on a CPU against keys placed one codebook at a time."""

import numpy as np
import pytest
import torch

from surgery.unlearning import device_rows, key_placement
from surgery.unlearning.key_placement import assign, place_on_device
from surgery.unlearning.keys import KEY_METHODS, fit_keys, random_projections

CPU = torch.device("cpu")


def whole(rows=60, width=6, groups=5, seed=0):
    """Rows of small integers around a few middles: every sum of them is exact."""
    random = np.random.default_rng(seed)
    middles = random.integers(-9, 10, (groups, width)) * 4
    return (middles[random.integers(groups, size=rows)] + random.integers(-3, 4, (rows, width))).astype(np.float32)


def picks(codebooks, width, d, seed=0):
    """Projections that pick features: exact too."""
    random = np.random.default_rng(seed)
    maps = np.zeros((codebooks, width, d), np.float32)
    for one in maps:
        one[random.permutation(width)[:d], np.arange(d)] = 1
    return maps


def at_once(features, maps, keys, method="kmeans", seed=0, progress=lambda *_: None):
    """What `fit_keys` gives on a GPU, computed here."""
    center = fit_keys(features, maps, keys, method="sample").center
    randoms = [np.random.default_rng([seed, 1, codebook]) for codebook in range(len(maps))]
    return place_on_device(features, center, maps, keys, method, randoms, CPU, progress)


@pytest.fixture(params=[(1024, 1 << 26), (16, 1), (16, 600), (16, 20_000)], ids=str)
def blocks(request, monkeypatch):
    """Sizes of blocks: everything at once, or hardly anything."""
    rows, scratch = request.param
    for module in (key_placement, device_rows):
        monkeypatch.setattr(module, "ROWS", rows)
        monkeypatch.setattr(module, "SCRATCH", scratch)


@pytest.mark.parametrize("method", KEY_METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_keys_are_those_placed_one_codebook_at_a_time(method, seed, blocks):
    """Where sums are exact bit for bit, moved dead keys (9 keys for 5 groups: there are some) and all."""
    features, maps = whole(seed=seed), picks(7, 6, 3, seed)
    found = at_once(features, maps, 9, method, seed)
    expected = fit_keys(features, maps, 9, method=method, seed=seed).keys
    if method == "ema":
        np.testing.assert_allclose(found, expected, atol=1e-4)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("method", ["kmeans", "ema"])
def test_dead_keys_are_moved(method):
    """More keys than different rows, and rows all alike: the later of equal keys are selected by none."""
    features = np.repeat(np.array([[0.0, 0], [4, 0], [0, 4]], np.float32), 5, 0)
    maps = np.stack([np.eye(2, dtype=np.float32)] * 3)
    found = at_once(features, maps, 9, method)
    center = fit_keys(features, maps, 9, method="sample").center
    away = (((features - center)[None, :, None] - found[:, None]) ** 2).sum(3).min(2)
    assert np.isfinite(found).all() and away.sum() < 1.5
    np.testing.assert_allclose(at_once(np.full((6, 2), 3.0, np.float32), maps, 6, method), 0)


@pytest.mark.parametrize("seed", range(3))
def test_real_numbers_give_keys_as_good(seed):
    random = np.random.default_rng(seed)
    features = (
        random.standard_normal((8, 20))[random.integers(8, size=3000)] * 2 + random.standard_normal((3000, 20))
    ).astype(np.float32)
    maps = random_projections(20, 6, 8, seed)
    one, many = fit_keys(features, maps, 16, seed=seed), at_once(features, maps, 16, "kmeans", seed)
    points = np.stack([(features - one.center) @ map_ for map_ in maps]).astype(np.float64)
    spread = [((points[:, :, None] - keys[:, None]) ** 2).sum(3).min(2).mean(1) for keys in (one.keys, many)]
    np.testing.assert_allclose(spread[1], spread[0], rtol=0.02)
    assert np.median(np.abs(many - one.keys)) < 1e-3


def test_assigning_against_plain_loops(blocks):
    random = np.random.default_rng(0)
    queries, keys = (
        torch.from_numpy(random.integers(-4, 5, (3, 48, 4)).astype(np.float32)),
        torch.from_numpy(random.integers(-4, 5, (3, 5, 2)).astype(np.float32)),
    )
    queries[:, :, 2:] = torch.tensor([1.0, 0.0])
    ids, totals = assign(queries, keys)
    sums = np.zeros((3, 5, 4))
    for c in range(3):
        for n, query in enumerate(queries[c].tolist()):
            own = min(
                range(5), key=lambda k: (sum((p - q) ** 2 for p, q in zip(query, keys[c, k].tolist(), strict=False)), k)
            )
            assert own == ids[c, n]
            sums[c, own] += query
    np.testing.assert_array_equal(totals, sums)


def test_progress_ends_with_the_last_codebook():
    seen = []
    at_once(whole(), picks(7, 6, 3), 4, progress=lambda *now: seen.append(now[:2]))
    assert seen[-1] == (7, 7)
