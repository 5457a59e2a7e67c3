"""Selecting keys against one cdist call and against the bare matrix product; editing against refitting.

python -m tests.benchmarks.selection
"""

import tracemalloc

import numpy as np
import torch

from surgery.unlearning import Bottleneck, unlearn
from surgery.unlearning.key_selection import Selector, as_products, nearest_keys
from surgery.unlearning.training_rows import TrainingRows
from tests.support.measuring import best_of

CODEBOOKS, KEYS, KEY_DIM, BATCH = 256, 4096, 14, 256


def selection():
    """One batch: time against cdist's and the product's, and memory beyond what goes in."""
    random = np.random.default_rng(0)
    keys = random.standard_normal((CODEBOOKS, KEYS, KEY_DIM), np.float32)
    queries = random.standard_normal((CODEBOOKS, BATCH, KEY_DIM), np.float32)
    products = as_products(keys)
    left = np.concatenate([queries, np.ones((CODEBOOKS, BATCH, 1), np.float32)], 2)
    scores = np.empty((BATCH, KEYS), np.float32)

    def bare():
        for codebook in range(CODEBOOKS):
            np.matmul(left[codebook], products[codebook], out=scores)

    tracemalloc.start()
    found = nearest_keys(queries, products)[:, :, 0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one, two = torch.from_numpy(queries), torch.from_numpy(keys)
    wrong = int((torch.cdist(one, two).argmin(2).numpy() != found).sum())
    ours, product = best_of(lambda: nearest_keys(queries, products)), best_of(bare)
    cdist = best_of(lambda: torch.cdist(one, two), 3)
    print(f"selection, batch {BATCH}, C {CODEBOOKS}, K {KEYS}, d {KEY_DIM}, {torch.get_num_threads()} thread(s):")
    print(f"  ours {1e3 * ours:.0f} ms, cdist alone {1e3 * cdist:.0f} ms: {cdist / ours:.1f} times as fast")
    print(f"  the product alone {1e3 * product:.0f} ms: {ours / product:.2f} of it")
    print(
        f"  peak memory {peak / 1e6:.1f} MB; ids that differ from cdist's: {wrong} of {found.size} (ties in rounding)"
    )


def edit(keys, rows=50_000, classes=10):
    """A class of a tenth of the rows forgotten from cached ids, against refitting."""
    bottleneck = random_bottleneck(rows, classes, keys)
    number = 20 * keys
    bottleneck.need_training().selections(keys)  # found once for all edits, and so is the fingerprint
    outer = best_of(lambda: unlearn(bottleneck, 3, keys=number), 7)
    inner = min(unlearn(bottleneck, 3, keys=number).report["seconds"] for _ in range(7))
    eraser = unlearn(bottleneck, 3, keys=number)
    apply = best_of(lambda: eraser.apply(bottleneck), 3)
    refit = best_of(lambda: bottleneck.refit_entries(), 1)
    print(
        f"edit, {rows:,} rows, C {CODEBOOKS}, K {keys}: {1e3 * inner:.1f} ms ({1e3 * outer:.1f} with provenance), "
        f"applying {1e3 * apply:.0f} ms, refitting {1e3 * refit:,.0f} ms: 1 to {refit / inner:,.0f}"
    )


def random_bottleneck(rows, classes, keys):
    """Ids that depend on the class, as real ones do, without the time of a fit."""
    random = np.random.default_rng(0)
    targets = random.integers(0, classes, rows)
    ids = (targets[:, None] * keys // classes + random.integers(0, keys // 3, (rows, CODEBOOKS))) % keys
    values = random.standard_normal((CODEBOOKS, keys, classes), np.float32)
    features = random.standard_normal((rows, 64), np.float32)
    selector = Selector(
        np.zeros(64, np.float32),
        random.standard_normal((CODEBOOKS, 64, KEY_DIM), np.float32),
        random.standard_normal((CODEBOOKS, keys, KEY_DIM), np.float32),
        np.zeros((CODEBOOKS, keys), np.uint8),
    )
    digests = np.arange(rows, dtype=np.uint64)
    training = TrainingRows(features, ids.astype(np.uint16)[:, :, None], targets, digests, digests)
    settings = {
        "top": 1,
        "values": "sgd",
        "sgd": {"rate": 0.3, "epochs": 10, "batch": 256, "smoothing": 0.1},
        "seed": 0,
        "key_init": "sample",
        "projection": "random",
        "keys_from": "training rows",
        "class_rows": None,
    }
    return Bottleneck(selector, values, tuple(range(classes)), settings, training)


if __name__ == "__main__":
    torch.set_num_threads(1)
    selection()
    edit(256)
    edit(4096)
