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
    reached = []

    def drop(parameter: torch.Tensor) -> None:
        reached.append(True)
        parameter.grad = None  # each as it comes: all of them would take as much memory as the model

    weights = [model.parameters[name].requires_grad_(True) for name in names]
    handles = [weight.register_post_accumulate_grad_hook(drop) for weight in weights]
    told = f"{model.checkpoint}: a {type(model.module).__name__}"
    try:
        with steady_attention():
            number().backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what autograd raises, whatever the reason
        raise CheckpointError(
            f"{told} gives no gradients in evaluation mode ({first_line(error)}): use another architecture"
        ) from error
    finally:
        for weight, handle in zip(weights, handles, strict=True):
            handle.remove()
            weight.requires_grad_(False)
    if not reached:
        raise CheckpointError(f"{told} gives no gradients to the tensors that may move: use another architecture")
