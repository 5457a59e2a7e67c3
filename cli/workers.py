"""Commands under torchrun: their options, who writes and speaks, and one sentence for a mistake of all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from surgery.sync.together import SyncRecipe
    from surgery.sync.workers import Workers

_PANEL = "Under torchrun"
# Commands that know what to do there, by their words.
_SHARED = ("tune", "graft", "pcfg pretrain", "pcfg sample", "bottleneck fit", "select", "probe", "emergence measure")
_NOT_SHARED = ("tune replay", "select score", "select show")

SyncKind = Annotated[
    str | None,
    typer.Option(
        "--sync",
        help="When workers average weights: qsr, cubic, constant or post-local.",
        show_default="data parallel",
        rich_help_panel=_PANEL,
    ),
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard",
        help="Split the model over the workers, for one that a single device doesn't hold.",
        rich_help_panel=_PANEL,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        help="Share of data parallel's bytes: alpha, or H, follows from it.", show_default=False, rich_help_panel=_PANEL
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="H is (alpha / rate)^2, with cubic ^3.", show_default=False, rich_help_panel=_PANEL),
]
H = Annotated[int, typer.Option("--h", min=1, help="H in warm-up and the least after it.", rich_help_panel=_PANEL)]
HMax = Annotated[
    int | None, typer.Option(min=1, help="Most steps of a round.", show_default="no limit", rich_help_panel=_PANEL)
]


def recipe(
    sync: str | None, alpha: float | None, budget: float | None, h: int, h_max: int | None, shard: bool = False
) -> "SyncRecipe | None":
    """How workers share a training; None without a launcher.

    Raises OptionError for `--sync` or `--shard` without one, or both.
    """
    from surgery.errors import OptionError
    from surgery.sync.together import SyncRecipe

    if shard and sync is not None:
        raise OptionError("--sync averages whole models, and --shard splits one: give one of them")
    made = SyncRecipe("sharded" if shard else sync or "data-parallel", alpha, h, h_max, budget)
    if launched():
        return made
    if shard or sync is not None:
        raise OptionError(
            f"{'--shard' if shard else f'--sync {sync}'} is for several workers, and no launcher started this one: torchrun --nproc-per-node 4 -m surgery ..."
        )
    return None


def launched() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def count() -> int:
    """Number of workers that a launcher started, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def is_shared(arguments: Sequence[str]) -> bool:
    """Whether the command of these arguments has work for several workers."""
    words = [" ".join(arguments[:count]) for count in (1, 2)]
    return "--dry-run" not in arguments and any(each in _SHARED for each in words) and words[1] not in _NOT_SHARED


def alone(command: str) -> None:
    """Refuse several workers for a command that has work for one."""
    from surgery.errors import OptionError

    if count() > 1:
        raise OptionError(f"{command} runs in one process, and {count()} were started: leave out torchrun")


def device(name: str | None) -> str | None:
    """The device that is named, or this worker's card where there are some."""
    if name is not None or not launched():
        return name
    import torch

    return (
        f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        if torch.cuda.is_available()
        else None
    )


@contextmanager
def meet(recipe: "SyncRecipe | None") -> "Iterator[Workers | None]":
    """Yield the workers that the launcher started, or None without one; the end of the block is the run's."""
    if recipe is None:
        yield None
        return
    from cli import render
    from surgery.sync.workers import Workers

    crew = Workers.launched()
    render.speak(crew.first)
    yield crew
    if is_first(crew):
        crew.finish()


@contextmanager
def by_rank() -> Iterator[None]:
    """Share the work in the block between the workers that a launcher started, and speak on the first."""
    from surgery.sync import ranks

    if count() == 1:
        yield
        return
    from cli import render
    from surgery.sync.workers import Workers

    crew = Workers.launched()
    render.speak(crew.first)
    with ranks.by_rank(crew):
        yield


def is_first(crew: "Workers | None") -> bool:
    """Whether this process is the one that writes and speaks; it may become so when others die."""
    from cli import render

    first = crew is None or crew.first
    render.speak(first)
    return first
