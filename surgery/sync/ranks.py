"""Work shared by rank whose result has the same bytes as one process's: each rank makes its part, and the parts are put together.

A command opens `by_rank`; functions inside it ask for their part of a list and share arrays of which each row is somebody's.
Without a launcher there is one part, and nothing is shared.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from surgery.errors import OptionError

if TYPE_CHECKING:
    from surgery.sync.workers import Workers

_Made = TypeVar("_Made")
_PIECE = 1 << 22  # numbers at once
_here: "Workers | None" = None


class _PartDoneError(Exception):
    """This rank's part is made, and another one goes on with the whole."""


@contextmanager
def by_rank(workers: "Workers | None") -> Iterator[None]:
    """Share the work in the block; ranks but the first leave it where `first_goes_on` says so."""
    global _here
    _here = workers
    try:
        yield
    except _PartDoneError:
        pass
    finally:
        _here = None
        if workers is not None:
            workers.leave()


def my_part() -> slice:
    """This rank's part of a list: every so many, from its own place on."""
    return slice(None) if _here is None else slice(_here.rank, None, _here.count)


def share(array: np.ndarray, mine: Any) -> None:
    """Fill the rows of an array that other ranks made, in place and bit for bit.

    Args:
        array: four-byte numbers, in one piece; what this rank didn't make may hold anything.
        mine: indices of the rows that it made.
    """
    if _here is None:
        return
    import torch

    own = array[mine].copy()
    array[...] = 0
    array[mine] = own
    _here.meet()
    bits = torch.from_numpy(array.view(np.int32).reshape(-1))
    for piece in bits.split(_PIECE):  # sums of bits, of which all but one worker's are 0
        _here.add_up(piece)


@contextmanager
def first_holds(opening: AbstractContextManager[Path | None], folder: str | Path | None) -> Iterator[Path | None]:
    """Yield the folder of a run's state, which the first rank opens and holds, and all write to.

    Raises OptionError where several ranks have no folder to share.
    """
    if folder is None and several():
        raise OptionError("several processes share their work through a folder: give `resume`")
    with opening if is_first() else nullcontext(None if folder is None else Path(folder)) as held:
        meet()
        yield held


def meet() -> None:
    """Wait until all ranks are here."""
    if _here is not None:
        _here.meet()


def first_goes_on(before: Callable[[], None] = meet) -> None:
    """End the block on all ranks but the first, once all are here."""
    if _here is None:
        return
    before()
    if not _here.first:
        raise _PartDoneError


def shared_out(count: int, work: Callable[[int], _Made]) -> list[_Made]:
    """`work(0)` to `work(count - 1)`, which leaves what it made where all ranks find it: each makes its part, the first goes on."""
    if several():
        for number in range(count)[my_part()]:
            work(number)
        first_goes_on()
    return [work(number) for number in range(count)]


def several() -> bool:
    """Whether there are other ranks."""
    return _here is not None and _here.count > 1


def is_first() -> bool:
    """Whether this rank is the one that writes."""
    return _here is None or _here.first
