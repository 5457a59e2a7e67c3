"""Damaged checkpoints: noise of a known size on the weights, to see what an evaluation can see."""

from pathlib import Path

import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.errors import OptionError


def damage(source: str | Path | Checkpoint, size: float, folder: Path, seed: int = 0) -> Path:
    """Write a copy of a checkpoint with Gaussian noise on its block weights into an empty folder.

    Args:
        size: standard deviation of the noise, in standard deviations of each tensor's own weights.

    Raises:
        OptionError: a size that isn't above 0.
    """
    if not size > 0:
        raise OptionError(f"`size` {size} of the noise must be above 0, such as 0.05")
    checkpoint = open_checkpoint(source)
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in checkpoint.block_weights():
        weight = checkpoint.tensor(name).float()
        spread = weight.std() if weight.numel() > 1 else torch.ones(())
        tensors[name] = weight + size * spread * torch.randn(weight.shape, generator=random)
    rewrite(checkpoint, tensors, folder)
    return folder
