"""Progress: the callback by which long work tells how far it is."""

from collections.abc import Callable

# Called with what is done, what there is to do, and a line that says what it is and how it goes.
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, line: str) -> None:
    """Ignore progress."""
