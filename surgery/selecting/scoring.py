"""Scores of a pool's rows for a target: LESS, cosines of gradients, the same without the pool's mean, and simpler ways, streamed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from surgery.errors import OptionError, SelectionError
from surgery.progress import Progress, silent
from surgery.selecting.opening import Instrument
from surgery.selecting.shards import Store, normalised
from surgery.tasks.rows import Row

GRADIENTS = {
    "less": ("adam", False),
    "sgd": ("sgd", False),
    "centred": ("sgd", True),
    "less-centred": ("adam", True),
    "less-corrected": ("adam-corrected", False),
}
BASELINES = ("random", "length", "tfidf", "bm25", "hidden")
METHODS = (*GRADIENTS, *BASELINES)
WORDS = ("random", "length", "tfidf", "bm25")  # which look at no model


def check_choice(share: float, by: str, maps: Sequence[str], hidden: bool) -> None:
    """Refuse a share out of its range, or a way of scoring that a store of these maps has no features for."""
    if not 0 < share <= 1:
        raise OptionError(f"`share` {share} must be above 0 and at most 1")
    if by not in METHODS:
        raise OptionError(f"`by` {by} isn't one of {', '.join(METHODS)}")
    if by in GRADIENTS and GRADIENTS[by][0] not in maps:
        raise OptionError(
            f"`by` {by} needs features by the map {GRADIENTS[by][0]}, and there are {', '.join(maps) or 'none'}: collect them anew, by `surgery select --maps` {','.join([*maps, GRADIENTS[by][0]])}"
        )
    if by == "hidden" and not hidden:
        raise OptionError("`by` hidden: the store was made without hidden states: collect the features with them")


@dataclass(frozen=True, eq=False)
class Target:
    """A target's features: normalised gradients of its rows at each checkpoint, and hidden states.

    Attributes:
        gradients: [rows, length] for each checkpoint. hidden: [rows, width].
        members: share of each row in each subtask's mean, [rows, subtasks].
    """

    rows: tuple[Row, ...]
    gradients: tuple[Tensor, ...]
    hidden: Tensor | None
    members: Float[Tensor, "rows subtasks"]

    @classmethod
    def of(cls, instrument: Instrument, rows: Sequence[Row], hidden: bool, progress: Progress = silent) -> "Target":
        """Take the features of a target's rows; raises SelectionError where none has a gradient."""
        lessons = [
            instrument.objective.encode(row, f"row {number} of the target") for number, row in enumerate(rows, 1)
        ]
        states = torch.nn.functional.normalize(instrument.hidden(lessons), dim=1) if hidden else None
        found = []
        for at in range(len(instrument.checkpoints)):
            each = instrument.features(lessons, at, ("sgd",), progress)["sgd"]
            if not bool(torch.isfinite(each).all()):
                raise SelectionError("gradients of the target are NaN or infinite: try `dtype` float32")
            found.append(normalised(each)[0])
        if not any(bool(each.any()) for each in found):
            raise SelectionError(
                "all gradients of the target are zero: warm up (`warmup_share` above 0), or give rows that the model doesn't know by heart"
            )
        return cls(tuple(rows), tuple(found), states, members(rows))


def members(rows: Sequence[Row]) -> Float[Tensor, "rows subtasks"]:
    """Shares of rows in their subtasks' means."""
    names = list(dict.fromkeys(row.subtask for row in rows))
    table = torch.zeros(len(rows), len(names))
    for number, row in enumerate(rows):
        table[number, names.index(row.subtask)] = 1.0
    return table / table.sum(0)


def score_rows(
    store: Store, target: Target | Sequence[Row], by: str, *, seed: int = 0, progress: Progress = silent
) -> NDArray[np.float64]:
    """A score for each row of the pool, by one of `METHODS`; the mean over a subtask's rows, and the largest of these.

    Args:
        target: its rows are enough for `random`, `length`, `tfidf` and `bm25`.

    Raises:
        OptionError: a way that isn't known, or one whose features the store doesn't hold.
    """
    check_choice(1.0, by, store.header["maps"], store.header["hidden"])
    if by in GRADIENTS:
        assert isinstance(target, Target), "gradients of a target"
        return _by_gradients(store, target, by, progress)
    if by == "hidden":
        assert isinstance(target, Target) and target.hidden is not None, "hidden states of a target"
        return _cosines(store, [("hidden", 1.0, target.hidden)], target.members, False, None, progress)
    rows = target.rows if isinstance(target, Target) else target
    from surgery.selecting import baselines

    return baselines.score_rows(store, rows, by, seed)


def _by_gradients(store: Store, target: Target, by: str, progress: Progress) -> NDArray[np.float64]:
    kind, centred = GRADIENTS[by]
    weights = store.checkpoints.weights
    parts = [(f"{kind}.{at}", weights[at], each) for at, each in enumerate(target.gradients)]
    # A target's gradients are plain ones, so their mean is the pool's of plain gradients where the store has these.
    own = "sgd" if "sgd" in store.header["maps"] else kind
    return _cosines(store, parts, target.members, centred, own, progress)


def _cosines(
    store: Store,
    parts: Sequence[tuple[str, float, Tensor]],
    shares: Tensor,
    centred: bool,
    own: str | None,
    progress: Progress,
) -> NDArray[np.float64]:
    """The weighted sum of mean cosines, the largest over subtasks; a chunk of the pool in memory at a time."""
    wanted, means = [], []
    for name, _, rows in parts:
        mean = mean_feature(store, name) if centred else None
        if mean is not None:
            same = own is None or name.startswith(f"{own}.")
            other = mean if same else mean_feature(store, f"{own}.{name.partition('.')[2]}")
            rows = torch.nn.functional.normalize(rows - other, dim=1)
        wanted.append(rows.T @ shares)
        means.append(mean)
    scores = np.zeros(len(store))
    for pieces in zip(*(store.chunks(name) for name, _, _ in parts), strict=True):
        total: Any = 0.0
        for (_, chunk), (_, weight, _), mean, each in zip(pieces, parts, means, wanted, strict=True):
            if mean is not None:
                chunk = torch.nn.functional.normalize(chunk - mean, dim=1)
            total = total + weight * (chunk @ each).double()
        place = pieces[0][0]
        scores[place] = total.amax(1).numpy()
        progress(place.stop, len(store), "scoring")
    return scores


def mean_feature(store: Store, name: str) -> Float[Tensor, " length"]:
    """The mean of a pool's features, over rows that have any."""
    total, count = None, 0
    for _, chunk in store.chunks(name):
        part = chunk.double().sum(0)
        total = part if total is None else total + part
        count += int(chunk.any(1).sum())
    assert total is not None, "a pool has rows"
    return (total / max(count, 1)).float()


def best(scores: NDArray[np.float64], count: int, left_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers of the rows with the largest scores, the best first; of equal ones the earlier. Rows left out aren't among them."""
    order = np.argsort(np.where(left_out, np.inf, -scores), kind="stable")
    return order[~left_out[order]][:count]


def nearest(store: Store, target: Target, by: str, numbers: Sequence[int]) -> list[tuple[int, float]]:
    """For some rows of the pool the target's row nearest to each, and the cosine, by the way that scored them."""
    kind, centred = GRADIENTS.get(by, ("sgd", True))
    kind = kind if kind in store.header["maps"] else store.header["maps"][0]
    found = torch.zeros(len(numbers), len(target.rows), dtype=torch.float64)
    for at, weight in enumerate(store.checkpoints.weights):
        rows, features = target.gradients[at], torch.stack([store.row(f"{kind}.{at}", number) for number in numbers])
        if centred:
            own = "sgd" if "sgd" in store.header["maps"] else kind
            rows = torch.nn.functional.normalize(rows - mean_feature(store, f"{own}.{at}"), dim=1)
            features = torch.nn.functional.normalize(features - mean_feature(store, f"{kind}.{at}"), dim=1)
        found += weight * (features @ rows.T).double()
    values, places = found.max(1)
    return list(zip(places.tolist(), values.tolist(), strict=True))
