"""BatchNorm's running statistics, estimated anew: those of averaged weights aren't the average of the workers' own."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_statistics(model: nn.Module) -> bool:
    """Whether a model keeps running statistics."""
    return bool(_kept(model))


@torch.no_grad()
def estimate_anew(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set running means and variances to the averages over batches of what each batch has.

    Args:
        batches: what the model is called with: a batch, a tuple of arguments, or a table of them.
    """
    norms, training = _kept(model), model.training
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for plain averages
    model.train()
    try:
        for batch in batches:
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, tuple) else model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


def _kept(model: nn.Module) -> list[_BatchNorm]:
    return [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
