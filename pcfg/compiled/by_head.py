"""Layers head by head: what hooks, attention weights and causal experiments see, where `layers` adds all heads up at once.

Shapes: B sentences, T tokens, H heads (S in an inside layer, 2 S in an outside layer), D dimensions of the state; L start positions.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pcfg.compiled.places import Places
from pcfg.compiled.slots import Slots


def inside_attention(slots: Slots, states: Float[Tensor, "B T S D"], places: Places) -> Float[Tensor, "B S T T"]:
    """inside(C, k + 1, j), from the token of j (which reads) to that of k, by each symbol C's head; 0 where k isn't before j."""
    inner = len(slots.nonterminals)
    spans = _spans(slots, states[:, :, :inner], "inside").diagonal(dim1=2, dim2=3)  # [B, T, L, N]
    tags = states[:, :, inner:, slots.tags("inside")].diagonal(dim1=2, dim2=3)
    near = torch.einsum("bjr,bjk->brjk", tags, places.previous)
    return torch.cat([torch.einsum("bjsr,bks,bjk->brjk", spans, places.next, places.before), near], 1)


def inside_outputs(
    slots: Slots, states: Float[Tensor, "B T S D"], scores: Float[Tensor, "B S T T"], rules: Tensor, places: Places
) -> Float[Tensor, "B T S D"]:
    """What each head of an inside layer adds to the inside scores over spans."""
    read = torch.einsum("brjk,bkrli->bjrli", scores, _every(slots, states, places))
    out = torch.zeros_like(states)
    out[..., slots.spans("inside")] = torch.einsum("alr,bjrli->bjrai", rules, read).flatten(3)
    return out


def outside_attention(
    slots: Slots, states: Float[Tensor, "B T H D"], rules: Tensor, places: Places
) -> Float[Tensor, "B H T T"]:
    """Of right children's heads the sum over A, B, i of P(A -> B C) outside(A, i, j) inside(B, i, k), from j to k before it; of
    left children's siblings inside(C, k + 1, j), from k to j after it."""
    symbols = len(slots.symbols)
    right, left = states[:, :, :symbols], states[:, :, symbols:]
    asked = torch.einsum("alr,bjrai->bjrli", rules, _spans(slots, right, "outside"))
    scores = torch.einsum("bjrli,bkrli,bjk->brjk", asked, _every(slots, right, places), places.before)
    inner = len(slots.nonterminals)
    near = scores[:, inner:] * places.previous[:, None]  # a preterminal's value counts right before only
    return torch.cat([scores[:, :inner], near, inside_attention(slots, left, places).mT], 1)


def outside_outputs(
    slots: Slots, states: Float[Tensor, "B T H D"], scores: Float[Tensor, "B H T T"], rules: Tensor, places: Places
) -> Float[Tensor, "B T H D"]:
    """What each head of an outside layer adds to the outside scores."""
    symbols, inner = len(slots.symbols), len(slots.nonterminals)
    out = torch.zeros_like(states)
    found = torch.einsum("brjk,bks->bjrs", scores[:, :symbols], places.next)
    number = torch.arange(symbols, device=states.device)
    spans = out[..., slots.spans("outside")].unflatten(-1, (inner, slots.length))
    spans[:, :, number[:inner], number[:inner]] = found[:, :, :inner]
    tags = out[..., slots.tags("outside")]
    tags[:, :, number[inner:], number[inner:] - inner] = torch.einsum("bjrs,bjs->bjr", found[:, :, inner:], places.here)
    gathered = torch.einsum("brkj,bjrai->bkrai", scores[:, symbols:], _spans(slots, states[:, :, symbols:], "outside"))
    of_left = torch.einsum("alr,bkrai->bkrli", rules, gathered)
    spans[:, :, symbols:] = of_left[:, :, :, :inner] * places.upto[:, :, None, None]
    tags[:, :, symbols:] = torch.einsum("bkrli,bki->bkrl", of_left[:, :, :, inner:], places.here)
    return out


def _spans(slots: Slots, states: Tensor, score: str) -> Tensor:
    """Scores over spans, [B, T, H, N, L]."""
    return states[..., slots.spans(score)].unflatten(-1, (len(slots.nonterminals), slots.length))


def _every(slots: Slots, states: Tensor, places: Places) -> Tensor:
    """Inside scores of every symbol over i..j, [B, T, H, S, L]: a preterminal's stand at i = j."""
    own = states[..., slots.tags("inside")][..., None] * places.here[:, :, None, None]
    return torch.cat([_spans(slots, states, "inside"), own], 3)
