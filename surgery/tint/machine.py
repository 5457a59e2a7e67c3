"""The transformer itself: layers of dense matrices over prefixes and tokens, which simulate, train and read the model.

Every matrix below picks coordinates and is fixed once the sizes are; what differs between auxiliary models lies in the
prefix embeddings alone. The layers are attention, softmax or linear, and pointwise ones, with gates that say what of the
old embedding stays (Panigrahi et al. 2024, sections 3 and 4). Activations of the forward pass reach the backward one by
long skip connections. Differences are one-sided with one constant N, as in the paper.
"""

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from surgery.errors import OptionError
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.layout import SLOTS, Layout
from surgery.tint.modules import Arithmetic, activate, normalise
from surgery.tint.packing import pack, unpack
from surgery.tint.segments import Plan

if TYPE_CHECKING:
    from surgery.tint.simulator import Output, TinT

Tokens = Float[Tensor, "batch tokens embedding"]
Prefix = Float[Tensor, "#batch prefixes embedding"]
CONSTANTS = {torch.float64: 1e6, torch.float32: 300.0}  # N where none is given


class Layers(nn.Module):
    """One block's set of layers. Each method runs one; slot 0 holds the signal, slot 1 what was just read off prefixes."""

    def __init__(self, layout: Layout, arithmetic: Arithmetic, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = layout
        self.scale = arithmetic.scale or 1.0
        d, e, s, k = layout.shape.width, layout.embedding, layout.rows, layout.prefixes
        made = _Maker(self, layout, device, dtype)
        eye = torch.eye(d)
        code = made.at(layout.code, torch.eye(k))
        rows = torch.stack([made.slot(n, eye) for n in range(s)])
        # Output row r is row r % s of prefix r // s.
        spread = torch.zeros(s, k, d)
        for r in range(d if str(device) != "meta" else 0):
            spread[r % s, r // s, r] = 1
        picked = torch.stack([made.slot(0, m.T) for m in spread])
        written = [made.slot(n, eye).T for n in range(SLOTS)]

        made.add("forward", q=made.slot(0, eye), k=rows, v=code, o=torch.stack([made.slot(1, m.T).T for m in spread]))
        made.bias("forward", reader=layout.one, holder=layout.first, value=made.slot(s, eye), out=written[1])
        made.add("backward", q=picked, k=code, v=rows, o=written[1])
        made.add("descent", q=code, k=picked, v=made.slot(0, eye), o=rows.mT)
        made.bias("descent", reader=layout.first, holder=layout.one, value=made.slot(0, eye), out=rows_bias(made, s, eye))
        made.add("scale", q=made.slot(0, eye), k=made.slot(0, eye), v=made.flag(layout.one), o=written[0])
        made.bias("scale", reader=layout.one, holder=layout.first, value=made.slot(s, eye), out=written[0])
        made.add("scale_backward", q=made.slot(1, eye), k=made.slot(0, eye), v=made.flag(layout.one), o=written[0])
        made.add("scale_descent", q=made.flag(layout.first), k=made.slot(1, eye), v=made.slot(0, eye), o=written[0])
        made.bias("scale_descent", reader=layout.first, holder=layout.one, value=made.slot(1, eye), out=rows_bias(made, s, eye))
        made.add("attention", q=made.slot(1, eye), k=made.slot(2, eye), v=made.slot(3, eye), o=written[0])
        made.add("normal", i=made.slot(0, eye), o=written[0])
        n = self.scale
        made.add("normal_backward", g=made.slot(0, eye) / n, x=made.slot(0, eye), o=torch.stack([n * written[0], -n * written[0]]))
        made.add("active", i=made.slot(1, eye), o=written[0])
        made.add("active_backward", g=made.slot(1, eye) / n, x=made.slot(1, eye), o=torch.stack([n * written[0], -n * written[0]]))
        made.add("move", i=made.slot(1, eye), o0=written[0], o2=written[2], o3=written[3])
        made.gates()

    def linear(self, h: Tokens, p: Prefix) -> Tokens:
        """W x + b: each token reads the rows' products with its signal, and where they belong, off the prefixes."""
        q = (h @ self.forward_q).unsqueeze(1)
        keys = p.unsqueeze(1) @ self.forward_k
        read = (q @ keys.mT) @ (p @ self.forward_v).unsqueeze(1)
        out = read.transpose(1, 2).flatten(2) @ self.forward_o.flatten(0, 1)
        return h * self.forward_gate + out + self._bias("forward", h, p)

    def linear_backward(self, h: Tokens, p: Prefix) -> Tokens:
        """The transpose on the gradient: each token reads rows, weighted by its gradient at their places."""
        q = h.unsqueeze(1) @ self.backward_q
        read = (q @ (p @ self.backward_k).unsqueeze(1).mT) @ (p.unsqueeze(1) @ self.backward_v)
        return h * self.backward_gate + read.sum(1) @ self.backward_o

    def linear_descent(self, h: Tokens, x: Tokens, p: Prefix, lr: float) -> Prefix:
        """Prefixes read the training tokens: minus the rate, times gradient times input, summed."""
        q = (p @ self.descent_q).unsqueeze(1)
        keys = h.unsqueeze(1) @ self.descent_k
        read = (q @ keys.mT) @ (-lr * (x @ self.descent_v)).unsqueeze(1)
        out = (read @ self.descent_o).sum(1)
        return p * self.descent_gate + out - lr * self._bias("descent", p, h)

    def scaled(self, h: Tokens, p: Prefix) -> Tokens:
        """A norm's weight and bias: heads of one coordinate each."""
        return h * self.scale_gate + self._product("scale", h, p) + self._bias("scale", h, p)

    def scaled_backward(self, h: Tokens, p: Prefix) -> Tokens:
        """The gradient times the norm's weight."""
        return h * self.scale_backward_gate + self._product("scale_backward", h, p)

    def scaled_descent(self, h: Tokens, x: Tokens, p: Prefix, lr: float) -> Prefix:
        """The prefix reads gradient times normalised input, summed over training tokens."""
        weight = ((h @ self.scale_descent_k) * (-lr * (x @ self.scale_descent_v))).sum(1, keepdim=True)
        out = ((p @ self.scale_descent_q).unsqueeze(-1) * weight) @ self.scale_descent_o
        return p * self.scale_descent_gate + out - lr * self._bias("scale_descent", p, h)

    def attend(self, h: Tokens, visible: Bool[Tensor, "#batch tokens tokens"], *, transposed: bool = False) -> Tokens:
        """The auxiliary model's own attention; transposed, what it passes back to values."""
        width = self.layout.shape.head_width
        q, k, v = (
            (h @ w).unflatten(-1, (-1, width)).transpose(1, 2)
            for w in (self.attention_q, self.attention_k, self.attention_v)
        )
        p = (q @ k.mT * width**-0.5).masked_fill(~visible.unsqueeze(1), -math.inf).softmax(-1)
        read = ((p.mT if transposed else p) @ v).transpose(1, 2).flatten(2)
        return h * self.attention_gate + read @ self.attention_o

    def normalised(self, h: Tokens) -> Tokens:
        """Slot 0 normalised."""
        shape = self.layout.shape
        return h * self.normal_gate + normalise(h @ self.normal_i, shape.norm, shape.epsilon) @ self.normal_o

    def normalised_backward(self, h: Tokens, x: Tokens) -> Tokens:
        """N (f(x + g/N) - f(x)), g in slot 0 and x in slot 0 of the forward pass."""
        shape, before = self.layout.shape, x @ self.normal_backward_x
        both = torch.stack((before + h @ self.normal_backward_g, before))
        out = normalise(both, shape.norm, shape.epsilon) @ self.normal_backward_o.unsqueeze(1)
        return h * self.normal_backward_gate + out.sum(0)

    def activated(self, h: Tokens) -> Tokens:
        """The activation of slot 1 into slot 0."""
        return h * self.active_gate + activate(h @ self.active_i, self.layout.shape.activation) @ self.active_o

    def activated_backward(self, h: Tokens, x: Tokens) -> Tokens:
        """N (f(x + g/N) - f(x)), g in slot 1 and x in slot 1 of the forward pass, into slot 0."""
        before = x @ self.active_backward_x
        both = torch.stack((before + h @ self.active_backward_g, before))
        out = activate(both, self.layout.shape.activation) @ self.active_backward_o.unsqueeze(1)
        return h * self.active_backward_gate + out.sum(0)

    def move(self, source: Tokens, h: Tokens, slot: int) -> Tokens:
        """Slot 1 of one embedding into a slot of another."""
        return h * (1 - self.masks[slot]) + (source @ self.move_i) @ getattr(self, f"move_o{slot}")

    def keep(self, source: Tokens, h: Tokens, slot: int = 0) -> Tokens:
        """Add a slot of an earlier embedding to the same slot."""
        return h + source * self.masks[slot]

    def _product(self, name: str, h: Tensor, p: Tensor) -> Tensor:
        q, k, v, o = (getattr(self, f"{name}_{leaf}") for leaf in "qkvo")
        return ((h @ q) * ((p @ k) * (p @ v).unsqueeze(-1))) @ o

    def _bias(self, name: str, readers: Tensor, held: Tensor) -> Tensor:
        q, k, v, o = (getattr(self, f"{name}_bias_{leaf}") for leaf in "qkvo")
        scores = (readers @ q).unsqueeze(-1) * (held @ k).unsqueeze(-2)
        return (scores @ (held @ v)) @ o


def rows_bias(made: "_Maker", rows: int, eye: Tensor) -> Tensor:
    """Into a prefix's place for the bias, behind its rows."""
    return made.slot(rows, eye).T


class _Maker:
    """Registers matrices on a set of layers; on the meta device only their shapes."""

    def __init__(self, layers: Layers, layout: Layout, device: torch.device | str, dtype: torch.dtype) -> None:
        self.layers, self.layout, self.device, self.dtype = layers, layout, device, dtype
        self.written: dict[str, int] = {}

    def at(self, start: int, matrix: Tensor) -> Tensor:
        """[embedding, columns]: a matrix that reads coordinates from `start` on."""
        found = torch.zeros(self.layout.embedding, matrix.shape[1])
        found[start : start + matrix.shape[0]] = matrix
        return found

    def slot(self, number: int, matrix: Tensor) -> Tensor:
        """One that reads a slot."""
        return self.at(number * self.layout.shape.width, matrix)

    def flag(self, place: int) -> Tensor:
        """[embedding]: one that reads a single coordinate."""
        return self.at(place, torch.ones(1, 1))[:, 0]

    def add(self, name: str, **matrices: Tensor) -> None:
        """Register a layer's matrices as `name_leaf`."""
        for leaf, matrix in matrices.items():
            value = nn.Parameter(matrix.to(self.device, self.dtype).contiguous(), requires_grad=False)
            self.layers.register_parameter(f"{name}_{leaf}", value)

    def bias(self, name: str, *, reader: int, holder: int, value: Tensor, out: Tensor) -> None:
        """One more head, for the bias: whoever has the one flag reads all that have the other."""
        self.add(f"{name}_bias", q=self.flag(reader), k=self.flag(holder), v=value, o=out)

    def gates(self) -> None:
        """What stays: all but the slot that a layer writes; all of it where it adds. And the slots' masks."""
        d = self.layout.shape.width
        masks = torch.stack([self.slot(n, torch.ones(d, 1))[:, 0] for n in range(SLOTS)])
        self.add("gate", masks=masks)
        self.layers.masks = self.layers.gate_masks
        one, zero, all_stays = 1 - masks[1], 1 - masks[0], torch.ones(self.layout.embedding)
        for name in ("forward", "backward"):
            self.add(name, gate=one)
        for name in ("scale", "scale_backward", "attention", "normal", "normal_backward", "active", "active_backward"):
            self.add(name, gate=zero)
        for name in ("descent", "scale_descent"):
            self.add(name, gate=all_stays)


class Machine(nn.Module):
    """The whole transformer: a set of layers for each block, the prefixes, the embedding tables and the loss."""

    def __init__(self, layout: Layout, arithmetic: Arithmetic, device: torch.device | str, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout, self.arithmetic = layout, arithmetic
        d, e, shape = layout.shape.width, layout.embedding, layout.shape
        self.sets = nn.ModuleList(Layers(layout, arithmetic, device, dtype) for _ in range(shape.layers))
        blank = [
            nn.Parameter(torch.zeros(layout.prefixes if name[:4] != "norm" else 1, e, device=device, dtype=dtype), requires_grad=False)
            for name in (*layout.matrices, "norm1", "norm2")
        ]
        names = (*layout.matrices, "norm1", "norm2")
        self.prefixes = nn.ModuleList(
            nn.ParameterDict({n: nn.Parameter(torch.zeros_like(b), requires_grad=False) for n, b in zip(names, blank, strict=True)})
            for _ in range(shape.layers)
        )
        self.final = nn.Parameter(torch.zeros(1, e, device=device, dtype=dtype), requires_grad=False)
        self.words = nn.Parameter(torch.zeros(shape.vocabulary, d, device=device, dtype=dtype), requires_grad=False)
        offset = 2 if shape.family == "opt" else 0
        self.places = nn.Parameter(torch.zeros(shape.positions + offset, d, device=device, dtype=dtype), requires_grad=False)
        self.head = None if shape.tied else nn.Parameter(torch.zeros_like(self.words), requires_grad=False)
        made = _Maker(self, layout, device, dtype)  # type: ignore[arg-type]
        eye = torch.eye(d)
        into = made.slot(1, eye).T
        made.add("loss", q=made.slot(0, eye), k=made.slot(0, eye)[:, :], v=made.slot(0, eye), o=into, gate=1 - into.sum(0))

    @classmethod
    def build(cls, auxiliary: Auxiliary, arithmetic: Arithmetic, layers: tuple[int, ...]) -> "Machine":
        """Raises TintError for an architecture without a layout, OptionError for a mode that isn't the paper's."""
        if arithmetic.scores or arithmetic.closed_norms or arithmetic.gate != 1.0:
            raise OptionError("materialise builds the paper's construction: use mode 'paper' with it")
        layout = Layout.plan(auxiliary.shape)
        machine = cls(layout, arithmetic, auxiliary.device, auxiliary.dtype)
        machine.learning = layers
        for prefixes, block in zip(machine.prefixes, auxiliary.blocks, strict=True):
            for name, value in pack(layout, block).items():
                prefixes[name].copy_(value)
        final = {f"norm1.{leaf}": value for leaf, value in auxiliary.final.items()}
        d, s = layout.shape.width, layout.rows
        machine.final[0, :d], machine.final[0, s * d : (s + 1) * d] = final["norm1.weight"], final["norm1.bias"]
        machine.final[0, layout.one] = machine.final[0, layout.first] = 1
        machine.words.copy_(auxiliary.module.get_input_embeddings().weight.detach())
        decoder = auxiliary.module.transformer.wpe if layout.shape.family == "gpt2" else auxiliary.module.model.decoder.embed_positions
        machine.places.copy_(decoder.weight.detach())
        if machine.head is not None:
            machine.head.copy_(auxiliary.head)
        return machine

    learning: tuple[int, ...] = ()

    def forward(self, simulation: "TinT", input_ids: Tensor, plan: Plan, lr: float) -> "Output":
        """Forward, backward and descent over the training tokens, as often as there are steps, then the whole text."""
        from surgery.tint.simulator import Output, Update

        with torch.no_grad():
            memory: list[dict[str, Tensor]] = [
                {name: prefix.unsqueeze(0) for name, prefix in block.items()} for block in self.prefixes
            ]
            losses = [self._step(input_ids, plan, memory, lr) for _ in range(simulation.steps)]
            h, _ = self._read(input_ids, plan, memory, input_ids.shape[1], plan.visible)
            logits = (h @ self.loss_q) @ self._output().mT
        blocks = []
        for number, (prefixes, before) in enumerate(zip(memory, simulation.auxiliary.blocks, strict=True)):
            after = unpack(self.layout, prefixes) if number in self.learning else before
            rows = len(input_ids)
            blocks.append({name: v.expand(rows, *v.shape[1:]) if after is not before else v for name, v in after.items()})
        return Output(logits, Update(simulation.auxiliary, tuple(blocks), torch.stack(losses)))

    def _output(self) -> Tensor:
        return self.words if self.head is None else self.head

    def _read(
        self, input_ids: Tensor, plan: Plan, memory: list[dict[str, Tensor]], length: int, visible: Tensor | None
    ) -> tuple[Tokens, list[dict[str, Tokens]]]:
        """The auxiliary model's forward pass: the final norm's output in slot 0, and what every block saw on the way."""
        ids, positions = input_ids[:, :length], plan.positions[:, :length]
        h = self.words.new_zeros(*ids.shape, self.layout.embedding)
        offset = 2 if self.layout.shape.family == "opt" else 0
        h[..., : self.layout.shape.width] = self.words[ids] + self.places[positions + offset]
        h[..., self.layout.one] = 1
        if visible is None:
            visible = torch.ones(length, length, dtype=torch.bool, device=h.device).tril().unsqueeze(0)
        seen = []
        for layers, prefixes in zip(self.sets, memory, strict=True):
            h, kept = _forward(layers, prefixes, h, visible, self.layout.chunks)
            seen.append(kept)
        last = self.sets[-1]
        kept = {"x": h, "normal": last.normalised(h)}
        seen.append(kept)
        return last.scaled(kept["normal"], self.final[None]), seen

    def _step(self, input_ids: Tensor, plan: Plan, memory: list[dict[str, Tensor]], lr: float) -> Float[Tensor, " batch"]:
        length, last = plan.train_tokens, self.sets[-1]
        h, seen = self._read(input_ids, plan, memory, length, plan.train_visible)
        pairs = F.pad(plan.targets, (0, 1))[:, :length]
        pairs[:, -1] = False
        wanted = input_ids.roll(-1, 1)[:, :length]
        h, losses = self._loss(h, pairs, wanted)
        h = last.scaled_backward(h, self.final[None])
        h = last.normalised_backward(h, seen[-1]["x"])
        visible = plan.train_visible
        if visible is None:
            visible = torch.ones(length, length, dtype=torch.bool, device=h.device).tril().unsqueeze(0)
        for number in range(len(self.sets) - 1, min(self.learning) - 1, -1):
            rate = lr if number in self.learning else None
            h = _backward(self.sets[number], memory[number], h, seen[number], visible, self.layout.chunks, rate)
        return losses

    def _loss(self, h: Tokens, pairs: Tensor, wanted: Tensor) -> tuple[Tokens, Float[Tensor, " batch"]]:
        """Softmax attention to the vocabulary, less the embedding of the word that came; tokens that don't learn read nothing."""
        d, output = self.layout.shape.width, self._output()
        scores = (h @ self.loss_q) @ (output @ self.loss_k[:d]).mT
        p = scores.softmax(-1)
        read = (p @ (output @ self.loss_v[:d]) - output[wanted]) * pairs.unsqueeze(-1)
        losses = -(scores.log_softmax(-1).gather(-1, wanted.unsqueeze(-1))[..., 0] * pairs).sum(1)
        return h * self.loss_gate + read @ self.loss_o, losses


def _forward(
    a: Layers, p: dict[str, Tensor], h: Tokens, visible: Tensor, chunks: int
) -> tuple[Tokens, dict[str, Tokens]]:
    """One block of the auxiliary model; what its backward pass will look up."""
    kept = {"x": h, "normal1": a.normalised(h)}
    h = kept["scaled1"] = a.scaled(kept["normal1"], p["norm1"])
    q, k, v = (a.linear(h, p[name]) for name in "qkv")
    kept["qkv"] = a.move(v, a.move(k, q, 2), 3)
    kept["read"] = a.attend(kept["qkv"], visible)
    h = a.linear(kept["read"], p["o"])
    kept["middle"] = a.keep(kept["x"], a.move(h, h, 0))
    kept["normal2"] = a.normalised(kept["middle"])
    h = kept["scaled2"] = a.scaled(kept["normal2"], p["norm2"])
    total: Tensor | None = None
    for c in range(chunks):
        up = kept[f"up{c}"] = a.linear(h, p[f"up{c}"])
        active = kept[f"active{c}"] = a.activated(up)
        down = a.linear(active, p[f"down{c}"])
        total = down if total is None else a.keep(down, total, 1)
    assert total is not None, "there is at least one chunk"
    return a.keep(kept["middle"], a.move(total, total, 0)), kept


def _backward(
    a: Layers,
    p: dict[str, Tensor],
    g: Tokens,
    kept: dict[str, Tokens],
    visible: Tensor,
    chunks: int,
    lr: float | None,
) -> Tokens:
    """The gradient at the block's input, in slot 0; prefixes learn after they were read, unless `lr` is None."""

    def learn(name: str, h: Tokens, x: str) -> None:
        if lr is not None:
            step = a.scaled_descent if name.startswith("norm") else a.linear_descent
            old = p[name]
            p[name] = step(h, kept[x], old.expand(len(h), *old.shape[-2:]), lr)

    total: Tensor | None = None
    for c in range(chunks):
        h = a.linear_backward(g, p[f"down{c}"])
        learn(f"down{c}", g, f"active{c}")
        opened = a.activated_backward(h, kept[f"up{c}"])
        h = a.linear_backward(opened, p[f"up{c}"])
        learn(f"up{c}", opened, "scaled2")
        total = h if total is None else a.keep(h, total, 1)
    assert total is not None, "there is at least one chunk"
    h = a.scaled_backward(total, p["norm2"])
    learn("norm2", total, "normal2")
    middle = a.keep(g, a.normalised_backward(h, kept["middle"]))
    h = a.linear_backward(middle, p["o"])
    learn("o", middle, "read")
    at_values = a.attend(a.move(h, kept["qkv"], 3), visible, transposed=True)
    h = a.linear_backward(at_values, p["v"])
    learn("v", at_values, "scaled1")
    back = a.scaled_backward(h, p["norm1"])
    learn("norm1", h, "normal1")
    return a.keep(middle, a.normalised_backward(back, kept["x"]))
