"""How a command keeps the state of long work beside its output, and tells who interrupts it how to go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.render import print_error


@contextmanager
def told_how_to_go_on(output: Path) -> Iterator[Path]:
    """Yield `<output>.partial`; who interrupts the block when it holds something is told so."""
    from surgery.resuming import state_folder

    state = state_folder(output)
    try:
        yield state
    except KeyboardInterrupt:
        if state.exists():
            print_error(f"interrupted: run the same command again to go on ({state} holds the state)")
        raise


@contextmanager
def state_beside(output: Path, writes: Callable[[], bool] = lambda: True) -> Iterator[Path]:
    """`told_how_to_go_on`, and the state goes when the block ends well in the process that `writes`."""
    from surgery.files import discard

    with told_how_to_go_on(output) as state:
        yield state
    if writes():
        discard(state)
