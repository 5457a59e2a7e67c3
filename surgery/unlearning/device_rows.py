"""Rows and keys on a GPU, sent there once, and keys selected there in batched matrix products."""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, UInt16
from torch import Tensor

from surgery.devices import full_float32, memory_for

# Rows of a product: always as many, the last ones zeros, so that a library's choice among its kernels, and so a row's last
# bits and the keys it selects, never depend on how many rows it comes with.
ROWS = 1024
SCRATCH = 1 << 26  # float32 scores held at once (256 MiB)
_ALIGNED = 4  # numbers that a kernel reads at once


def width_of(d: int) -> int:
    """Numbers of a query: its d, a 1 and zeros."""
    return -(-(d + 1) // _ALIGNED) * _ALIGNED


def right_hand(keys: Float32[Tensor, "C K d"]) -> Float32[Tensor, "C e K"]:
    """Keys as `nearest` takes them: minus the keys, |k|^2 / 2 below them, zeros below that."""
    codebooks, number, d = keys.shape
    right = keys.new_zeros(codebooks, width_of(d), number)
    right[:, :d] = -keys.transpose(1, 2)
    right[:, d] = (keys * keys).sum(2) / 2
    return right


def nearest(
    queries: Float32[Tensor, "C N e"], products: Float32[Tensor, "C e K"], top: int = 1
) -> Int64[Tensor, "C N top"]:
    """Ids of the keys with the smallest scores; ties go to the smaller id."""
    step = max(1, SCRATCH // (queries.shape[1] * products.shape[2]))
    nearest_ids = []
    for start in range(0, len(queries), step):
        scores = torch.bmm(queries[start : start + step], products[start : start + step])
        nearest_ids.append(
            scores.argmin(2, keepdim=True) if top == 1 else scores.argsort(dim=2, stable=True)[:, :, :top]
        )
    return torch.cat(nearest_ids)


class DeviceSelector:
    """The frozen part of a bottleneck on a device.

    Args:
        maps: all projections side by side [D, C * d].
    """

    def __init__(
        self,
        center: Float32[np.ndarray, " D"],
        maps: Float32[np.ndarray, "D M"],
        keys: Float32[np.ndarray, "C K d"],
        device: torch.device,
    ) -> None:
        self._device = device
        self._center, self._map = (torch.from_numpy(array).to(device) for array in (center, maps))
        self._open = right_hand(torch.from_numpy(keys).to(device))
        self._codebooks, self._keys, self._d = keys.shape

    def select(
        self, features: Float32[np.ndarray, "N D"] | Float32[Tensor, "N D"], closed: Bool[np.ndarray, "C K"], top: int
    ) -> UInt16[np.ndarray, "N C top"]:
        """Ids of each row's nearest keys that aren't closed, nearest first; the rows may be on the device already."""
        rows = torch.as_tensor(features)
        block = 4 * (rows.shape[1] + 2 * self._codebooks * width_of(self._d)) * ROWS
        block += 16 * min(SCRATCH, self._codebooks * ROWS * self._keys) * (1 if top == 1 else 4)
        needed = 4 * len(rows) * (rows.shape[1] + self._codebooks * top) + block
        what = f"selecting keys of {len(rows):,} rows"
        with memory_for(self._device, needed, what, "give fewer rows at once, or give `device` cpu"), full_float32():
            rows, products = rows.to(self._device), self.products(closed)
            chosen = rows.new_empty((len(rows), self._codebooks, top), dtype=torch.int16)
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                ids = nearest(self.queries(some), products, top)
                chosen[start : start + ROWS] = ids[:, : len(some)].transpose(0, 1)  # int16 has uint16's bits
            return chosen.cpu().numpy().view(np.uint16)

    def products(self, closed: Bool[np.ndarray, "C K"]) -> Float32[Tensor, "C e K"]:
        """Right-hand sides of the products: infinity in place of |k|^2 / 2 where a key is closed."""
        right = self._open.clone()
        right[:, self._d].masked_fill_(torch.from_numpy(closed).to(self._device), torch.inf)
        return right

    def shut(self, products: Float32[Tensor, "C e K"]) -> Bool[Tensor, "C K"]:
        """Which keys these products close."""
        return torch.isinf(products[:, self._d])

    def queries(self, rows: Float32[Tensor, "n D"]) -> Float32[Tensor, "C R e"]:
        """The rows' queries, at most ROWS of them, and those of zeros after them."""
        padded = rows.new_zeros(ROWS, rows.shape[1])
        padded[: len(rows)] = rows - self._center
        places = (padded @ self._map).reshape(ROWS, self._codebooks, self._d)
        queries = places.new_zeros(self._codebooks, ROWS, width_of(self._d))
        queries[:, :, : self._d] = places.transpose(0, 1)
        queries[:, :, self._d] = 1
        return queries


class DeviceRows:
    """Rows on a device whose keys are asked for again and again, while ever other keys are closed.

    Args:
        ids: what they select with no key closed that is open then.
    """

    def __init__(
        self,
        selector: DeviceSelector,
        features: Float32[np.ndarray, "N D"],
        ids: UInt16[np.ndarray, "N C top"],
        device: torch.device,
    ) -> None:
        self._selector, self._top = selector, ids.shape[2]
        rows = torch.from_numpy(features).to(device)
        with full_float32():
            self._queries = [selector.queries(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
        self._ids = torch.from_numpy(ids.astype(np.int32)).to(device)
        self._books = torch.arange(ids.shape[1], device=device)[:, None]

    def reselect(self, closed: Bool[np.ndarray, "C K"]) -> Int32[Tensor, "N C top"]:
        """Their ids, on the device; looked for again only where a key that they selected is closed."""
        products = self._selector.products(closed)
        with full_float32():
            chosen = torch.cat([nearest(queries, products, self._top) for queries in self._queries], 1)
        ids = chosen[:, : len(self._ids)].transpose(0, 1).to(torch.int32)
        stale = self._selector.shut(products)[self._books, self._ids.long()].any(2, keepdim=True)
        return torch.where(stale, ids, self._ids)
