"""numba's compiler, which keeps what it compiled where there is room for it."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` without the interpreter's lock; kept for the next run, unless neither package nor home can be written."""

    def wrap(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no place to keep it
            return njit(nogil=True, **options)(function)

    return wrap
