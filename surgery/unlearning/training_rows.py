"""The training rows that a bottleneck remembers: what its values can be refitted from, and rows taken out of."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt16, UInt64
from numpy.typing import NDArray

from surgery.errors import TaskError
from surgery.reporting.plural import number_of
from surgery.unlearning.features.rows import feature_digests
from surgery.unlearning.values import count


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Rows as the values saw them.

    Attributes:
        features: for selecting again once keys are closed.
        ids: the keys each row selected when all were open: all that values are learnt from.
        targets: class numbers.
        digests: 64-bit hashes of the rows' content, by which single rows are found.
        placed: digests of the rows that placed the keys, sorted, each once: how often would tell of rows that are gone.
    """

    features: Float32[np.ndarray, "N D"]
    ids: UInt16[np.ndarray, "N C top"]
    targets: Int64[np.ndarray, " N"]
    digests: UInt64[np.ndarray, " N"]
    placed: UInt64[np.ndarray, " M"]

    def __repr__(self) -> str:
        return f"TrainingRows({number_of(len(self), 'row')})"  # what is in them is private

    def __len__(self) -> int:
        return len(self.targets)

    def arrays(self) -> dict[str, NDArray]:
        """Everything in them by name, as it is saved."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def expected(self, width: int, codebooks: int, top: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape that each array must have for so many features, codebooks and keys that answer."""
        rows = len(self)
        return {
            "features": (np.float32, (rows, width)),
            "ids": (np.uint16, (rows, codebooks, top)),
            "targets": (np.int64, (rows,)),
            "digests": (np.uint64, (rows,)),
            "placed": (np.uint64, (len(self.placed),)),
        }

    def selections(self, keys: int) -> Int32[np.ndarray, "C K"]:
        """How many rows select each pair."""
        if keys not in self._counted:
            self._counted[keys] = count(self.ids, np.zeros(len(self), np.int64), keys, 1)[:, :, 0]
        return self._counted[keys]

    @cached_property
    def _counted(self) -> dict[int, NDArray]:
        return {}

    def class_rows(self, classes: int, rows: NDArray | None = None) -> list[int]:
        """How many of these rows (default: all) are of each class."""
        return np.bincount(self.targets if rows is None else self.targets[rows], minlength=classes).tolist()

    def find(
        self, digests: UInt64[np.ndarray, " R"], features: Float32[np.ndarray, "R D"] | None = None
    ) -> Int64[np.ndarray, " S"]:
        """Numbers of all rows with these digests, or these features where they are known, and of their twins.

        Raises TaskError, naming the first that no row has.
        """
        known, ours = np.isin(digests, self.digests), np.isin(self.digests, digests)
        if features is not None:  # the same numbers in another type, or beside texts, have other digests
            asked, held = feature_digests(features), feature_digests(self.features)
            known, ours = known | np.isin(asked, held), ours | np.isin(held, asked)
        if not known.all():
            raise TaskError(
                f"row {int(known.argmin())} of those to forget, counted from 0, is none of the {len(self):,} training rows: give rows as they were in training"
            )
        return self.twins(np.flatnonzero(ours))

    def twins(self, positions: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " S"]:
        """Numbers of all rows with the same content as these: these, and their twins."""
        return np.flatnonzero(np.isin(self.digests, self.digests[positions]))

    def without(self, positions: Int64[np.ndarray, " R"]) -> "TrainingRows":
        """The other rows; what placed the keys is forgotten with them."""
        stay = np.ones(len(self), bool)
        stay[positions] = False
        placed = self.placed[~np.isin(self.placed, self._only(positions))]
        return TrainingRows(self.features[stay], self.ids[stay], self.targets[stay], self.digests[stay], placed)

    def saw(self, positions: Int64[np.ndarray, " R"]) -> int:
        """How many of these rows placed the keys."""
        return int(np.isin(self.digests[positions], self.placed).sum())

    def _only(self, positions: Int64[np.ndarray, " R"]) -> UInt64[np.ndarray, " S"]:
        """Digests that these rows have and no other row has."""
        return np.setdiff1d(self.digests[positions], np.delete(self.digests, positions))

    def with_rows(
        self,
        positions: Int64[np.ndarray, " R"],
        rows: "TrainingRows",
    ) -> "TrainingRows":
        """The inverse of `without`: rows put back where they were."""
        total = len(self) + len(rows)
        back = np.zeros(total, bool)
        back[positions] = True

        def merge(ours: NDArray, theirs: NDArray) -> NDArray:
            merged = np.empty((total, *ours.shape[1:]), ours.dtype)
            merged[~back], merged[back] = ours, theirs
            return merged

        return TrainingRows(
            merge(self.features, rows.features),
            merge(self.ids, rows.ids),
            merge(self.targets, rows.targets),
            merge(self.digests, rows.digests),
            np.union1d(self.placed, rows.placed),
        )

    def take(self, positions: Int64[np.ndarray, " R"]) -> "TrainingRows":
        """These rows, with what they did to the keys."""
        return TrainingRows(
            self.features[positions],
            self.ids[positions],
            self.targets[positions],
            self.digests[positions],
            self.placed[np.isin(self.placed, self._only(positions))],
        )
