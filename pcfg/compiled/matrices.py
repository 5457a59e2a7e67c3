"""Heads of the compiled transformer as whole matrices: what its layers compute from the rules without making them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pcfg.compiled.circuit import heads
from pcfg.compiled.places import Places
from pcfg.compiled.slots import Slots

Gates = tuple[tuple[str, int], ...]  # ("here" | "next" | "upto" | "all", how many times in a row), L numbers each


@dataclass(frozen=True, eq=False)
class DenseHead:
    """One head of linear attention: out = W_O (g_o * sum over tokens of (q . k) v), where q = g_q * (W_Q x + b_Q), and so on.

    Attributes:
        query, key: [d, D] and their biases [d]; value: [e, D] and its bias [e]; output: [D, e].
        gates: for "query", "key", "value" and "output", the zeros and ones of `Places` that multiply it; "output" by the reader's.
        reads: "before" or "after": where the tokens stand that the head reads.
    """

    query: Float[Tensor, "d D"]
    query_bias: Float[Tensor, " d"]
    key: Float[Tensor, "d D"]
    key_bias: Float[Tensor, " d"]
    value: Float[Tensor, "e D"]
    value_bias: Float[Tensor, " e"]
    output: Float[Tensor, "D e"]
    gates: dict[str, Gates]
    reads: str

    def gate(self, part: str, places: Places, row: int, token: int) -> Tensor:
        """The zeros and ones by which a token's query, key, value or output is multiplied."""
        ones = torch.ones_like(places.here[row, token])
        parts = [
            (ones if name == "all" else getattr(places, name)[row, token]).repeat(n) for name, n in self.gates[part]
        ]
        return torch.cat(parts)


def dense_head(slots: Slots, rules: Float[Tensor, "N S S"], number: int) -> DenseHead:
    """The matrices of a head, numbered as `pcfg.compiled.circuit.heads` lists them."""
    kind, symbol = heads(slots)[number]
    child = number % len(slots.symbols)
    if kind == "inside":
        return _inside(slots, rules, symbol, child)
    return (_right if kind == "outside right" else _left)(slots, rules, symbol, child)


def _inside(slots: Slots, rules: Tensor, symbol: str, child: int) -> DenseHead:
    own, gate = _symbol(slots, rules, "inside", symbol)
    value, value_gate = _every(slots, rules)
    wide = _selected(slots, rules, slots.spans("inside"))
    output = wide.T @ _by_start(slots, rules[:, :, child])
    return DenseHead(
        own, _bias(own, 0), torch.zeros_like(own), _bias(own, 1), value, _bias(value, 0), output,
        {"query": gate, "key": (("next", 1),), "value": value_gate, "output": (("all", len(slots.symbols)),)},
        "before",
    )  # fmt: skip


def _right(slots: Slots, rules: Tensor, symbol: str, child: int) -> DenseHead:
    outer = _selected(slots, rules, slots.spans("outside"))
    key, key_gate = _every(slots, rules)
    own, gate = _symbol(slots, rules, "outside", symbol)
    query = _by_start(slots, rules[:, :, child]).T @ outer
    every = (("all", len(slots.symbols)),)
    return DenseHead(
        query, _bias(query, 0), key, _bias(key, 0), torch.zeros_like(own), _bias(own, 1), own.T,
        {"query": every, "key": key_gate, "value": (("next", 1),), "output": gate}, "before",
    )  # fmt: skip


def _left(slots: Slots, rules: Tensor, symbol: str, child: int) -> DenseHead:
    inner = len(slots.nonterminals)
    own, gate = _symbol(slots, rules, "inside", symbol)
    outer = _selected(slots, rules, slots.spans("outside"))
    to_parents = _by_start(slots, rules[:, :, child])
    spans, tags = to_parents[:, : inner * slots.length], to_parents[:, inner * slots.length :]
    wide, single = outer, _tags(slots, rules, "outside")
    output = torch.cat([wide.T @ spans.T, single.T @ tags.T], 1)
    value = torch.cat([outer, outer])
    return DenseHead(
        torch.zeros_like(own), _bias(own, 1), own, _bias(own, 0), value, _bias(value, 0), output,
        {"query": (("next", 1),), "key": gate, "value": (("all", 2 * inner),), "output": (("upto", inner), ("here", inner))},
        "after",
    )  # fmt: skip


def _selected(slots: Slots, like: Tensor, dimensions: slice) -> Tensor:
    """Rows that copy dimensions of the state, [rows, D]."""
    return torch.eye(slots.width, dtype=like.dtype)[dimensions]


def _tags(slots: Slots, like: Tensor, score: str) -> Tensor:
    """Each preterminal's slot, L times, [P L, D]."""
    return _selected(slots, like, slots.tags(score)).repeat_interleave(slots.length, 0)


def _symbol(slots: Slots, like: Tensor, score: str, symbol: str) -> tuple[Tensor, Gates]:
    """A symbol's scores by start, [L, D]: a preterminal's one score stands at the token's own position."""
    matrix = _selected(slots, like, slots[score, symbol])
    return (matrix, (("all", 1),)) if len(matrix) == slots.length else (matrix.expand(slots.length, -1), (("here", 1),))


def _every(slots: Slots, like: Tensor) -> tuple[Tensor, Gates]:
    """Every symbol's inside scores by start, [S L, D]."""
    found = torch.cat([_selected(slots, like, slots.spans("inside")), _tags(slots, like, "inside")])
    return found, (("all", len(slots.nonterminals)), ("here", len(slots.preterminals)))


def _by_start(slots: Slots, rules: Tensor) -> Tensor:
    """P(A -> B C) for one C, the same for every start: [N L, S L]."""
    return torch.kron(rules, torch.eye(slots.length, dtype=rules.dtype))


def _bias(like: Tensor, value: int) -> Tensor:
    return torch.full((len(like),), float(value), dtype=like.dtype)
