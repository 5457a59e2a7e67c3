"""Per-example gradients of linear layers, a batch at a time: the factors, what goes in and the gradient of what comes out,
are caught in one backward pass and multiplied layer by layer, so that no stack of whole gradients is ever held."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surgery.checkpoints.models import Model, steady_attention
from surgery.errors import CheckpointError, first_line
from surgery.tasks.objectives import Lesson, Objective
from surgery.tasks.readout import alike

# Called with a layer's name and its weight's gradient for each example of a batch, once a batch.
Sink = Callable[[str, Float[Tensor, "batch out in"]], None]


def gradients(
    model: Model, objective: Objective, rows: Sequence[Lesson], layers: Mapping[str, nn.Linear], batch_size: int,
    sink: Callable[[Sequence[int]], Sink],
) -> Iterator[tuple[list[int], Float[Tensor, " batch"]]]:  # fmt: skip
    """Hand every layer's gradient of each row's own loss to a sink, batch by batch; yields each batch's numbers and losses.

    Rows of like length share a batch. The result is that of a backward pass for each row alone, up to rounding.

    Args:
        layers: linear layers without biases, by name.
        sink: gives what takes a batch's gradients, for the numbers of its rows.

    Raises:
        CheckpointError: a layer that isn't given a row a line (mixtures of experts), or a model without gradients.
    """
    tokens = [row.tokens for row in rows]
    order = sorted(range(len(rows)), key=lambda number: (len(rows[number].tokens.ids), number))
    for start in range(0, len(order), batch_size):
        for numbers in alike(model, tokens, order[start : start + batch_size]):
            batch = [rows[number] for number in numbers]
            yield numbers, _backward(model, objective, batch, layers, sink(numbers))


def _backward(
    model: Model, objective: Objective, batch: Sequence[Lesson], layers: Mapping[str, nn.Linear], sink: Sink
) -> Tensor:
    with _caught(layers, len(batch), max(len(row.tokens.ids) for row in batch), sink) as caught, torch.enable_grad():
        with steady_attention() if model.device.type == "cuda" else nullcontext():
            losses = objective.losses(model, batch)
            if not losses.requires_grad:
                raise CheckpointError(
                    f"{model.checkpoint}: no layer that was asked for is used: choose other `targets`"
                )
            try:
                losses.sum().backward()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # what autograd raises, whatever the reason
                raise CheckpointError(
                    f"{model.checkpoint} gives no gradients in evaluation mode ({first_line(error)}): use another architecture"
                ) from error
        caught.finish()
    return losses.detach()


class _Caught:
    """A batch's factors, until both of a layer's are there."""

    def __init__(self, layers: Mapping[str, nn.Linear], rows: int, tokens: int, sink: Sink) -> None:
        self.layers, self.rows, self.tokens, self.sink = layers, rows, tokens, sink
        self.open: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}

    def forward(self, name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()  # the first layer, before which nothing has a gradient
        given = inputs[0].detach()
        self.open[name] = self.open.get(name, 0) + 1
        output.register_hook(lambda upper: self.backward(name, given, upper))

    def backward(self, name: str, given: Tensor, upper: Tensor) -> None:
        lower, upper = self.by_row(name, given), self.by_row(name, upper)
        product = torch.bmm(upper.transpose(1, 2), lower)
        # A layer that is used twice (ALBERT's) has the sum for its gradient.
        product = self.sums.pop(name) + product if name in self.sums else product
        self.open[name] -= 1
        if self.open[name]:
            self.sums[name] = product
        else:
            del self.open[name]
            self.sink(name, product)

    def by_row(self, name: str, states: Tensor) -> Tensor:
        """States [rows, tokens, width]; some models lay all rows' tokens in one line."""
        if states.shape[0] == self.rows and states.ndim == 3:
            return states
        if states.ndim == 2 and states.shape[0] == self.rows * self.tokens:
            return states.view(self.rows, self.tokens, -1)
        raise CheckpointError(
            f"the layer {name} is given states of shape {list(states.shape)} for {self.rows} rows of {self.tokens} tokens, so rows can't be told apart: leave it out by `targets`"
        )

    def finish(self) -> None:
        """Give zeros for layers through which no gradient came."""
        for name in sorted(set(self.open)):
            layer = self.layers[name]
            zero = torch.zeros(self.rows, layer.out_features, layer.in_features, device=layer.weight.device)
            self.sink(name, self.sums.pop(name, zero))


@contextmanager
def _caught(layers: Mapping[str, nn.Linear], rows: int, tokens: int, sink: Sink) -> Iterator[_Caught]:
    caught = _Caught(layers, rows, tokens, sink)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _, inputs, output: caught.forward(name, inputs, output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def stacked(
    model: Model, objective: Objective, rows: Sequence[Lesson], layers: Mapping[str, nn.Linear], batch_size: int = 16
) -> dict[str, Float[Tensor, "rows weights"]]:
    """All rows' gradients by layer, on the CPU: for small numbers of rows, and as what sketches are held to."""
    found = {name: torch.zeros(len(rows), layer.out_features * layer.in_features) for name, layer in layers.items()}

    def sink(numbers: Sequence[int]) -> Sink:
        def take(name: str, each: Tensor) -> None:
            found[name][list(numbers)] = each.flatten(1).float().cpu()

        return take

    for _ in gradients(model, objective, rows, layers, batch_size, sink):
        pass
    return found
