"""Averaging tensors over workers, in place and a bucket at a time, so that a worker's death midway leaves nothing half done.

A bucket is summed in a copy of its own and written back once it is whole. When the group breaks, each worker knows how many
buckets it has written: those that only some have are sent to the others, the rest is averaged among who is left. So all end
with the same bits, whatever had come of the dead worker's part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.errors import OptionError
from surgery.sync.workers import WorkerLostError, Workers

BUCKET = 25 << 20


@dataclass(frozen=True)
class _Piece:
    """Part of a tensor, as a view of one dimension, and of what is subtracted from it."""

    values: Tensor
    origin: Tensor | None

    def read(self, into: Tensor) -> None:
        into.copy_(self.values)
        if self.origin is not None:
            into.sub_(self.origin)

    def write(self, mean: Tensor) -> None:
        if self.origin is not None:  # what moved nowhere keeps its bits
            mean = torch.where(mean == 0, self.origin.to(mean.dtype), mean + self.origin)
        self.values.copy_(mean)


Bucket = list[_Piece]


class Averager:
    """Averages of tensors over workers.

    Attributes:
        regroup: called with how many buckets are written when the group broke; makes the next one, and returns the same
            number of each of its members, by place.
        largest: bytes of the largest bucket so far, which is all the memory that averaging takes.
    """

    def __init__(self, workers: Workers, regroup: Callable[[int], list[int]], bucket: int = BUCKET) -> None:
        self.workers, self.regroup, self.bucket = workers, regroup, bucket
        self.largest = 0

    def average(
        self, tensors: Sequence[Tensor], origins: Sequence[Tensor] | None = None, *, total: bool = False
    ) -> Sequence[Bucket]:
        """Replace tensors by their mean over the workers, in place, the same bits on each; the buckets that were written.

        Args:
            tensors: the same shapes and dtypes on every worker. What is in 16 bits is added up in float32.
            origins: as many; then differences from them are averaged, and what differs on no worker keeps its bits.
            total: sums instead of means.
        """
        buckets, done = list(self._buckets(tensors, origins)), 0
        if self.workers.count == 1:
            return buckets
        while done < len(buckets):
            try:
                self._average(buckets[done], 1 if total else self.workers.count)
                done += 1
            except WorkerLostError:
                done = self._repair(buckets, done)
        return buckets

    def hand_over(self, tensors: Sequence[Tensor], root: int, *, write: bool) -> None:
        """Give those who `write` the tensors of the worker whose place is `root`, in place. Raises WorkerLostError."""
        for bucket in self._buckets(tensors, None):
            self._send(bucket, root, write=write)

    def even_out(self, buckets: Sequence[Bucket], written: Sequence[int]) -> Iterator[int]:
        """Bring all members of a group to where the furthest one is, a bucket at a time; each bucket's number. Raises WorkerLostError.

        Args:
            written: how many buckets each member has written, by place.
        """
        done = written[self.workers.rank]
        for number in range(min(written), max(written)):
            self._send(buckets[number], written.index(max(written)), write=done <= number)
            yield number

    def _repair(self, buckets: Sequence[Bucket], done: int) -> int:
        """Make a new group and even it out; how many buckets are written then."""
        while True:
            try:
                for number in self.even_out(buckets, self.regroup(done)):
                    done = max(done, number + 1)
                return done
            except WorkerLostError:
                continue

    def _average(self, pieces: Bucket, count: int) -> None:
        whole = self._read(pieces)
        self.workers.all_reduce(whole)
        if count > 1:
            whole.div_(count)
        self._write(pieces, whole)

    def _send(self, pieces: Bucket, root: int, *, write: bool) -> None:
        pieces = [_Piece(piece.values, None) for piece in pieces]  # values as they are, not differences
        whole = self._read(pieces)
        self.workers.broadcast(whole, root)
        if write and self.workers.rank != root:
            self._write(pieces, whole)

    @torch.no_grad()
    def _read(self, pieces: Bucket) -> Tensor:
        size = sum(piece.values.numel() for piece in pieces)
        whole = torch.empty(size, dtype=_summed(pieces[0].values.dtype), device=pieces[0].values.device)
        self.largest = max(self.largest, whole.nbytes)
        for piece, part in zip(pieces, whole.split([piece.values.numel() for piece in pieces]), strict=True):
            piece.read(part)
        return whole

    @torch.no_grad()
    def _write(self, pieces: Bucket, whole: Tensor) -> None:
        for piece, part in zip(pieces, whole.split([piece.values.numel() for piece in pieces]), strict=True):
            piece.write(part)

    def _buckets(self, tensors: Sequence[Tensor], origins: Sequence[Tensor] | None) -> Iterator[Bucket]:
        """Tensors cut into buckets, each of one device and one dtype of sums."""
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor | None]]] = {}
        for number, tensor in enumerate(tensors):
            kind = tensor.device, _summed(tensor.dtype)
            origin = None if origins is None else flat(origins[number])
            kinds.setdefault(kind, []).append((flat(tensor), origin))
        for (_, dtype), flats in kinds.items():
            most = max(1, self.bucket // dtype.itemsize)
            pieces, room = [], most
            for values, origin in flats:
                first = 0
                while first < values.numel():
                    part = slice(first, first + room)
                    pieces.append(_Piece(values[part], None if origin is None else origin[part]))
                    room -= pieces[-1].values.numel()
                    first = part.stop
                    if not room:
                        yield pieces
                        pieces, room = [], most
            if pieces:
                yield pieces


def _summed(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def flat(tensor: Tensor) -> Tensor:
    """A tensor's numbers as a view of one dimension, in the order of memory.

    Raises OptionError for a tensor that has no such view, or that holds a shard of one.
    """
    if hasattr(tensor, "to_local"):
        raise OptionError(
            "a parameter is a shard (DTensor, FSDP), which workers don't have the same part of: average whole parameters, or leave sharded ones to FSDP"
        )
    found = tensor.detach()
    order = sorted(range(found.dim()), key=lambda dim: -found.stride()[dim])
    try:
        return found.permute(order).view(-1)
    except RuntimeError:
        raise OptionError(
            f"a parameter of shape {tuple(tensor.shape)} has holes in memory or repeats itself, and can't be averaged in place: make it contiguous"
        ) from None
