"""The transformer itself: prefixes that hold the auxiliary model, tokens, and the order in which layers run.

Activations of the forward pass reach the backward one by long skip connections. Differences are one-sided with one
constant N, as in the paper.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from surgery.errors import OptionError
from surgery.tint.auxiliary import Auxiliary, Block
from surgery.tint.construction.layers import LayerSet, Prefix, Tokens, Weights, reading
from surgery.tint.construction.layout import Layout
from surgery.tint.construction.packing import Prefixes, pack, pack_norm, unpack
from surgery.tint.descent import DivergedError
from surgery.tint.modules import Arithmetic
from surgery.tint.segments import Plan
from surgery.tint.update import Output, Update

CONSTANTS = {torch.float64: 1e6, torch.float32: 300.0}  # N where none is given


class Transformer(nn.Module):
    """A set of layers for each block, the prefixes, the embedding tables and the loss.

    Args:
        scale: N of the differences.
    """

    final: Tensor
    word_table: Tensor
    position_table: Tensor
    head: Tensor | None

    def __init__(self, layout: Layout, scale: float) -> None:
        super().__init__()
        self.layout = layout
        self.learning: tuple[int, ...] = tuple(range(layout.shape.layers))
        d, e, shape = layout.shape.width, layout.embedding, layout.shape
        self.offset = 2 if shape.family == "opt" else 0  # OPT's table of positions begins with two unused rows

        def blank(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(sizes, dtype=torch.float64), requires_grad=False)

        # Lists for the code to read, with types; the modules below register what is in them.
        self.sets = [LayerSet(layout, scale) for _ in range(shape.layers)]
        self.initial = [
            {name: blank(layout.prefixes, e) for name in layout.matrices} | {n: blank(1, e) for n in ("norm1", "norm2")}
            for _ in range(shape.layers)
        ]
        self.blocks = nn.ModuleList(self.sets)
        self.prefixes = nn.ModuleList(nn.ParameterDict(prefixes) for prefixes in self.initial)
        self.final = blank(1, e)
        self.word_table = blank(shape.vocabulary, d)
        self.position_table = blank(shape.positions + self.offset, d)
        self.head = None if shape.tied else blank(shape.vocabulary, d)
        signal, out = reading(layout, 0, torch.eye(d)).double(), reading(layout, d, torch.eye(d)).double().T
        self.loss = Weights(q=signal, k=signal.clone(), v=signal.clone(), o=out, gate=1 - out.sum(0))

    @classmethod
    def sketch(cls, layout: Layout) -> "Transformer":
        """The parameters' shapes alone, on the meta device, to hold `count` against."""
        with torch.device("meta"):
            return cls(layout, 1.0)

    @classmethod
    def build(cls, auxiliary: Auxiliary, arithmetic: Arithmetic, learning: tuple[int, ...]) -> "Transformer":
        """The transformer that holds a model in its prefixes, on the model's device and in its dtype.

        Args:
            learning: the blocks that learn, by number.

        Raises:
            TintError: an architecture without a layout. OptionError: arithmetic that isn't the paper's.
        """
        # Compared whole: in float32 the published arithmetic differs by its bias and norms alone.
        if arithmetic.scale is None or arithmetic != Arithmetic.of("paper", auxiliary.dtype, arithmetic.scale):
            raise OptionError("materialise builds the paper's construction alone: use mode 'paper' with it")
        layout = Layout.plan(auxiliary.shape)
        transformer = cls(layout, arithmetic.scale).to(auxiliary.device, auxiliary.dtype)
        transformer.learning = learning
        transformer.initial = [dict(prefixes.items()) for prefixes in transformer.prefixes]  # type: ignore[operator]
        for prefixes, block in zip(transformer.initial, auxiliary.blocks, strict=True):
            for name, value in pack(layout, block).items():
                prefixes[name].copy_(value)
        transformer.final.copy_(pack_norm(layout, auxiliary.final["weight"], auxiliary.final["bias"]))
        transformer.word_table.copy_(auxiliary.module.get_input_embeddings().weight.detach())
        if auxiliary.position_table is not None:
            transformer.position_table.copy_(auxiliary.position_table.detach())
        if transformer.head is not None:
            transformer.head.copy_(auxiliary.head)
        return transformer

    def forward(self, auxiliary: Auxiliary, plan: Plan, *, steps: int, lr: float) -> Output:
        """Forward, backward and descent over the training tokens, as often as there are steps, then the whole text.

        Args:
            auxiliary: the model that `build` put into the prefixes.
            lr: learning rate on the summed loss.

        Raises:
            DivergedError: prefixes that became NaN or infinite, by step, block and name.
        """
        with torch.no_grad():
            blocks = [{name: prefix.unsqueeze(0) for name, prefix in block.items()} for block in self.initial]
            losses = []
            for step in range(1, steps + 1):
                losses.append(self._step(plan, blocks, lr))
                _check(blocks, step, lr)
            h, _ = self._read(plan.ids, plan.positions, blocks, plan.visible)
            logits = (h @ self.loss.q) @ self._output().mT
        return Output(logits, Update(auxiliary, self._unpacked(blocks, auxiliary, len(plan.ids)), torch.stack(losses)))

    def _unpacked(self, blocks: list[Prefixes], auxiliary: Auxiliary, batch: int) -> tuple[Block, ...]:
        """Each block's tensors after the update: those that learnt one copy a row, the others the model's own."""
        tensors = []
        for number, (prefixes, before) in enumerate(zip(blocks, auxiliary.blocks, strict=True)):
            if number in self.learning:
                after = unpack(self.layout, prefixes)
                tensors.append({name: value.expand(batch, *value.shape[1:]) for name, value in after.items()})
            else:
                tensors.append(dict(before))
        return tuple(tensors)

    def _output(self) -> Tensor:
        return self.word_table if self.head is None else self.head

    def _read(
        self, ids: Tensor, positions: Tensor, blocks: list[Prefixes], visible: Tensor | None
    ) -> tuple[Tokens, list[dict[str, Tokens]]]:
        """The auxiliary model's forward pass: the final norm's output in slot 0, and the activations of every block."""
        h = self.word_table.new_zeros(*ids.shape, self.layout.embedding)
        h[..., : self.layout.shape.width] = self.word_table[ids] + self.position_table[positions + self.offset]
        h[..., self.layout.one] = 1
        visible = _visible(h, visible)
        activations = []
        for layers, prefixes in zip(self.sets, blocks, strict=True):
            h, kept = _forward(layers, prefixes, h, visible, self.layout.chunks)
            activations.append(kept)
        activations.append({"x": h})
        last = self.sets[-1]
        return last.scaled(last.normalised(h), self.final[None]), activations

    def _step(self, plan: Plan, blocks: list[Prefixes], lr: float) -> Float[Tensor, " batch"]:
        """One step of descent, which replaces prefixes in `blocks`; the loss of each row before it."""
        length, last = plan.train_tokens, self.sets[-1]
        ids = plan.ids[:, :length]
        h, activations = self._read(ids, plan.positions[:, :length], blocks, plan.train_visible)
        h, losses = self._loss(h, F.pad(plan.targets[:, : length - 1], (0, 1)), ids.roll(-1, 1))
        h = last.normalised_backward(last.scaled_backward(h, self.final[None]), activations[-1]["x"])
        visible = _visible(h, plan.train_visible)
        for number in range(len(self.sets) - 1, min(self.learning) - 1, -1):
            rate = lr if number in self.learning else None
            h = _backward(self.sets[number], blocks[number], h, activations[number], visible, self.layout.chunks, rate)
        return losses

    def _loss(self, h: Tokens, pairs: Tensor, wanted: Tensor) -> tuple[Tokens, Float[Tensor, " batch"]]:
        """The loss's gradient in slot 0, and each row's summed loss: attention to the vocabulary, less the word that came.

        Tokens that aren't the first of a pair to learn (`pairs` 0) read nothing.
        """
        d, output = self.layout.shape.width, self._output()
        scores = (h @ self.loss.q) @ (output @ self.loss.k[:d]).mT
        p = scores.softmax(-1)
        read = (p @ (output @ self.loss.v[:d]) - output[wanted]) * pairs.unsqueeze(-1)
        losses = -(scores.log_softmax(-1).gather(-1, wanted.unsqueeze(-1))[..., 0] * pairs).sum(1)
        return h * self.loss.gate + read @ self.loss.o, losses


def _check(blocks: list[Prefixes], step: int, lr: float) -> None:
    """Raise DivergedError, naming the prefixes, if any are NaN or infinite after a step."""
    for number in reversed(range(len(blocks))):  # from the top, where it came from
        for name, prefix in blocks[number].items():
            if not bool(torch.isfinite(prefix).all()):
                raise DivergedError(
                    f"step {step}: the prefixes of block {number}'s {name} are NaN or infinite: lower the learning rate (now {lr:g})"
                )


def _visible(h: Tokens, visible: Tensor | None) -> Tensor:
    tokens = h.shape[1]
    causal = torch.ones(1, tokens, tokens, dtype=torch.bool, device=h.device).tril()
    return causal if visible is None else visible


def _forward(a: LayerSet, p: Prefixes, h: Tokens, visible: Tensor, chunks: int) -> tuple[Tokens, dict[str, Tokens]]:
    """One block of the auxiliary model: its output in slot 0, and the activations that its backward pass reads."""
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
    a: LayerSet, p: Prefixes, g: Tokens, kept: dict[str, Tokens], visible: Tensor, chunks: int, lr: float | None
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


def _total(a: LayerSet, parts: list[Tokens]) -> Tokens:
    """The sum of slot 1 over several embeddings."""
    total = parts[0]
    for part in parts[1:]:
        total = a.add(part, total, 1)
    return total
