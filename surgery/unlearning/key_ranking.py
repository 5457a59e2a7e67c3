"""Which (codebook, key) pairs carry what is to be forgotten, and how many of them are enough: by training rows alone."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from surgery.progress import Progress
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.key_selection import OPEN
from surgery.unlearning.values import Table

RANKS = ("influence", "count", "purity")
ANSWERS = ("next", "drop")

_ASKED = 2048  # forget rows that a search asks at most
_FINE = 100  # a search stops at this fraction of what it searches in


class ForgetSet:
    """Rows to be forgotten, and the pairs that they select.

    Args:
        positions: numbers of training rows.
        classes: numbers of the classes that they are all the rows of; empty when they are single rows.
    """

    def __init__(
        self,
        bottleneck: Bottleneck,
        positions: Int64[np.ndarray, " R"],
        classes: Int64[np.ndarray, " F"],
        device: torch.device,
        progress: Progress,
    ) -> None:
        self._bottleneck, self._device, self._progress = bottleneck, device, progress
        self._training = bottleneck.need_training()
        self._classes = classes
        self.positions = positions
        self.targets = self._training.targets[positions]
        self.ids = bottleneck.current_ids(positions, device=device)
        self._codebooks, self._keys, self._labels = bottleneck.table.shape

    @cached_property
    def active(self) -> Int64[np.ndarray, " A"]:
        """Open pairs that some forget row selects, in order."""
        return np.flatnonzero(self._counts)

    def scores(self, rank: str) -> Float32[np.ndarray, " A"]:
        """How much each active pair matters; influence can be negative, when the pair speaks against the class."""
        counts = self._counts[self.active].astype(np.float32)
        if rank == "count":
            return counts
        everything = (
            self._bottleneck.current_selections(device=self._device).reshape(-1)[self.active].astype(np.float32)
        )
        if rank == "purity":
            return counts / everything
        return self._votes(counts) / (everything - counts + 1)

    def best(self, scores: Float32[np.ndarray, " A"], number: int) -> Int64[np.ndarray, " P"]:
        """The pairs with the highest scores, in order of pairs; of equal ones the first."""
        if number >= len(self.active):
            return self.active
        if not number:
            return self.active[:0]
        bar = np.partition(scores, len(scores) - number)[len(scores) - number]
        above = scores > bar
        level = np.flatnonzero(scores == bar)[: number - int(above.sum())]
        above[level] = True
        return self.active[above]

    def pairs_of(self, rows: Int64[np.ndarray, " E"]) -> Int64[np.ndarray, " P"]:
        """Open pairs that these of the forget rows select, in order."""
        found = np.unique(self._flat(self.ids[rows]))
        return found[self._open[found]]

    def fewest(self, most: int, pairs_for: Callable[[int], Int64[np.ndarray, " P"]], answer: str) -> tuple[int, str]:
        """A number for which masking `pairs_for(number)` is enough, and what enough means.

        Found by bisection to one part in a hundred: the smallest, if more masks never undo what fewer did.

        For classes: no forget row is left for which fewer than two of the other classes score above the best forgotten
        one (one, if there is only one other). For single rows: no more of them are answered right than by values that
        were refitted without them.
        """
        asked = np.linspace(0, len(self.positions) - 1, min(len(self.positions), _ASKED)).astype(np.int64)
        features = self._training.features[self.positions[asked]]
        reselect = self._bottleneck.selector.reselector(features, self.ids[asked], self._device)
        table = Table(self._bottleneck.values, self._bottleneck.selector.states, self._device)
        enough, rule = self._enough(asked)

        def works(number: int) -> bool:
            states = self._bottleneck.masked(pairs_for(number), answer).selector.states
            table.close(states)
            return enough(*table.answer(reselect(states)))

        low, high = -1, most
        steps = 0
        while high - low > max(1, most // _FINE):
            middle = (low + high) // 2
            low, high = (low, middle) if works(middle) else (middle, high)
            steps += 1
            self._progress(steps, steps + 1, f"choosing how many: at most {high:,}")
        if high == most and not works(most):
            rule = f"all that speak for it: not enough for the rule ({rule})"
        return high, rule

    def _enough(self, asked: NDArray) -> tuple[Callable[[NDArray, NDArray], bool], str]:
        targets = self.targets[asked]
        if not len(self._classes):
            stay = np.setdiff1d(np.arange(len(self._training)), self.positions)
            refitted = self._bottleneck.refitted(stay, device=self._device)
            right = int(
                (
                    refitted.answer_ids(self._training.ids[self.positions[asked]], device=str(self._device)).targets
                    == targets
                ).sum()
            )
            rule = f"as few answered right as after refitting: {right} of {len(asked)}"
            return lambda logits, abstained: int(((logits.argmax(1) == targets) & ~abstained).sum()) <= right, rule
        others = np.setdiff1d(np.unique(self._training.targets), self._classes)
        places = min(2, len(others))

        def enough(logits: NDArray, abstained: NDArray) -> bool:
            forgotten = logits[:, self._classes].max(1, keepdims=True)
            return bool((((logits[:, others] > forgotten).sum(1) >= places) | abstained).all())

        return enough, f"for every forget row {places} of the other classes score higher"

    def _votes(self, counts: NDArray) -> NDArray:
        """Sum of what each active pair says for a forget row's own class, over the forget rows that select it."""
        values = self._bottleneck.values.reshape(-1, self._labels)
        present = np.unique(self.targets)
        if len(present) == 1:
            return counts * values[self.active, present[0]]
        votes = np.zeros(len(self.active), np.float32)
        for target in present:
            own = self._tally(self.ids[self.targets == target])[self.active]
            votes += own * values[self.active, target]
        return votes

    @cached_property
    def _open(self) -> NDArray:
        return self._bottleneck.selector.states.reshape(-1) == OPEN

    @cached_property
    def _counts(self) -> NDArray:
        return self._tally(self.ids) * self._open

    def _tally(self, ids: NDArray) -> NDArray:
        found = np.empty((self._codebooks, self._keys), np.int64)
        for codebook, column in enumerate(np.ascontiguousarray(ids.transpose(1, 0, 2)).reshape(self._codebooks, -1)):
            found[codebook] = np.bincount(column, minlength=self._keys)
        return found.reshape(-1)

    def _flat(self, ids: NDArray) -> NDArray:
        return ids.astype(np.int64) + np.arange(self._codebooks)[:, None] * self._keys
