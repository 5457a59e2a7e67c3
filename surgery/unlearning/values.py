"""What the keys say: a score for each class, learnt by SGD as published or in closed form from counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt16
from torch import Tensor
from torch.nn import functional as F

from surgery.devices import memory_for, off_cpu
from surgery.errors import OptionError
from surgery.unlearning.key_selection import OPEN

_ROWS, _GPU_ROWS = 1 << 10, 1 << 14  # answered at once
_BELOW = np.float32(-1e-6)  # what a class without rows scores at most
_SCRATCH, _GPU_SCRATCH = 1 << 22, 1 << 26  # floats copied at once while values are changed


@dataclass(frozen=True)
class Sgd:
    """How values are learnt (Shah et al. 2023; their code's settings but for the clipping, which does nothing here).

    A step adds `rate` times (target - probability) to each value a row selects. That is plain SGD on the cross-entropy
    summed over the batch, with the 1/C of the average over codebooks left out of the gradient.

    Attributes:
        smoothing: the share of the target spread evenly over the classes.
    """

    rate: float = 0.3
    epochs: int = 10
    batch: int = 256
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.epochs >= 1 and self.batch >= 1 and 0 <= self.smoothing < 1):
            raise OptionError(
                f"{self}: rate must be positive, epochs and batch at least 1, smoothing at least 0 and below 1"
            )


# From the rows of a batch and their logits [B, classes] to what is added to each value they select [B, classes].
Push = Callable[[Tensor, Tensor], Tensor]


class Chosen:
    """Ids of the keys that rows select, for a table on this device: sent there once."""

    def __init__(self, ids: UInt16[np.ndarray, "N C top"], device: torch.device | None = None) -> None:
        self._ids = ids
        # int32: torch hardly computes with uint16.
        self._on_device = torch.from_numpy(ids.astype(np.int32)).to(device) if off_cpu(device) else None

    def of(self, rows: Tensor) -> Tensor:
        """Those [B, C, top] of these rows, whose numbers are on the table's device."""
        if self._on_device is None:
            return torch.from_numpy(self._ids[rows.numpy()].astype(np.int64))
        return self._on_device[rows].long()


class Table:
    """Values in the shape that training and answering want: one row a pair, and a last one for "no answer".

    On a CPU and on CUDA answers and steps are the same bits each time, and a row's answer doesn't depend on which rows it
    comes with. Between devices they agree to rounding.

    Args:
        values: scores of every pair.
        states: pairs that aren't OPEN give no answer.
    """

    def __init__(
        self,
        values: Float32[np.ndarray, "C K Y"],
        states: UInt8[np.ndarray, "C K"],
        device: torch.device | None = None,
    ) -> None:
        self._shape = values.shape
        codebooks, keys, classes = values.shape
        self._device = torch.device("cpu" if device is None else device)
        self._gpu = off_cpu(device)
        self._none = codebooks * keys
        self._rows = torch.zeros(self._none + 1, classes, device=device)
        self._rows[:-1] = torch.from_numpy(values).reshape(-1, classes)
        self._first = torch.arange(codebooks, device=device)[:, None] * keys
        self.close(states)

    def close(self, states: UInt8[np.ndarray, "C K"]) -> None:
        """Let the pairs that are OPEN answer, and no others."""
        closed = np.append(states.reshape(-1) != OPEN, True)
        self._closed = torch.from_numpy(closed).to(self._device) if closed[:-1].any() else None

    @property
    def values(self) -> Float32[np.ndarray, "C K Y"]:
        """The scores as they are now."""
        return self._rows[:-1].cpu().numpy().reshape(self._shape)

    def answer(
        self, ids: UInt16[np.ndarray, "N C top"] | Int32[Tensor, "N C top"]
    ) -> tuple[Float32[np.ndarray, "N Y"], Bool[np.ndarray, " N"]]:
        """Mean score over the pairs that answer, and which rows none answers for (their scores are 0).

        Args:
            ids: an array; or a tensor on the table's device.
        """
        logits, abstained = [], []
        block = _GPU_ROWS if self._gpu else _ROWS
        for start in range(0, len(ids), block):
            some = ids[start : start + block]
            some = some.long() if isinstance(some, Tensor) else torch.from_numpy(some.astype(np.int64))
            pairs = self._pairs(some.to(self._device))
            logits.append(self._mean(pairs))
            abstained.append((pairs == self._none).all(1))
        return torch.cat(logits).cpu().numpy(), torch.cat(abstained).cpu().numpy()

    def step(self, chosen: Chosen, rows: Tensor, push: Push) -> None:
        """Add what `push` says to the values that these rows select."""
        pairs = self._pairs(chosen.of(rows))
        change = push(rows, self._mean(pairs))
        scratch = _GPU_SCRATCH if self._gpu else _SCRATCH
        few = max(1, scratch // (pairs.shape[1] * change.shape[1]))  # rows whose B x C x classes copy stays small
        for some, theirs in zip(pairs.split(few), change.split(few), strict=True):
            self._add(some.reshape(-1), theirs.repeat_interleave(pairs.shape[1], 0))
        self._rows[self._none] = 0

    def _add(self, pairs: Tensor, change: Tensor) -> None:
        """Add to each pair's values all that is meant for it, in order."""
        if self._gpu:
            # CUDA's index_add_ adds by atomics, in any order. This one sorts by pair, keeping the order of equal ones, and
            # adds up each pair's in turn.
            self._rows.index_put_((pairs,), change, accumulate=True)
        else:
            self._rows.index_add_(0, pairs, change)

    def _pairs(self, ids: Tensor) -> Tensor:
        pairs = (ids + self._first).flatten(1)
        return pairs if self._closed is None else pairs.masked_fill(self._closed[pairs], self._none)

    def _mean(self, pairs: Tensor) -> Tensor:
        # A sum that never builds B x C x classes, each row's in order. "No answer" adds 0; torch's own padding_idx is ten
        # times as slow.
        total = F.embedding_bag(pairs, self._rows, mode="sum")
        if self._closed is None:
            # By a tensor: by a number CUDA would multiply with its rounded inverse, and differ from the line below.
            return total / (torch.full((), pairs.shape[1], device=self._device) if self._gpu else pairs.shape[1])
        return total / (pairs != self._none).sum(1, keepdim=True).clamp(min=1)


def toward(targets: Int64[np.ndarray, " N"], classes: int, recipe: Sgd, device: torch.device | None = None) -> Push:
    """The published objective: cross-entropy with smoothed targets."""
    soft = torch.full((classes, classes), recipe.smoothing / classes, device=device)
    soft += torch.eye(classes, device=device) * (1 - recipe.smoothing)
    labels = torch.from_numpy(targets).to(soft.device)

    def push(rows: Tensor, logits: Tensor) -> Tensor:
        return recipe.rate * (soft[labels[rows]] - logits.softmax(1))

    return push


def batches(rows: int, recipe: Sgd, seed: int, device: torch.device | None = None) -> Iterator[Tensor]:
    """Row numbers on the device, mixed anew each epoch."""
    random = np.random.default_rng([seed, 2])
    for _ in range(recipe.epochs):
        yield from torch.from_numpy(random.permutation(rows)).to(device or "cpu").split(recipe.batch)


def learn_values(
    ids: UInt16[np.ndarray, "N C top"],
    targets: Int64[np.ndarray, " N"],
    states: UInt8[np.ndarray, "C K"],
    classes: int,
    recipe: Sgd,
    seed: int = 0,
    device: torch.device | None = None,
) -> Float32[np.ndarray, "C K Y"]:
    """Values by SGD from zero, from the ids of the keys that each row selects.

    On a CPU, and on CUDA too, the same rows, order and seed give the same bits. Between devices values agree to rounding.

    Raises:
        OptionError: more than a GPU's memory holds.
    """
    place = torch.device("cpu" if device is None else device)
    pairs = ids[0].size if len(ids) else 0
    step = 3 * min(recipe.batch * pairs * classes, _GPU_SCRATCH) + 8 * recipe.batch * pairs
    needed = 4 * (ids.size + (states.size + 1) * classes + step)
    what = f"learning values of {states.size:,} keys for {classes:,} classes"
    with memory_for(place, needed, what, "lower `codebooks` or `keys`, or give `device` cpu"):
        table = Table(np.zeros((*states.shape, classes), np.float32), states, place)
        push, chosen = toward(targets, classes, recipe, place), Chosen(ids, place)
        for rows in batches(len(ids), recipe, seed, place):
            table.step(chosen, rows, push)
        return table.values


def fit_entries(
    ids: UInt16[np.ndarray, "N C top"],
    targets: Int64[np.ndarray, " N"],
    keys: int,
    classes: int,
    recipe: Sgd | None,
    seed: int = 0,
    device: torch.device | None = None,
) -> Float32[np.ndarray, "C K Y"] | Int32[np.ndarray, "C K Y"]:
    """The table that rows give from the ids of the keys that they select, with all keys open.

    Args:
        recipe: how values are learnt by SGD; None to count classes instead.
    """
    if recipe is None:
        return count(ids, targets, keys, classes)
    all_open = np.full((ids.shape[1], keys), OPEN, np.uint8)
    table = learn_values(ids, targets, all_open, classes, recipe, seed, device)
    absent = np.bincount(targets, minlength=classes) == 0
    # Or they would tie where no row is left to say anything, and the first class would be answered.
    table[:, :, absent] = np.minimum(table[:, :, absent], _BELOW)
    return table


def count(
    ids: UInt16[np.ndarray, "N C top"], targets: Int64[np.ndarray, " N"], keys: int, classes: int
) -> Int32[np.ndarray, "C K Y"]:
    """How many rows of each class select each pair."""
    counts = np.empty((ids.shape[1], keys * classes), np.int32)
    for codebook in range(len(counts)):
        cells = ids[:, codebook].astype(np.intp) * classes + targets[:, None]
        counts[codebook] = np.bincount(cells.reshape(-1), minlength=keys * classes)
    return counts.reshape(-1, keys, classes)


def from_counts(
    counts: Int32[np.ndarray, "C K Y"], selections: Int64[np.ndarray, " Y"] | None = None
) -> Float32[np.ndarray, "C K Y"]:
    """Values in closed form: log of the share of a class among a pair's rows over its share among all rows.

    One row's worth of the overall shares is added to every pair, so that a pair that no row selects says nothing. It is
    a function of the integers alone, entry by entry: equal counts give equal bits.

    Args:
        selections: how many selections in a codebook are of rows of each class; by default what the counts say, which
            is too few once masked pairs' counts are taken out.
    """
    rows = counts[0].sum(0, dtype=np.int64) if selections is None else selections
    if not rows.any():
        return np.zeros(counts.shape, np.float32)
    overall = rows / rows.sum()
    seen = overall > 0
    values = np.full(counts.shape, 0, np.float32)
    total = counts.sum(2, keepdims=True, dtype=np.int64) + 1
    lift = np.log((counts[:, :, seen] + overall[seen]) / total / overall[seen])
    values[:, :, seen] = lift
    # A class without rows must lose against every class that has some.
    values[:, :, ~seen] = lift.min() - 1 if not seen.all() else 0
    return values
