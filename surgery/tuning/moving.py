"""Which numbers an optimiser moves: whole tensors of a model, all but some of their weights, or a region's weights alone."""

from collections.abc import Sequence

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
        self.values: dict[str, nn.Parameter] = {name: model.parameters[name] for name in names}
        for value in self.values.values():
            value.requires_grad_(True)
        kept = {} if frozen is None else {name: frozen.indices[name] for name in names if name in frozen.indices}
        self._frozen = Region(kept)
        self._kept = self._frozen.gather(self.values)

    def before_step(self) -> None:
        """Drop the gradients of weights that are kept: they count for nothing, not for clipping either."""
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
        self._model, self._region = model, region
        self.values: dict[str, nn.Parameter] = {
            name: nn.Parameter(value) for name, value in region.gather(model.parameters).items()
        }
        for name, index in region.indices.items():
            parameter = model.parameters[name].requires_grad_(True)
            place = index.to(parameter.device)

            def take(parameter: Tensor, name: str = name, place: Tensor = place) -> None:
                assert parameter.grad is not None
                value, found = self.values[name], parameter.grad.view(-1)[place]
                value.grad = found if value.grad is None else value.grad + found
                parameter.grad = None

            parameter.register_post_accumulate_grad_hook(take)

    def before_step(self) -> None:
        """Do nothing: the gradients are there."""

    def after_step(self) -> None:
        """Put the values into the model."""
        with torch.no_grad():
            self._region.scatter(self._model.parameters, self.values)


Moving = WholeTensors | RegionWeights


def moving(model: Model, names: Sequence[str], only: Region | None = None, outside: Region | None = None) -> Moving:
    """What is to be trained: a region's weights alone, or the tensors `names`, with those of `outside` kept."""
    return WholeTensors(model, names, outside) if only is None else RegionWeights(model, only)
