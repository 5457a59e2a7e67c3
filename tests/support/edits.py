"""Small bottlenecks of four overlapping classes, made once, for tests of edits."""

from itertools import product

import numpy as np

from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.values import Sgd

NAMES = ("ant", "bee", "cat", "dog")

C, K, Y = 6, 10, len(NAMES)


def data(rows=80, seed=0, spread=2.0):
    """Classes that overlap a little, as rows and labels."""
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % Y
    features = np.eye(5)[targets] * 4 + random.standard_normal((rows, 5)) * spread / 2
    return features.astype(np.float32), np.array(NAMES)[targets]


X, LABELS = data()

OTHERS = data(60, seed=9)[0]

MADE = {}


def fitted(values="sgd", top=1, keys_from=False, X=X, labels=LABELS, **more):  # noqa: N803
    """A bottleneck, made once a session: it never changes."""
    key = (values, top, keys_from, X.tobytes(), tuple(labels), str(more))
    if key not in MADE:
        MADE[key] = Bottleneck.fit_rows(
            Rows.of(X, labels),
            keys_from=Rows.of(OTHERS) if keys_from else None,
            values=values,
            **{"codebooks": C, "keys": K, "key_dim": 3, "sgd": Sgd(epochs=3), "top": top, **more},
        )
    return MADE[key]


def flat(array):
    return array.reshape(C * K, -1)


def rows_of(*names):
    return np.flatnonzero(np.isin(LABELS, names))


MASKS = [
    *(
        {"method": "activations", "rank": r, "answer": a}
        for r, a in product(("influence", "count", "purity"), ("next", "drop"))
    ),
    *({"method": "examples", "answer": a} for a in ("next", "drop")),
]

REST = [{"method": "refit"}, {"method": "counts"}]
