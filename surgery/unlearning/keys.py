"""Where a bottleneck's keys lie: fixed projections of the features, and points in them found without labels."""

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from surgery.devices import off_cpu
from surgery.errors import OptionError
from surgery.progress import Progress, silent
from surgery.unlearning.key_placement import (
    BATCH,
    DEAD,
    DECAY,
    EPOCHS,
    LLOYD_ROUNDS,
    draw_far,
    place_on_device,
    start_rows,
)
from surgery.unlearning.key_selection import MOST_KEYS, Selector, as_products, nearest_keys

KEY_METHODS = ("kmeans", "ema", "sample")


def check_width(width: int, codebooks: int, d: int, projection: str) -> None:
    """Raise OptionError where rows have too few features for keys of d dimensions."""
    if projection == "random" and d > width:
        raise OptionError(f"`key_dim` {d} is more than the {width} features: lower it")
    if projection == "segments" and codebooks * d > width:
        raise OptionError(
            f"{codebooks} disjoint segments of {d} features need {codebooks * d}, and there are {width}: lower `codebooks` or `key_dim`, or project"
        )


def check_keys(keys: int, rows: int) -> None:
    """Raise OptionError for a number of keys that these rows can't place, or that a uint16 can't name."""
    most = min(MOST_KEYS, rows)
    if not 2 <= keys <= most:
        raise OptionError(
            f"`keys` {keys} must lie between 2 and {most:,}: the {rows:,} rows that place them, and {MOST_KEYS:,} at most"
        )


def random_projections(width: int, codebooks: int, d: int, seed: int) -> Float32[np.ndarray, "C D d"]:
    """Gaussian maps that keep squared lengths on average, one a codebook (Shah et al. 2023, section 4)."""
    check_width(width, codebooks, d, "random")
    drawn = np.random.default_rng([seed, 0]).standard_normal((codebooks, width, d), np.float32)
    return drawn / np.float32(np.sqrt(d))


def segments(width: int, codebooks: int, d: int) -> Float32[np.ndarray, "C D d"]:
    """Codebook c sees features c*d to (c+1)*d-1 and no others, as in the published text experiments."""
    check_width(width, codebooks, d, "segments")
    maps = np.zeros((codebooks, width, d), np.float32)
    for codebook in range(codebooks):
        maps[codebook, codebook * d + np.arange(d), np.arange(d)] = 1
    return maps


def fit_keys(
    features: Float32[np.ndarray, "N D"],
    projections: Float32[np.ndarray, "C D d"],
    keys: int,
    *,
    method: str = "kmeans",
    seed: int = 0,
    device: torch.device | None = None,
    on_device: Float32[Tensor, "N D"] | None = None,
    progress: Progress = silent,
) -> Selector:
    """Place every codebook's keys without labels: on a CPU one codebook at a time, on a GPU many at once.

    The same rows, seed and device give the same bits, on CUDA too. Between devices keys agree but for rounding, until it
    hands a row to another key.

    Args:
        method: `kmeans` (Lloyd's rounds from rows drawn at random), `ema` (moving averages over batches, as published) or
            `sample` (rows drawn at random and left there). Keys that no row is nearest to move to a row that is far
            from its own key.
        on_device: the features on `device`, if they are there already.

    Raises:
        OptionError: more keys than rows to place them by, or than a uint16 can name.
    """
    if method not in KEY_METHODS:
        raise OptionError(f"`key_init` {method} isn't one of {', '.join(KEY_METHODS)}")
    check_keys(keys, len(features))
    codebooks, _, d = projections.shape
    center, states = _coarse_mean(features), np.zeros((codebooks, keys), np.uint8)
    randoms = [np.random.default_rng([seed, 1, codebook]) for codebook in range(codebooks)]
    if off_cpu(device):
        given = features if on_device is None else on_device
        placed = place_on_device(given, center, projections, keys, method, randoms, device, progress)
        return Selector(center, projections, placed, states)
    centered = features - center
    placed = np.empty((codebooks, keys, d), np.float32)
    for codebook, random in enumerate(randoms):
        queries = centered @ projections[codebook]
        start = queries[start_rows(len(queries), keys, random)]
        if method == "kmeans":
            start = _kmeans(queries, start, random)
        elif method == "ema":
            start = _moving_average(queries, start, random)
        placed[codebook] = start
        progress(codebook + 1, codebooks, "placing keys")
    return Selector(center, projections, placed, states)


def _coarse_mean(features: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, " D"]:
    """The mean, rounded to steps of about a standard deviation: enough to keep digits, too little to tell one row by."""
    step = 2.0 ** np.ceil(np.log2(max(float(features.std(dtype=np.float64)), 1e-30)))
    return (np.round(features.mean(0, dtype=np.float64) / step) * step).astype(np.float32)


def _kmeans(queries: NDArray, keys: NDArray, random: np.random.Generator) -> NDArray:
    before = None
    for _ in range(LLOYD_ROUNDS):
        ids = _nearest(queries, keys)
        if before is not None and np.array_equal(ids, before):
            break
        before = ids
        counts, sums = _totals(queries, ids, len(keys))
        used = counts > 0
        keys = keys.copy()
        keys[used] = (sums[used] / counts[used, None]).astype(np.float32)
        if not used.all():
            keys[~used] = _far_rows(queries, keys[ids], int((~used).sum()), random)
    return keys


def _moving_average(queries: NDArray, keys: NDArray, random: np.random.Generator) -> NDArray:
    keys = keys.copy()
    weight, total = np.ones(len(keys)), keys.astype(np.float64)
    for _ in range(EPOCHS):
        order = random.permutation(len(queries))
        for start in range(0, len(order), BATCH):
            batch = queries[order[start : start + BATCH]]
            ids = _nearest(batch, keys)
            counts, sums = _totals(batch, ids, len(keys))
            weight = DECAY * weight + (1 - DECAY) * counts
            total = DECAY * total + (1 - DECAY) * sums
            keys = (total / weight[:, None]).astype(np.float32)
            dead = np.flatnonzero(weight < DEAD * len(batch) / len(keys))
            if len(dead):
                keys[dead] = _far_rows(batch, keys[ids], len(dead), random)
                weight[dead], total[dead] = 1, keys[dead]
    return keys


def _nearest(queries: NDArray, keys: NDArray) -> NDArray:
    return nearest_keys(queries[None], as_products(keys[None]))[0, :, 0]


def _totals(queries: NDArray, ids: NDArray, keys: int) -> tuple[NDArray, NDArray]:
    """Rows a key, and their sums in float64: bincount adds in order, so that the same rows give the same bits."""
    counts = np.bincount(ids, minlength=keys)
    sums = [np.bincount(ids, weights=queries[:, axis], minlength=keys) for axis in range(queries.shape[1])]
    return counts, np.stack(sums, 1)


def _far_rows(queries: NDArray, own: NDArray, count: int, random: np.random.Generator) -> NDArray:
    """Rows drawn in proportion to the squared distance from their key."""
    away = ((queries - own) ** 2).sum(1, dtype=np.float64)
    return queries[draw_far(away, count, random)]
