"""Forward passes at weights that are moved along noise, made piece by piece as each module needs them.

One pass over a batch of [x; x] gives both sides of a central difference: each module applies W + eps z to the first half
and W - eps z to the second. No parameter is ever written, and no more than a few MiB of moved weights are there at once.
The published scheme (Malladi et al. 2023, algorithm 1) moves the weights in place, three times a step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.errors import CheckpointError, OptionError
from surgery.mezo.weights import SCRATCH, Shift, TunedTensor

_MOST = 256 << 20  # bytes of weights of a module of no known kind, all of which are moved at once
_TILE = 16  # rows of weights that are made together at least: what products are fast on


class ShiftedModel:
    """A model whose tuned tensors are read where `shift` stands.

    Args:
        module: in evaluation mode.
        tensors: what is tuned; each module that holds one is given a forward of its own until `close`.

    Raises:
        OptionError: dropout is on. CheckpointError: a module of a kind that can't be moved, by name.
    """

    def __init__(self, module: nn.Module, tensors: Sequence[TunedTensor]) -> None:
        self.module, self.tensors, self.shift = module, tensors, Shift()
        self.called: set[str] = set()
        device = tensors[0].parameter.device if tensors else None
        self.scratch = torch.empty(
            SCRATCH // 4, device=device
        )  # what a product's pieces are made in, one after the other
        self._known = {id(tensor.parameter): tensor for tensor in tensors}
        self._held: dict[str, nn.Module] = {}
        _check_dropout(module)
        parts = [(name, part) for name, part in module.named_modules() if self._tuned_in(part)]
        leaves = {own for _, part in parts if not any(True for _ in part.children()) for own in self._tuned_in(part)}
        for name, part in parts:
            # A head may name the bias of the product within it as its own.
            if not (any(True for _ in part.children()) and leaves.issuperset(self._tuned_in(part))):
                self._hold(name, part)

    def _tuned_in(self, part: nn.Module) -> set[int]:
        return {id(parameter) for parameter in part._parameters.values() if id(parameter) in self._known}

    def close(self) -> None:
        """Give the modules their own forward back."""
        for part in self._held.values():
            part.__dict__.pop("forward", None)
        self._held.clear()

    @contextmanager
    def at(self, scales: Sequence[float], rows: int, step: int = 0, direction: int = 0) -> Iterator[None]:
        """Move equal parts of a batch of so many rows by these scales within the block."""
        before, self.shift = self.shift, Shift(tuple(scales), step, direction, rows)
        try:
            yield
        finally:
            self.shift = before

    @property
    def unused(self) -> list[str]:
        """Modules with tuned tensors that no pass has called so far."""
        return sorted(set(self._held) - self.called)

    def _hold(self, name: str, part: nn.Module) -> None:
        own = type(part).forward
        if own is nn.Linear.forward:
            forward: Callable[..., Tensor] = _Product(self, part, 0, part.forward)
        elif type(part).__name__ == "Conv1D" and hasattr(part, "nf"):  # transformers', with weights [inputs, outputs]
            forward = _Product(self, part, 1, part.forward)
        elif own is nn.Embedding.forward and part.max_norm is None:
            forward = _Rows(self, part)
        else:
            _check_plain(name, part)
            forward = _Whole(self, part, part.forward)

        def moved(*inputs: Any, **more: Any) -> Any:
            self.called.add(name)
            if isinstance(forward, _Whole):
                return forward(name, inputs, more)
            return forward(self.parts(name, *inputs, **more))

        part.forward = moved
        self._held[name] = part

    def parts(self, name: str, input: Tensor) -> "Parts":
        """A module's input, a part for each scale."""
        count, rows = len(self.shift.scales), self.shift.rows
        if count == 1:
            return Parts(input, [input], None)
        if input.dim() and input.shape[0] % rows == 0:
            return Parts(input, list(input.chunk(count)), None)
        if input.dim() and input.shape[0] == 1:  # the same for all rows, as positions may be
            return Parts(input, [input] * count, rows // count)
        raise CheckpointError(
            f"module {name} is given {list(input.shape)} of a batch of {rows}, so that its halves can't be told apart: leave it out (`exclude`)"
        )

    def version(self, parameter: Tensor | None) -> Sequence[Tensor | None]:
        """A parameter for each scale, itself where it isn't tuned."""
        if parameter is None or id(parameter) not in self._known:
            return [parameter] * len(self.shift.scales)
        return self._known[id(parameter)].versions(self.shift)

    def tuned(self, parameter: Tensor) -> TunedTensor | None:
        """What is tuned of a parameter."""
        return self._known.get(id(parameter))


class Parts:
    """A module's input, whole and in parts; `repeat`: how many rows one row stands for that all parts share; else None."""

    def __init__(self, whole: Tensor, each: list[Tensor], repeat: int | None) -> None:
        self.whole, self.each, self.repeat = whole, each, repeat

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs of all parts as those of a batch."""
        if self.repeat:
            outputs = [output.expand(self.repeat, *output.shape[1:]) for output in outputs]
        return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs))


class _Product:
    """`nn.Linear`, whose outputs are rows of its matrix (axis 0), or transformers' `Conv1D`, where they are columns (1)."""

    def __init__(self, model: ShiftedModel, part: Any, axis: int, plain: Callable[[Tensor], Tensor]) -> None:
        self.model, self.part, self.axis, self.plain = model, part, axis, plain

    def __call__(self, parts: Parts) -> Tensor:
        weight, shift = self.part.weight, self.model.shift
        biases = self.model.version(self.part.bias)
        tuned = self.model.tuned(weight)
        if tuned is None:
            return parts.join([self._apply(x, weight, bias) for x, bias in zip(parts.each, biases, strict=True)])
        touched = tuned.touched(self.axis)
        outputs = weight.shape[self.axis]
        if touched is None:
            step = max(_TILE, SCRATCH // (4 * len(biases) * (weight.numel() // outputs)) // _TILE * _TILE)
            if outputs <= step:
                pieces = tuned.pieces(shift, self.axis, slice(0, outputs), self.model.scratch)
                return parts.join([self._apply(*given) for given in zip(parts.each, pieces, biases, strict=True)])
            made = [x.new_empty(*x.shape[:-1], outputs) for x in parts.each]
            units: list[Any] = [slice(first, min(outputs, first + step)) for first in range(0, outputs, step)]
        else:
            made = [self._apply(x, weight, bias) for x, bias in zip(parts.each, biases, strict=True)]
            step = max(_TILE, SCRATCH // (4 * len(biases) * (weight.numel() // outputs)))
            units = list(touched.split(step))
        for chosen in units:
            pieces = tuned.pieces(shift, self.axis, chosen, self.model.scratch)
            for x, output, piece, bias in zip(parts.each, made, pieces, biases, strict=True):
                output[..., chosen] = self._apply(x, piece, None if bias is None else bias[chosen])
        return parts.join(made)

    def _apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.axis == 0:
            return F.linear(x, weight, bias)
        flat = x.reshape(-1, x.shape[-1])
        product = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return product.view(*x.shape[:-1], weight.shape[1])


class _Rows:
    """`nn.Embedding`: only the rows that a batch asks for are made."""

    def __init__(self, model: ShiftedModel, part: Any) -> None:
        self.model, self.part = model, part

    def __call__(self, parts: Parts) -> Tensor:
        tuned = self.model.tuned(self.part.weight)
        assert tuned is not None, "a module is held for its tuned weight"
        rows, places = parts.whole.unique(return_inverse=True)
        pieces = tuned.pieces(self.model.shift, 0, rows)
        each = [places] * len(pieces) if parts.repeat else places.chunk(len(pieces))
        return parts.join([F.embedding(place, piece) for place, piece in zip(each, pieces, strict=True)])


class _Whole:
    """Any other module without submodules, such as a norm: run once a part with its parameters exchanged."""

    def __init__(self, model: ShiftedModel, part: nn.Module, plain: Callable[..., Tensor]) -> None:
        self.model, self.part, self.plain = model, part, plain

    def __call__(self, name: str, inputs: Sequence[Any], more: dict[str, Any]) -> Tensor:
        given: dict[Any, Any] = {**dict(enumerate(inputs)), **more}
        split = {key: self.model.parts(name, value) for key, value in given.items() if isinstance(value, Tensor)}
        own = dict(self.part._parameters)
        versions = {key: self.model.version(parameter) for key, parameter in own.items()}
        outputs = []
        try:
            for number in range(len(self.model.shift.scales)):
                for key, each in versions.items():
                    self.part._parameters[key] = each[number]  # type: ignore[assignment]
                now = {key: split[key].each[number] if key in split else value for key, value in given.items()}
                outputs.append(self.plain(*(now[key] for key in range(len(inputs))), **{key: now[key] for key in more}))
        finally:
            self.part._parameters.update(own)
        return min(split.values(), key=lambda parts: parts.repeat or 0).join(outputs)


def _check_plain(name: str, part: nn.Module) -> None:
    size = sum(parameter.nbytes for parameter in part._parameters.values() if parameter is not None)
    if next(part.children(), None) is not None or size > _MOST:
        raise CheckpointError(
            f"module {name}, a {type(part).__name__}, holds weights of its own in a way that can't be moved: leave them out (`exclude`)"
        )


def _check_dropout(module: nn.Module) -> None:
    if on := [name for name, part in module.named_modules() if part.training and "Dropout" in type(part).__name__]:
        raise OptionError(f"dropout is on ({on[0]}): both halves must see the same model; call `module.eval()`")
