"""Rows to be forgotten, the pairs that they select, and how many of these it takes to mask: by training rows alone."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from surgery.progress import Progress
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.key_ranking import RANKINGS, ActivePairs
from surgery.unlearning.key_selection import OPEN
from surgery.unlearning.values import Table

_ASKED = 2048  # forget rows that a search asks at most
_FINE = 100  # a search stops at this fraction of what it searches in


class ForgetSet(ActivePairs):
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
        self.bottleneck, self.device, self._progress = bottleneck, device, progress
        self._training = bottleneck.need_training()
        self.classes = classes
        self.positions = positions
        self.targets = self._training.targets[positions]
        self.ids = bottleneck.current_ids(positions, device=device)
        self._codebooks, self._keys, self._labels = bottleneck.entries.shape

    @cached_property
    def active(self) -> Int64[np.ndarray, " A"]:
        """Open pairs that some forget row selects, in order."""
        return np.flatnonzero(self._counts)

    def scores(self, rank: str) -> Float32[np.ndarray, " A"]:
        """How much each active pair matters, by a ranking of this name."""
        return np.asarray(RANKINGS[rank](self), np.float32)

    @cached_property
    def forget_rows(self) -> Float32[np.ndarray, " A"]:
        """How many forget rows select each active pair."""
        return self._counts[self.active].astype(np.float32)

    @cached_property
    def all_rows(self) -> Float32[np.ndarray, " A"]:
        """How many training rows select each active pair."""
        selections = self.bottleneck.current_selections(device=self.device)
        return selections.reshape(-1)[self.active].astype(np.float32)

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
        pairs = np.unique(self._flat(self.ids[rows]))
        return pairs[self._open[pairs]]

    def fewest(self, most: int, pairs_for: Callable[[int], Int64[np.ndarray, " P"]], answer: str) -> tuple[int, str]:
        """A number for which masking `pairs_for(number)` is enough, and what enough means.

        Found by bisection to one part in a hundred: the smallest, if more masks never undo what fewer did.

        For classes: no forget row is left for which fewer than two of the other classes score above the best forgotten
        one (one, if there is only one other). For single rows: no more of them are answered right than by values that
        were refitted without them.
        """
        asked = np.linspace(0, len(self.positions) - 1, min(len(self.positions), _ASKED)).astype(np.int64)
        features = self._training.features[self.positions[asked]]
        reselect = self.bottleneck.selector.reselector(features, self.ids[asked], self.device)
        table = Table(self.bottleneck.values, self.bottleneck.selector.states, self.device)
        enough, rule = self._enough(asked)

        def works(number: int) -> bool:
            states = self.bottleneck.masked(pairs_for(number), answer).selector.states
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
        if not len(self.classes):
            stay = np.setdiff1d(np.arange(len(self._training)), self.positions)
            refitted = self.bottleneck.refitted(stay, device=self.device)
            answer = refitted.answer_ids(self._training.ids[self.positions[asked]], device=str(self.device))
            right = int((answer.targets == targets).sum())
            rule = f"as few answered right as after refitting: {right} of {len(asked)}"
            return lambda logits, abstained: int(((logits.argmax(1) == targets) & ~abstained).sum()) <= right, rule
        others = np.setdiff1d(np.unique(self._training.targets), self.classes)
        places = min(2, len(others))

        def enough(logits: NDArray, abstained: NDArray) -> bool:
            forgotten = logits[:, self.classes].max(1, keepdims=True)
            return bool((((logits[:, others] > forgotten).sum(1) >= places) | abstained).all())

        return enough, f"for every forget row {places} of the other classes score higher"

    @cached_property
    def votes(self) -> Float32[np.ndarray, " A"]:
        """Sum of what each active pair says for a forget row's own class, over the forget rows that select it."""
        values = self.bottleneck.values.reshape(-1, self._labels)
        present = np.unique(self.targets)
        if len(present) == 1:
            return self.forget_rows * values[self.active, present[0]]
        votes = np.zeros(len(self.active), np.float32)
        for target in present:
            own = self._tally(self.ids[self.targets == target])[self.active]
            votes += own * values[self.active, target]
        return votes

    @cached_property
    def _open(self) -> NDArray:
        return self.bottleneck.selector.states.reshape(-1) == OPEN

    @cached_property
    def _counts(self) -> NDArray:
        return self._tally(self.ids) * self._open

    def _tally(self, ids: NDArray) -> NDArray:
        counts = np.empty((self._codebooks, self._keys), np.int64)
        for codebook, column in enumerate(np.ascontiguousarray(ids.transpose(1, 0, 2)).reshape(self._codebooks, -1)):
            counts[codebook] = np.bincount(column, minlength=self._keys)
        return counts.reshape(-1)

    def _flat(self, ids: NDArray) -> NDArray:
        return ids.astype(np.int64) + np.arange(self._codebooks)[:, None] * self._keys
