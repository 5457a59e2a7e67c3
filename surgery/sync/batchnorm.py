"""BatchNorm's running statistics, estimated anew: those of averaged weights aren't the average of the workers' own."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.errors import OptionError


def has_statistics(model: nn.Module) -> bool:
    """Whether a model keeps running statistics."""
    return bool(_kept(model))


@torch.no_grad()
def estimate_anew(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set running means and variances to the averages over batches of what each batch has.

    Norms in evaluation mode within a model in training are frozen, and keep theirs.

    Args:
        batches: what the model is called with: a batch, a tuple of arguments, or a table of them.

    Raises OptionError for no batches.
    """
    given = iter(batches)
    first = next(given, None)
    if first is None:
        raise OptionError(
            "there are no `batches` to estimate BatchNorm's statistics from: give some, or leave them out"
        )
    modes = {part: part.training for part in model.modules()}
    norms = [norm for norm in _kept(model) if norm.training or not model.training]
    frozen = [norm for norm in _kept(model) if norm not in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for plain averages
    model.train()
    for norm in frozen:
        norm.eval()
    try:
        for batch in chain([first], given):
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes.items():
            part.training = mode


def _kept(model: nn.Module) -> list[_BatchNorm]:
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
