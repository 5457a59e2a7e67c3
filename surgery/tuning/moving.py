"""Which numbers an optimiser moves: whole tensors of a model, all but some of their weights, or a region's weights alone."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from surgery.checkpoints.models import Model
from surgery.checkpoints.region import Region


class WholeTensors:
    """A model's own parameters, some of whose weights may be kept at the values that they have now.

    Attributes:
        values: what an optimiser is given, by tensor.
    """

    def __init__(self, model: Model, names: Sequence[str], frozen: Region | None = None) -> None:
        self._model = model
        self.values: dict[str, nn.Parameter] = {name: model.movable(name) for name in names}
        kept = {} if frozen is None else {name: frozen.indices[name] for name in names if name in frozen.indices}
        self._frozen = Region(model.own(kept))
        self._kept = self._frozen.gather(self.values)

    def before_step(self) -> None:
        """Drop the gradients of weights that are kept: they count for nothing, not for clipping either."""
        self._model.collect(self.values)
        for name, index in self._frozen.indices.items():
            if (gradient := self.values[name].grad) is not None:
                gradient.view(-1)[index.to(gradient.device)] = 0.0

    def after_step(self) -> None:
        """Give the weights that are kept their exact values."""
        self._frozen.scatter(self.values, self._kept)


class RegionWeights:
    """A region's weights as flat parameters of their own. Each whole gradient is dropped as soon as it is read.

    Attributes:
        values: what an optimiser is given, by tensor: [weights there], float32.
    """

    def __init__(self, model: Model, region: Region) -> None:
        self._model, self._region = model, Region(model.own(region.indices))
        self._rows = {name: model.movable(name) for name in region.indices}
        self.values: dict[str, nn.Parameter] = {
            name: nn.Parameter(value) for name, value in self._region.gather(self._rows).items()
        }
        for name, parameter in self._rows.items():
            parameter.register_post_accumulate_grad_hook(partial(self._take, name=name))

    def _take(self, parameter: Tensor, name: str) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and name in self.values:
            value, found = self.values[name], gradient.view(-1)[self._region.indices[name].to(gradient.device)]
            value.grad = found if value.grad is None else value.grad + found

    def before_step(self) -> None:
        """Take the gradients that no hook was told of."""
        self._model.collect(self._rows)
        for name, parameter in self._rows.items():
            self._take(parameter, name)

    def after_step(self) -> None:
        """Put the values into the model."""
        with torch.no_grad():
            self._region.scatter(self._rows, self.values)


Moving = WholeTensors | RegionWeights


def moving(model: Model, names: Sequence[str], only: Region | None = None, outside: Region | None = None) -> Moving:
    """What is to be trained: a region's weights alone, or the tensors `names`, with those of `outside` kept."""
    return WholeTensors(model, names, outside) if only is None else RegionWeights(model, only)
