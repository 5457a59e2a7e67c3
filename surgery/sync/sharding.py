"""Tuning of a model whose weights are split over the workers: for models that one device doesn't hold.

Each worker takes its part of every batch, as in data parallel, and holds its rows of every tensor, with their gradients and the
optimizer's state. Nobody can go on without the others' rows, so a worker that dies ends the run, which goes on from its state.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import Model, load_model
from surgery.checkpoints.sharding import load_sharded
from surgery.errors import OptionError, SurgeryError
from surgery.sync.pulse import SILENCE, Watch
from surgery.sync.together import SyncRecipe, Together, states_in
from surgery.sync.workers import WorkerLostError, Workers

_WAITS = timedelta(minutes=10)  # that a collective waits for others, who do the same work


@contextmanager
def mesh_of(workers: Workers, device: torch.device) -> Iterator[DeviceMesh]:
    """Yield the workers as a mesh, which models are split over; the end of the block is the workers' last step together.

    Raises WorkerEndedError where one of them ended.
    """
    workers.meet()  # one that was refused before isn't waited for
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=workers.apart("sharded"),
        rank=workers.rank,
        world_size=workers.count,
        timeout=_WAITS,
    )
    try:
        with warnings.catch_warnings(), unbroken(workers):
            # Outputs that are views are written to by nobody here.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
            yield init_device_mesh(device.type, (workers.count,))
            workers.meet()
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def unbroken(workers: Workers | None) -> Iterator[None]:
    """Say that another worker ended where that is why something broke, whatever a library made of it.

    Raises WorkerEndedError.
    """
    try:
        yield
    except (RuntimeError, SurgeryError, WorkerLostError) as error:
        if workers is None or isinstance(error, OptionError) or not _is_gone(workers):
            raise
        workers.refuse()


@contextmanager
def loaded(
    checkpoint: Checkpoint,
    names: Sequence[str],
    workers: Workers | None,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    mixed: torch.dtype | None = None,
) -> Iterator[Model]:
    """Yield a checkpoint's model: split over the workers, where there are any.

    Args:
        names: the tensors that gradients will be asked for.
        mixed: what a split model computes in, where that isn't what its weights are held in.
    """
    if workers is None:
        yield load_model(checkpoint, device=device, dtype=dtype)
        return
    with mesh_of(workers, device) as mesh:
        yield load_sharded(checkpoint, mesh, names, device=device, dtype=dtype, mixed=mixed, in_turn=workers.meet)


def _is_gone(workers: Workers) -> bool:
    """Whether some worker has ended, which may take a moment to see."""
    watch = Watch(workers.store, workers.timeout)
    until = time.monotonic() + 2 * SILENCE  # which is what a worker elsewhere takes
    while time.monotonic() < until:
        if workers.store.check(["failed"]) or any(watch.gone(each) for each in workers.members):
            return True
        time.sleep(0.1)
    return False


class Sharded(Together):
    """A training loop's part in a run whose model is split over the workers."""

    def __init__(self, workers: Workers, recipe: SyncRecipe, rates: Sequence[float]) -> None:
        self._share(workers, recipe, rates)
        self._steps = 0

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return self._steps

    def add_gradients(self, loss: float) -> float:
        """Add losses up over the workers; gradients are, by the model."""
        return sum(value for (value,) in self.workers.gather([loss]))

    def after_step(self, loss: float | None = None) -> bool:
        """Count a step; all workers have the same weights now, each its part."""
        self._steps += 1
        return True

    def to_go_on_from(self, folder: Path) -> Path | None:
        """This worker's state of the last step that all have one of; None where there is none."""
        states = states_in(folder)
        held = [set(states.get(number, ())) for number in self.workers.members]
        step = max(set.intersection(*held), default=0)
        self.workers.meet()  # all have looked
        for later in states.get(self.workers.me, []):
            if later > step:
                self.file(folder, later).unlink(missing_ok=True)
        return self.file(folder, step) if step else None

    def finish(self) -> None:
        """Do nothing: there is nothing left to average."""

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        return {"step": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._steps = state["step"]

    def content(self) -> dict[str, Any]:
        """What the report says of the workers, as JSON."""
        return {"recipe": asdict(self.recipe), "workers": self.workers.count}
