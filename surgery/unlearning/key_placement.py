"""Keys of many codebooks placed at once on a GPU: nearest keys and sums of rows by batched matrix products."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from surgery.devices import full_float32, memory_for
from surgery.progress import Progress
from surgery.unlearning.device_rows import ROWS, SCRATCH, right_hand, width_of

LLOYD_ROUNDS = 12  # what further ones move is below what another seed moves
EPOCHS, DECAY, BATCH, DEAD = 10, 0.95, 256, 0.05  # of moving averages


def start_rows(rows: int, keys: int, random: np.random.Generator) -> Int64[np.ndarray, " K"]:
    """Rows drawn at random, each at most once, that the keys start from."""
    return random.permutation(rows)[:keys]


def draw_far(away: Float64[np.ndarray, " N"], count: int, random: np.random.Generator) -> Int64[np.ndarray, " count"]:
    """Numbers of rows, drawn in proportion to the squared distance from their key."""
    chance = away / away.sum() if away.sum() > 0 else None
    replace = count > int((away > 0).sum()) or count > len(away)
    return random.choice(len(away), count, replace=replace, p=None if replace else chance)


def place_on_device(
    features: Float32[np.ndarray, "N D"] | Float32[Tensor, "N D"],
    center: Float32[np.ndarray, " D"],
    projections: Float32[np.ndarray, "C D d"],
    keys: int,
    method: str,
    randoms: Sequence[np.random.Generator],
    device: torch.device,
    progress: Progress,
) -> Float32[np.ndarray, "C K d"]:
    """Keys of every codebook, as many codebooks at a time as fit; the features may be on the device already.

    The same features, keys and generators give the same bits each time.
    """
    rows, (codebooks, width, d) = len(features), projections.shape
    padded = -(-rows // ROWS) * ROWS
    # Floats a codebook needs: of all rows at once, or of its queries and a batch.
    each = padded * keys if method == "kmeans" else max(padded * width_of(d) // 2, BATCH * keys)
    group = max(1, min(codebooks, SCRATCH // each))
    needed = 4 * (2 * padded * width + 2 * SCRATCH + group * padded * (4 * width_of(d) + 8))
    what = f"placing {keys} keys a codebook by {rows:,} rows"
    with memory_for(device, needed, what, "place them by fewer rows, or give `device` cpu"), full_float32():
        centered = torch.zeros(padded, width, device=device)
        centered[:rows] = torch.as_tensor(features).to(device) - torch.from_numpy(center).to(device)
        maps = torch.from_numpy(projections).to(device)
        placed = []
        for first in range(0, codebooks, group):
            some = randoms[first : first + group]
            queries = project(centered, maps[first : first + group], rows)
            start = torch.from_numpy(np.stack([start_rows(rows, keys, random) for random in some])).to(device)
            keys_now = queries[torch.arange(len(some), device=device)[:, None], start, :d]
            if method == "kmeans":
                keys_now = lloyd(queries, keys_now, rows, some)
            elif method == "ema":
                keys_now = moving_averages(queries, keys_now, rows, some)
            placed.append(keys_now.cpu().numpy())
            progress(min(first + group, codebooks), codebooks, "placing keys")
        return np.concatenate(placed)


def project(centered: Float32[Tensor, "P D"], maps: Float32[Tensor, "G D d"], rows: int) -> Float32[Tensor, "G P e"]:
    """Queries of the first rows, followed by a 1; all of the others are zeros, so that they count nowhere."""
    codebooks, width, d = maps.shape
    places = centered @ maps.transpose(0, 1).reshape(width, codebooks * d)
    queries = centered.new_zeros(codebooks, len(centered), width_of(d))
    queries[:, :, :d] = places.reshape(-1, codebooks, d).transpose(0, 1)
    queries[:, :rows, d] = 1
    return queries


def lloyd(
    queries: Float32[Tensor, "G P e"],
    keys: Float32[Tensor, "G K d"],
    rows: int,
    randoms: Sequence[np.random.Generator],
) -> Float32[Tensor, "G K d"]:
    """Keys after Lloyd's rounds: each the mean of its rows; a codebook whose rows keep their keys is finished."""
    before = None
    for _ in range(LLOYD_ROUNDS):
        ids, totals = assign(queries, keys)
        moved = torch.ones_like(ids[:, 0], dtype=torch.bool) if before is None else (ids != before).any(1)
        before = ids
        counts, sums = totals[:, :, keys.shape[2]], totals[:, :, : keys.shape[2]]
        means = (sums / counts.clamp(min=1)[:, :, None]).to(torch.float32)
        keys = torch.where(((counts > 0) & moved[:, None])[:, :, None], means, keys)
        # What the processor must know, in one message: which keys to move, and whether to go on.
        told = torch.cat([(counts == 0) & moved[:, None], moved[:, None]], 1).cpu().numpy()
        dead, going = told[:, :-1], told[:, -1]
        if dead.any():
            revive(keys, dead, queries[:, :rows], ids[:, :rows], randoms)
        if not going.any():
            break
    return keys


def moving_averages(
    queries: Float32[Tensor, "G P e"],
    keys: Float32[Tensor, "G K d"],
    rows: int,
    randoms: Sequence[np.random.Generator],
) -> Float32[Tensor, "G K d"]:
    """Keys after epochs of moving averages over batches (Träuble et al. 2023, as published)."""
    codebooks, number, d = keys.shape
    books = torch.arange(codebooks, device=keys.device)[:, None]
    weight, total = keys.new_ones(codebooks, number, dtype=torch.float64), keys.to(torch.float64)
    for _ in range(EPOCHS):
        order = torch.from_numpy(np.stack([random.permutation(rows) for random in randoms])).to(keys.device)
        for start in range(0, rows, BATCH):
            batch = queries[books, order[:, start : start + BATCH]]
            ids, totals = assign(batch, keys)
            weight = DECAY * weight + (1 - DECAY) * totals[:, :, d]
            total = DECAY * total + (1 - DECAY) * totals[:, :, :d]
            keys = (total / weight[:, :, None]).to(torch.float32)
            gone = weight < DEAD * batch.shape[1] / number
            dead = gone.cpu().numpy()
            if dead.any():
                revive(keys, dead, batch, ids, randoms)
                weight = weight.masked_fill(gone, 1)
                total = torch.where(gone[:, :, None], keys.to(torch.float64), total)
    return keys


def assign(
    queries: Float32[Tensor, "G P e"], keys: Float32[Tensor, "G K d"]
) -> tuple[Int64[Tensor, "G P"], Float64[Tensor, "G K e"]]:
    """Ids of the nearest keys, and sums of each key's queries; the sum of their ones is their number.

    A sum is a product with ones where a row has that key and zeros elsewhere: unlike a sum by atomic additions its order is
    always the same. In parts of ROWS rows, which are then added in float64.
    """
    codebooks, number, width = queries.shape
    products, count = right_hand(keys), keys.shape[1]
    totals = queries.new_zeros(codebooks, count, width, dtype=torch.float64)
    step = max(1, SCRATCH // (codebooks * count * ROWS)) * ROWS
    ids = []
    for start in range(0, number, step):
        part = queries[:, start : start + step]
        scores = torch.bmm(part, products)
        ids.append(scores.argmin(2))
        hot = scores.zero_().scatter_(2, ids[-1][:, :, None], 1.0)
        size = ROWS if part.shape[1] % ROWS == 0 else part.shape[1]
        hot, part = (wide.reshape(-1, size, wide.shape[2]) for wide in (hot, part))
        sums = torch.bmm(hot.transpose(1, 2), part).reshape(codebooks, -1, count, width)
        totals += sums.sum(1, dtype=torch.float64)
    return torch.cat(ids, 1), totals


def revive(
    keys: Float32[Tensor, "G K d"],
    dead: Bool[np.ndarray, "G K"],
    queries: Float32[Tensor, "G N e"],
    ids: Int64[Tensor, "G N"],
    randoms: Sequence[np.random.Generator],
) -> None:
    """Move dead keys, in place, to rows that are far from their own key."""
    books = np.flatnonzero(dead.any(1))
    there = torch.from_numpy(books).to(keys.device)
    own = keys[there[:, None], ids[there]]
    points = queries[there][:, :, : keys.shape[2]]
    away: NDArray = ((points - own) ** 2).sum(2, dtype=torch.float64).cpu().numpy()
    picks = [draw_far(far, int(dead[book].sum()), randoms[int(book)]) for book, far in zip(books, away, strict=True)]
    book_of, key = np.nonzero(dead)
    place = [torch.from_numpy(array).to(keys.device) for array in (book_of, key, np.concatenate(picks))]
    keys[place[0], place[1]] = queries[place[0], place[2], : keys.shape[2]]
