"""Where the state of long work lies until its output is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from cli.render import print_error


@contextmanager
def state_beside(output: Path) -> Iterator[Path]:
    """Yield `<output>.partial`; it goes when the block ends well, and who interrupts the block is told of it."""
    state = output.absolute().with_name(f"{output.absolute().name}.partial")
    try:
        yield state
    except KeyboardInterrupt:
        if state.exists():
            print_error(f"interrupted: run the same command again to go on ({state} holds the state)")
        raise
    rmtree(state, ignore_errors=True)
