"""Passes captured as CUDA graphs: on a card, launching a small model's thousands of kernels takes longer than running them.

Charts have a recorder of their own (`pcfg.dense.cuda_graphs`). It shares torch's few lines of capturing with this one and
little else: charts are read later and in part, so it keeps results in place and counts bytes; a pass is read at once and
whole, so it is copied out here, gradients and all, and graphs are counted.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from surgery.errors import first_line

Returned = TypeVar("Returned")

_KEPT = 4  # graphs of one simulation; each keeps its activations, its outputs and the weights it learnt
_LARGEST = 1 << 30  # bytes of weights; beyond, the kernels take longer than their launches, and the memory is missed


class Captured(NamedTuple):
    """A graph, the tensors it reads and the tensors it writes."""

    replay: Callable[[], None]
    inputs: tuple[Tensor | None, ...]
    outputs: Any


class Graphs:
    """The passes of one simulation: a shape's first pass runs as it is, the second is captured, later ones are replayed.

    So a shape that comes once costs no capture, and a text whose windows are alike pays it once. A capture that fails
    is not tried again; `reason` keeps why.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._seen: set[Hashable] = set()
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()

    def run(
        self,
        key: Hashable,
        function: Callable[..., Returned],
        inputs: Sequence[Tensor | None],
        copy: Callable[[Returned], Returned],
        weights: int,
    ) -> Returned:
        """`function(*inputs)`, on a card by a graph where that pays.

        Args:
            key: whatever else the function depends on; the inputs' shapes are added.
            function: never waits for the device, and leaves its inputs as they are.
            copy: of what the function returns, so that a later pass leaves it alone.
            weights: bytes of the model.
        """
        given = next(tensor for tensor in inputs if tensor is not None)
        if not pays(given.device, weights) or self.reason is not None:
            return function(*inputs)
        key = (key, tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs))
        if key not in self._captured:
            if key not in self._seen:
                self._seen.add(key)
                return function(*inputs)
            try:
                self._captured[key] = record(function, inputs)
            except RuntimeError as error:  # out of memory, or an operation that can't be captured
                self.reason = first_line(error)
                self._captured.clear()
                return function(*inputs)
            if len(self._captured) > _KEPT:
                self._captured.popitem(last=False)
        self._captured.move_to_end(key)
        replay, static, outputs = self._captured[key]
        for mine, theirs in zip(static, inputs, strict=True):
            if mine is not None and theirs is not None:
                mine.copy_(theirs)
        replay()
        return copy(outputs)


def pays(device: torch.device, weights: int) -> bool:
    """Whether launches cost more than the memory that a graph keeps."""
    return device.type == "cuda" and weights <= _LARGEST


def record(function: Callable[..., Any], inputs: Sequence[Tensor | None]) -> Captured:
    """Capture `function` with inputs of its own; what it returns is filled by each replay."""
    static = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
    device = next(tensor.device for tensor in static if tensor is not None)
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up at a first call, which can't be captured
            function(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(*static)
    return Captured(graph.replay, static, outputs)
