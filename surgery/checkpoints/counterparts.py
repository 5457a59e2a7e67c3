"""Pairs of tensors that play the same part in two checkpoints, and the check that a pair can be compared weight by weight."""

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.refusals import check_weight
from surgery.errors import CheckpointError


def counterparts(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    """Each tensor of the base -> the tensor of the tuned checkpoint that plays its part; those without one are left out.

    Names may differ by the body's prefix (`encoder.layer.0...` and `bert.encoder.layer.0...`), and of tied parameters
    (an embedding and the output matrix) each side may store another one.
    """
    ours, others = base.structure, tuned.structure
    theirs = {name.removeprefix(others.prefix): tensor for tensor, name in others.parameters.items()}
    pairs = {}
    for tensor, name in ours.parameters.items():
        # The parameter itself first: a checkpoint may store several that are tied.
        names = [mate.removeprefix(ours.prefix) for mate in (name, *ours.mates(name))]
        if held := [theirs[mate] for mate in names if mate in theirs]:
            pairs[tensor] = held[0]
    return pairs


def check_pair(base: Checkpoint, name: str, tuned: Checkpoint, other: str) -> None:
    """Refuse two tensors that can't be compared weight by weight, by name."""
    for checkpoint, tensor in ((base, name), (tuned, other)):
        if tensor not in checkpoint.entries:
            raise CheckpointError(f"{checkpoint} has no tensor for {name} of {base}: both must be one architecture")
        check_weight(checkpoint, tensor)
    if (ours := base.entries[name].shape) != (theirs := tuned.entries[other].shape):
        raise CheckpointError(
            f"tensor {name} is {ours} in {base}, but {theirs} in {tuned}: both must be one architecture"
        )
