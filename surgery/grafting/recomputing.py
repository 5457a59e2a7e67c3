"""Gradients in less memory: the repeated blocks keep their inputs alone, and are run again when their turn comes (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Within it the outermost lists of blocks are run again in the backward pass; the gradients are the same bits.

    The library's own switch for this works in training mode only, where dropout would be on.
    """
    blocks = [block for blocks in _outermost(module) for block in blocks]
    for block in blocks:
        block.forward = partial(_again, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _again(forward: Any, *given: Any, **named: Any) -> Any:
    return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **named)


def _outermost(module: nn.Module) -> list[nn.ModuleList]:
    """Lists of modules that lie in no other list: a model's blocks, but not the experts within one."""
    found: list[nn.ModuleList] = []
    for child in module.children():
        found += [child] if isinstance(child, nn.ModuleList) else _outermost(child)
    return found
