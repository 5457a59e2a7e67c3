"""A check that a model can be learnt from: some give no gradients outside training mode, or none at all."""

from collections.abc import Callable, Sequence

import torch

from surgery.checkpoints.models import Model, first_line, steady_attention
from surgery.errors import CheckpointError
from surgery.tasks.readout import Encoded, Readout, collate


def check_gradients(model: Model, readout: Readout, names: Sequence[str], row: Encoded) -> None:
    """Run one example forwards and backwards, before anything expensive.

    Raises CheckpointError when no gradient reaches the tensors `names`.
    """
    check_reached(model, names, lambda: readout.logits(model.module, *collate(model, [row])).sum())


def check_reached(model: Model, names: Sequence[str], number: Callable[[], torch.Tensor]) -> None:
    """As `check_gradients`, of a number that the model gives."""
    reached: list[str] = []
    told = f"{model.checkpoint}: a {type(model.module).__name__}"
    try:
        with steady_attention(), model.taking(names, lambda name, _: reached.append(name)) as backward:
            backward(number())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what autograd raises, whatever the reason
        raise CheckpointError(
            f"{told} gives no gradients in evaluation mode ({first_line(error)}): use another architecture"
        ) from error
    if not reached:
        raise CheckpointError(f"{told} gives no gradients to the tensors that may move: use another architecture")
