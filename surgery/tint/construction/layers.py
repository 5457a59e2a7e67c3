"""The layers of the simulating transformer: attention, softmax or linear, and pointwise, all of fixed dense matrices.

Every matrix picks coordinates and is known once the sizes are; what differs between auxiliary models lies in the prefix
embeddings alone (Panigrahi et al. 2024, sections 3 and 4). Each layer has a gate that says what of the old embedding stays.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from surgery.tint.construction.layout import SLOTS, Layout
from surgery.tint.modules import activate, normalise

Tokens = Float[Tensor, "batch tokens embedding"]
Prefix = Float[Tensor, "#batch prefixes embedding"]
_MOVES = (0, 2, 3)  # where slot 1 may be moved


class Weights(nn.Module):
    """One layer's matrices, by what they do: queries, keys, values, input, output; its gate; one more head for the bias."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    g: Tensor
    o: Tensor
    gate: Tensor
    bias: "Weights"

    def __init__(self, *, bias: "Weights | None" = None, **matrices: Tensor) -> None:
        super().__init__()
        for name, matrix in matrices.items():
            self.register_parameter(name, nn.Parameter(matrix.contiguous(), requires_grad=False))
        if bias is not None:
            self.bias = bias


class LayerSet(nn.Module):
    """One block's set of layers. Slot 0 of a token holds the signal, slot 1 what was just read off prefixes.

    Args:
        scale: N of the differences.
    """

    masks: Tensor

    def __init__(self, layout: Layout, scale: float) -> None:
        super().__init__()
        self.layout = layout
        d, s, k = layout.shape.width, layout.rows, layout.prefixes
        eye, n = _eye(d), scale
        slots = [reading(layout, number * d, eye) for number in range(SLOTS)]
        held = torch.stack([reading(layout, number * d, eye) for number in range(s)])
        behind, code = reading(layout, s * d, eye), reading(layout, layout.code, _eye(k))
        one, first = flag(layout, layout.one), flag(layout, layout.first)
        # Row r of a matrix is row r % s of prefix r // s: [s, prefix, row].
        spread = _eye(d).view(k, s, d).transpose(0, 1)
        at_rows = torch.stack([reading(layout, 0, part.T) for part in spread])
        into_rows = torch.stack([reading(layout, d, part.T).T for part in spread])
        masks = torch.stack([slot.sum(1) for slot in slots])
        keep0, keep1, keep = 1 - masks[0], 1 - masks[1], torch.ones_like(masks[0])
        out0, out1 = slots[0].T, slots[1].T
        two_sided = torch.stack([n * out0, -n * out0])

        def bias_read(out: Tensor) -> Weights:
            return Weights(q=one, k=first, v=behind, o=out)

        def bias_learn(gradient: Tensor) -> Weights:
            return Weights(q=first, k=one, v=gradient, o=behind.T)

        self.read = Weights(q=slots[0], k=held, v=code, o=into_rows, gate=keep1, bias=bias_read(out1))
        self.read_back = Weights(q=at_rows, k=code, v=held, o=out1, gate=keep1)
        self.learn = Weights(q=code, k=at_rows, v=slots[0], o=held.mT, gate=keep, bias=bias_learn(slots[0]))
        self.scale = Weights(q=slots[0], k=slots[0], v=one, o=out0, gate=keep0, bias=bias_read(out0))
        self.scale_back = Weights(q=slots[1], k=slots[0], v=one, o=out0, gate=keep0)
        self.scale_learn = Weights(q=first, k=slots[1], v=slots[0], o=out0, gate=keep, bias=bias_learn(slots[1]))
        self.attention = Weights(q=slots[1], k=slots[2], v=slots[3], o=out0, gate=keep0)
        self.normal = Weights(i=slots[0], o=out0, gate=keep0)
        self.normal_back = Weights(g=slots[0] / n, i=slots[0], o=two_sided, gate=keep0)
        self.active = Weights(i=slots[1], o=out0, gate=keep0)
        self.active_back = Weights(g=slots[1] / n, i=slots[1], o=two_sided, gate=keep0)
        self.moving = Weights(i=slots[1], o=torch.stack([slots[number].T for number in _MOVES]))
        self.register_parameter("masks", nn.Parameter(masks, requires_grad=False))

    def linear(self, h: Tokens, p: Prefix) -> Tokens:
        """W x + b: each token reads the rows' products with its signal, and where they belong, off the prefixes."""
        w = self.read
        keys = p.unsqueeze(1) @ w.k
        products = ((h @ w.q).unsqueeze(1) @ keys.mT) @ (p @ w.v).unsqueeze(1)
        return h * w.gate + products.transpose(1, 2).flatten(2) @ w.o.flatten(0, 1) + _bias(w.bias, h, p)

    def linear_backward(self, h: Tokens, p: Prefix) -> Tokens:
        """The transpose on the gradient: each token reads rows, weighted by its gradient at their places."""
        w = self.read_back
        weights = (h.unsqueeze(1) @ w.q) @ (p @ w.k).unsqueeze(1).mT
        return h * w.gate + (weights @ (p.unsqueeze(1) @ w.v)).sum(1) @ w.o

    def linear_descent(self, h: Tokens, x: Tokens, p: Prefix, lr: float) -> Prefix:
        """Prefixes read the training tokens: minus the rate, times gradient (slot 0 of `h`) times input (of `x`), summed."""
        w = self.learn
        weights = (p @ w.q).unsqueeze(1) @ (h.unsqueeze(1) @ w.k).mT
        moved = ((weights @ (-lr * (x @ w.v)).unsqueeze(1)) @ w.o).sum(1)
        return p * w.gate + moved - lr * _bias(w.bias, p, h)

    def scaled(self, h: Tokens, p: Prefix) -> Tokens:
        """A norm's weight and bias: heads of one coordinate each."""
        return h * self.scale.gate + _product(self.scale, h, p) + _bias(self.scale.bias, h, p)

    def scaled_backward(self, h: Tokens, p: Prefix) -> Tokens:
        """The gradient (slot 1) times the norm's weight."""
        return h * self.scale_back.gate + _product(self.scale_back, h, p)

    def scaled_descent(self, h: Tokens, x: Tokens, p: Prefix, lr: float) -> Prefix:
        """The prefix reads gradient times normalised input, summed over training tokens."""
        w = self.scale_learn
        moved = ((h @ w.k) * (-lr * (x @ w.v))).sum(1, keepdim=True)
        return p * w.gate + ((p @ w.q).unsqueeze(-1) * moved) @ w.o - lr * _bias(w.bias, p, h)

    def attend(self, h: Tokens, visible: Bool[Tensor, "#batch tokens tokens"], *, transposed: bool = False) -> Tokens:
        """The auxiliary model's own attention; transposed, what it passes back to values."""
        w, width = self.attention, self.layout.shape.head_width
        q, k, v = ((h @ matrix).unflatten(-1, (-1, width)).transpose(1, 2) for matrix in (w.q, w.k, w.v))
        p = (q @ k.mT * width**-0.5).masked_fill(~visible.unsqueeze(1), -math.inf).softmax(-1)
        return h * w.gate + ((p.mT if transposed else p) @ v).transpose(1, 2).flatten(2) @ w.o

    def normalised(self, h: Tokens) -> Tokens:
        """Slot 0 normalised."""
        shape, w = self.layout.shape, self.normal
        return h * w.gate + normalise(h @ w.i, shape.norm, shape.epsilon) @ w.o

    def normalised_backward(self, h: Tokens, x: Tokens) -> Tokens:
        """N (f(x + g/N) - f(x)), g in slot 0 and x in slot 0 of the forward pass."""
        shape, w = self.layout.shape, self.normal_back
        before = x @ w.i
        both = normalise(torch.stack((before + h @ w.g, before)), shape.norm, shape.epsilon)
        return h * w.gate + (both @ w.o.unsqueeze(1)).sum(0)

    def activated(self, h: Tokens) -> Tokens:
        """The activation of slot 1 into slot 0."""
        return h * self.active.gate + activate(h @ self.active.i, self.layout.shape.activation) @ self.active.o

    def activated_backward(self, h: Tokens, x: Tokens) -> Tokens:
        """N (f(x + g/N) - f(x)), g in slot 1 and x in slot 1 of the forward pass, into slot 0."""
        w = self.active_back
        before = x @ w.i
        both = activate(torch.stack((before + h @ w.g, before)), self.layout.shape.activation)
        return h * w.gate + (both @ w.o.unsqueeze(1)).sum(0)

    def move(self, source: Tokens, h: Tokens, slot: int) -> Tokens:
        """Slot 1 of one embedding into slot 0, 2 or 3 of another."""
        return h * (1 - self.masks[slot]) + (source @ self.moving.i) @ self.moving.o[_MOVES.index(slot)]

    def add(self, source: Tokens, h: Tokens, slot: int = 0) -> Tokens:
        """Add a slot of an earlier embedding to the same slot."""
        return h + source * self.masks[slot]


def reading(layout: Layout, start: int, matrix: Float[Tensor, "read columns"]) -> Float[Tensor, "embedding columns"]:
    """A matrix that reads coordinates from `start` on."""
    reader = matrix.new_zeros(layout.embedding, matrix.shape[1])
    reader[start : start + matrix.shape[0]] = matrix
    return reader


def flag(layout: Layout, place: int) -> Float[Tensor, " embedding"]:
    """A vector that reads a single coordinate."""
    return reading(layout, place, _eye(1))[:, 0]


def _eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _product(w: Weights, h: Tokens, p: Prefix) -> Tokens:
    return ((h @ w.q) * ((p @ w.k) * (p @ w.v).unsqueeze(-1))) @ w.o


def _bias(w: Weights, readers: Tensor, held: Tensor) -> Tensor:
    """One head: embeddings with one flag read from all embeddings with the other."""
    scores = (readers @ w.q).unsqueeze(-1) * (held @ w.k).unsqueeze(-2)
    return (scores @ (held @ w.v)) @ w.o
