"""The transformer itself: prefixes that hold the auxiliary model, tokens, and the order in which layers run.

Activations of the forward pass reach the backward one by long skip connections. Differences are one-sided with one
constant N, as in the paper.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from surgery.errors import OptionError
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.construction.layers import Layers, Prefix, Tokens, Weights, reading
from surgery.tint.construction.layout import Layout
from surgery.tint.construction.packing import Prefixes, pack, pack_norm, unpack
from surgery.tint.descent import DivergedError
from surgery.tint.modules import Arithmetic
from surgery.tint.segments import Plan

if TYPE_CHECKING:
    from surgery.tint.simulator import Output, TinT

CONSTANTS = {torch.float64: 1e6, torch.float32: 300.0}  # N where none is given


class Machine(nn.Module):
    """A set of layers for each block, the prefixes, the embedding tables and the loss.

    Args:
        scale: N of the differences.
    """

    final: Tensor
    words: Tensor
    places: Tensor
    head: Tensor | None

    def __init__(self, layout: Layout, scale: float) -> None:
        super().__init__()
        self.layout = layout
        self.learning: tuple[int, ...] = tuple(range(layout.shape.layers))
        d, e, shape = layout.shape.width, layout.embedding, layout.shape
        self.offset = 2 if shape.family == "opt" else 0

        def blank(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(sizes, dtype=torch.float64), requires_grad=False)

        self.sets = [Layers(layout, scale) for _ in range(shape.layers)]
        self.memory = [
            {name: blank(layout.prefixes, e) for name in layout.matrices} | {n: blank(1, e) for n in ("norm1", "norm2")}
            for _ in range(shape.layers)
        ]
        self.blocks = nn.ModuleList(self.sets)
        self.prefixes = nn.ModuleList(nn.ParameterDict(prefixes) for prefixes in self.memory)
        self.final = blank(1, e)
        self.words = blank(shape.vocabulary, d)
        self.places = blank(shape.positions + self.offset, d)
        self.head = None if shape.tied else blank(shape.vocabulary, d)
        signal, out = reading(layout, 0, torch.eye(d)).double(), reading(layout, d, torch.eye(d)).double().T
        self.loss = Weights(q=signal, k=signal.clone(), v=signal.clone(), o=out, gate=1 - out.sum(0))

    @classmethod
    def sketch(cls, layout: Layout) -> "Machine":
        """Shapes alone, on the meta device: what `count` must agree with."""
        with torch.device("meta"):
            return cls(layout, 1.0)

    @classmethod
    def build(cls, auxiliary: Auxiliary, arithmetic: Arithmetic, layers: tuple[int, ...]) -> "Machine":
        """The transformer that holds this model.

        Raises:
            TintError: an architecture without a layout. OptionError: arithmetic that isn't the paper's.
        """
        # Compared whole: in float32 the published arithmetic differs by its bias and norms alone.
        if arithmetic.scale is None or arithmetic != Arithmetic.of("paper", auxiliary.dtype, arithmetic.scale):
            raise OptionError("materialise builds the paper's construction alone: use mode 'paper' with it")
        layout = Layout.plan(auxiliary.shape)
        machine = cls(layout, arithmetic.scale).to(auxiliary.device, auxiliary.dtype)
        machine.learning = layers
        machine.memory = [dict(prefixes.items()) for prefixes in machine.prefixes]  # type: ignore[operator]
        for prefixes, block in zip(machine.memory, auxiliary.blocks, strict=True):
            for name, value in pack(layout, block).items():
                prefixes[name].copy_(value)
        machine.final.copy_(pack_norm(layout, auxiliary.final["weight"], auxiliary.final["bias"]))
        machine.words.copy_(auxiliary.module.get_input_embeddings().weight.detach())
        if auxiliary.places is not None:
            machine.places.copy_(auxiliary.places.detach())
        if machine.head is not None:
            machine.head.copy_(auxiliary.head)
        return machine

    def forward(self, simulation: "TinT", input_ids: Int[Tensor, "batch tokens"], plan: Plan, lr: float) -> "Output":
        """Forward, backward and descent over the training tokens, as often as there are steps, then the whole text."""
        from surgery.tint.simulator import Output, Update

        with torch.no_grad():
            memory = [{name: prefix.unsqueeze(0) for name, prefix in block.items()} for block in self.memory]
            losses = []
            for step in range(1, simulation.steps + 1):
                losses.append(self._step(input_ids, plan, memory, lr))
                _check(memory, step, lr)
            h, _ = self._read(input_ids, plan.positions, memory, plan.visible)
            logits = (h @ self.loss.q) @ self._output().mT
        blocks = []
        for number, (prefixes, before) in enumerate(zip(memory, simulation.auxiliary.blocks, strict=True)):
            if number in self.learning:
                after = unpack(self.layout, prefixes)
                blocks.append({name: value.expand(len(input_ids), *value.shape[1:]) for name, value in after.items()})
            else:
                blocks.append(dict(before))
        return Output(logits, Update(simulation.auxiliary, tuple(blocks), torch.stack(losses)))

    def _output(self) -> Tensor:
        return self.words if self.head is None else self.head

    def _read(
        self, ids: Tensor, positions: Tensor, memory: list[Prefixes], visible: Tensor | None
    ) -> tuple[Tokens, list[dict[str, Tokens]]]:
        """The auxiliary model's forward pass: the final norm's output in slot 0, and what every block saw on the way."""
        h = self.words.new_zeros(*ids.shape, self.layout.embedding)
        h[..., : self.layout.shape.width] = self.words[ids] + self.places[positions + self.offset]
        h[..., self.layout.one] = 1
        visible = _visible(h, visible)
        seen = []
        for layers, prefixes in zip(self.sets, memory, strict=True):
            h, kept = _forward(layers, prefixes, h, visible, self.layout.chunks)
            seen.append(kept)
        seen.append({"x": h})
        last = self.sets[-1]
        return last.scaled(last.normalised(h), self.final[None]), seen

    def _step(self, input_ids: Tensor, plan: Plan, memory: list[Prefixes], lr: float) -> Float[Tensor, " batch"]:
        length, last = plan.train_tokens, self.sets[-1]
        ids = input_ids[:, :length]
        h, seen = self._read(ids, plan.positions[:, :length], memory, plan.train_visible)
        h, losses = self._loss(h, F.pad(plan.targets[:, : length - 1], (0, 1)), ids.roll(-1, 1))
        h = last.normalised_backward(last.scaled_backward(h, self.final[None]), seen[-1]["x"])
        visible = _visible(h, plan.train_visible)
        for number in range(len(self.sets) - 1, min(self.learning) - 1, -1):
            rate = lr if number in self.learning else None
            h = _backward(self.sets[number], memory[number], h, seen[number], visible, self.layout.chunks, rate)
        return losses

    def _loss(self, h: Tokens, pairs: Tensor, wanted: Tensor) -> tuple[Tokens, Float[Tensor, " batch"]]:
        """Softmax attention to the vocabulary, less the embedding of the word that came; who doesn't learn reads nothing."""
        d, output = self.layout.shape.width, self._output()
        scores = (h @ self.loss.q) @ (output @ self.loss.k[:d]).mT
        p = scores.softmax(-1)
        read = (p @ (output @ self.loss.v[:d]) - output[wanted]) * pairs.unsqueeze(-1)
        losses = -(scores.log_softmax(-1).gather(-1, wanted.unsqueeze(-1))[..., 0] * pairs).sum(1)
        return h * self.loss.gate + read @ self.loss.o, losses


def _check(memory: list[Prefixes], step: int, lr: float) -> None:
    """Raise DivergedError, naming the prefixes, if any are NaN or infinite after a step."""
    for number in reversed(range(len(memory))):  # from the top, where it came from
        for name, prefix in memory[number].items():
            if not bool(torch.isfinite(prefix).all()):
                raise DivergedError(
                    f"step {step}: the prefixes of block {number}'s {name} are NaN or infinite: lower the learning rate (now {lr:g})"
                )


def _visible(h: Tokens, visible: Tensor | None) -> Tensor:
    tokens = h.shape[1]
    causal = torch.ones(1, tokens, tokens, dtype=torch.bool, device=h.device).tril()
    return causal if visible is None else visible


def _forward(a: Layers, p: Prefixes, h: Tokens, visible: Tensor, chunks: int) -> tuple[Tokens, dict[str, Tokens]]:
    """One block of the auxiliary model; what its backward pass will look up."""
    kept = {"x": h, "normal1": a.normalised(h)}
    h = kept["scaled1"] = a.scaled(kept["normal1"], p["norm1"])
    q, k, v = (a.linear(h, p[name]) for name in "qkv")
    kept["qkv"] = a.move(v, a.move(k, q, 2), 3)
    kept["read"] = a.attend(kept["qkv"], visible)
    h = a.linear(kept["read"], p["o"])
    kept["middle"] = a.add(kept["x"], a.move(h, h, 0))
    kept["normal2"] = a.normalised(kept["middle"])
    h = kept["scaled2"] = a.scaled(kept["normal2"], p["norm2"])
    downs = []
    for c in range(chunks):
        kept[f"up{c}"] = a.linear(h, p[f"up{c}"])
        kept[f"active{c}"] = a.activated(kept[f"up{c}"])
        downs.append(a.linear(kept[f"active{c}"], p[f"down{c}"]))
    total = _total(a, downs)
    return a.add(kept["middle"], a.move(total, total, 0)), kept


def _backward(
    a: Layers, p: Prefixes, g: Tokens, kept: dict[str, Tokens], visible: Tensor, chunks: int, lr: float | None
) -> Tokens:
    """The gradient at the block's input, in slot 0; prefixes learn after they were read, unless `lr` is None."""

    def learn(name: str, h: Tokens, x: str) -> None:
        if lr is not None:
            step = a.scaled_descent if name.startswith("norm") else a.linear_descent
            old: Prefix = p[name]
            p[name] = step(h, kept[x], old.expand(len(h), *old.shape[-2:]), lr)

    ups = []
    for c in range(chunks):
        h = a.linear_backward(g, p[f"down{c}"])
        learn(f"down{c}", g, f"active{c}")
        opened = a.activated_backward(h, kept[f"up{c}"])
        ups.append(a.linear_backward(opened, p[f"up{c}"]))
        learn(f"up{c}", opened, "scaled2")
    total = _total(a, ups)
    h = a.scaled_backward(total, p["norm2"])
    learn("norm2", total, "normal2")
    middle = a.add(g, a.normalised_backward(h, kept["middle"]))
    h = a.linear_backward(middle, p["o"])
    learn("o", middle, "read")
    values = a.attend(a.move(h, kept["qkv"], 3), visible, transposed=True)
    h = a.linear_backward(values, p["v"])
    learn("v", values, "scaled1")
    back = a.scaled_backward(h, p["norm1"])
    learn("norm1", h, "normal1")
    return a.add(middle, a.normalised_backward(back, kept["x"]))


def _total(a: Layers, parts: list[Tokens]) -> Tokens:
    """Slot 1 of all of them added up."""
    total = parts[0]
    for part in parts[1:]:
        total = a.add(part, total, 1)
    return total
