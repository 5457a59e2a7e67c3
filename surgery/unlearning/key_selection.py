"""Which key answers for which row: the nearest open one of every codebook, at the speed of one matrix product."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt8, UInt16
from numpy.typing import NDArray
from torch import Tensor

from surgery.devices import off_cpu
from surgery.unlearning.device_rows import DeviceRows, DeviceSelector

# What a (codebook, key) pair may be: open; closed, so that the next-nearest key answers; or silent, so that a row
# nearest to it gets no answer from that codebook.
OPEN, CLOSED, SILENT = 0, 1, 2
MASKS = ("activations", "examples")  # the ways to forget that close keys

MOST_KEYS = 1 << 16  # ids are kept as uint16
# float32 scores held at once (2 MiB): enough for the product's full speed, little enough for a core's cache.
_SCRATCH = 1 << 19
_FEW = 256  # rows below which a product loses speed


@dataclass(frozen=True, eq=False)
class Selector:
    """The frozen part of a bottleneck: projections, keys, and which of them may answer.

    The squared distance is |x|^2 - 2 k.x + |k|^2, and |x|^2 is the same for every key of a codebook. Half of the rest,
    |k|^2 / 2 - k.x, is one matrix product in which |k|^2 / 2 rides along as one dimension more; closing a key is setting
    that entry to infinity. Discrete key-value bottleneck: Träuble et al. 2023, section 3; closed keys: Shah et al. 2023.

    Attributes:
        center: subtracted from every feature row, so that the two terms above don't cancel each other's digits.
        projections: fixed maps from features to every codebook's space.
        keys: points in that space.
        states: OPEN, CLOSED or SILENT, one a pair.
    """

    center: Float32[np.ndarray, " D"]
    projections: Float32[np.ndarray, "C D d"]
    keys: Float32[np.ndarray, "C K d"]
    states: UInt8[np.ndarray, "C K"]

    def select(
        self,
        features: Float32[np.ndarray, "N D"] | Float32[Tensor, "N D"],
        *,
        top: int = 1,
        device: torch.device | None = None,
    ) -> UInt16[np.ndarray, "N C top"]:
        """Ids of each row's nearest keys that aren't closed, nearest first.

        Memory beyond the result stays at a few MB on a CPU, whatever the number of rows. Where a codebook has fewer than
        `top` keys that aren't closed, the ids beyond them are closed keys: look at `states` before using them.

        On CUDA a row's ids are the same each time, whichever rows it comes with. Between devices, as between processors, a
        row that is as far from two keys but for rounding may select the other one.

        Args:
            features: an array, or a tensor, which may be on `device` already.
        """
        if off_cpu(device):
            return self._on(device).select(features, self.states == CLOSED, top)
        codebooks, keys, d = self.keys.shape
        ids = np.empty((len(features), codebooks, top), np.uint16)
        block = min(_block(keys), max(_FEW, _SCRATCH // (codebooks * d)))
        for start in range(0, len(features), block):
            rows = slice(start, start + block)
            queries = self.project(np.asarray(features[rows]))
            ids[rows] = nearest_keys(queries, self.products, top=top).transpose(1, 0, 2)
        return ids

    def reselect(
        self,
        features: Float32[np.ndarray, "N D"],
        ids: UInt16[np.ndarray, "N C top"],
        *,
        device: torch.device | None = None,
    ) -> UInt16[np.ndarray, "N C top"]:
        """`select`, where `ids` are what it gave before some more keys were closed: looks again only where one of them was."""
        closed = self.states == CLOSED
        if not closed.any():
            return ids
        if off_cpu(device):
            stale = closed[np.arange(len(closed))[:, None], ids].any(2)  # [N, C]
            rows, mended = np.flatnonzero(stale.any(1)), ids.copy()
            if len(rows):
                again = self.select(features[rows], top=ids.shape[2], device=device)
                mended[rows] = np.where(stale[rows][:, :, None], again, ids[rows])
            return mended
        centered = features - self.center
        return self._reselect(lambda codebook, rows: centered[rows] @ self.projections[codebook], ids)

    def reselector(
        self,
        features: Float32[np.ndarray, "N D"],
        ids: UInt16[np.ndarray, "N C top"],
        device: torch.device | None = None,
    ) -> Callable[[UInt8[np.ndarray, "C K"]], UInt16[np.ndarray, "N C top"] | Int32[Tensor, "N C top"]]:
        """`reselect` as a function of the states: for asking about the same rows again and again.

        The rows are projected once, and sent to a device other than the CPU once; there the ids stay.
        """
        if off_cpu(device):
            rows = DeviceRows(self._on(device), features, ids, device)
            return lambda states: rows.reselect(states == CLOSED)
        queries = self.project(features)
        return lambda states: self.with_states(states)._reselect(lambda book, rows: queries[book, rows], ids)

    def with_states(self, states: UInt8[np.ndarray, "C K"]) -> "Selector":
        """The same keys in other states; what is on a device already stays there."""
        other = replace(self, states=states)
        other.__dict__["_devices"] = self._devices
        return other

    def project(self, features: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "C N d"]:
        """Each row's queries, one a codebook: for asking about the same rows again and again."""
        codebooks, _, d = self.keys.shape
        queries = ((features - self.center) @ self._map).reshape(-1, codebooks, d)
        return np.ascontiguousarray(queries.transpose(1, 0, 2))

    def _reselect(
        self, queries: Callable[[int, NDArray], NDArray], ids: UInt16[np.ndarray, "N C top"]
    ) -> UInt16[np.ndarray, "N C top"]:
        """`reselect`, given the queries of a codebook for some rows."""
        renewed = ids.copy()
        for codebook, closed in enumerate(self.states == CLOSED):
            stale = np.flatnonzero(closed[ids[:, codebook]].any(1))
            if len(stale):
                right = self.products[codebook : codebook + 1]
                renewed[stale, codebook] = nearest_keys(queries(codebook, stale)[None], right, top=ids.shape[2])[0]
        return renewed

    def _on(self, device: torch.device) -> DeviceSelector:
        if device not in self._devices:
            self._devices[device] = DeviceSelector(self.center, self._map, self.keys, device)
        return self._devices[device]

    @cached_property
    def _devices(self) -> dict[torch.device, DeviceSelector]:
        return {}

    @cached_property
    def products(self) -> Float32[np.ndarray, "C e K"]:
        """Right-hand sides of the products: minus the keys, and |k|^2 / 2 (infinity for closed ones) below them."""
        right = as_products(self.keys)
        right[:, -1][self.states == CLOSED] = np.inf
        return right

    @cached_property
    def _map(self) -> Float32[np.ndarray, "D M"]:
        """All projections side by side: one product for all codebooks."""
        codebooks, width, d = self.projections.shape
        return np.ascontiguousarray(self.projections.transpose(1, 0, 2)).reshape(width, codebooks * d)


def as_products(keys: Float32[np.ndarray, "C K d"]) -> Float32[np.ndarray, "C d+1 K"]:
    """Keys as `nearest_keys` takes them."""
    right = np.empty((len(keys), keys.shape[2] + 1, keys.shape[1]), np.float32)
    np.negative(keys.transpose(0, 2, 1), out=right[:, :-1])
    right[:, -1] = np.einsum("ckd,ckd->ck", keys, keys) / 2
    return right


def nearest_keys(
    queries: Float32[np.ndarray, "C N d"],
    products: Float32[np.ndarray, "C d+1 K"],
    *,
    top: int = 1,
) -> Int64[np.ndarray, "C N top"]:
    """Ids of the keys with the smallest scores; ties go to the smaller id. By numpy, whose argmin is several times torch's."""
    codebooks, rows, d = queries.shape
    block = min(rows, _block(products.shape[2]))
    left = np.ones((block, d + 1), np.float32)
    scores = np.empty((block, products.shape[2]), np.float32)
    ids = np.empty((codebooks, rows, top), np.int64)
    for codebook in range(codebooks):
        for start in range(0, rows, block):
            size = min(block, rows - start)
            left[:size, :-1] = queries[codebook, start : start + size]
            with np.errstate(invalid="ignore"):  # the product's padding, 0 times infinity, which is thrown away
                np.matmul(left[:size], products[codebook], out=scores[:size])
            if top == 1:
                scores[:size].argmin(1, out=ids[codebook, start : start + size, 0])
            else:
                ids[codebook, start : start + size] = _smallest(scores[:size], top)
    return ids


def _block(keys: int) -> int:
    return max(1, _SCRATCH // keys)


def _smallest(scores: Float32[np.ndarray, "N K"], top: int) -> Int64[np.ndarray, "N top"]:
    some = np.argpartition(scores, top - 1, axis=1)[:, :top]
    some.sort(axis=1)
    order = np.argsort(np.take_along_axis(scores, some, 1), axis=1, kind="stable")
    chosen = np.take_along_axis(some, order, 1)
    # Of equal scores at the end of the list the partition takes any.
    tied = np.flatnonzero((scores <= np.take_along_axis(scores, chosen[:, -1:], 1)).sum(1) > top)
    chosen[tied] = np.argsort(scores[tied], axis=1, kind="stable")[:, :top]
    return chosen
