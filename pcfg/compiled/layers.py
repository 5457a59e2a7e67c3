"""The two kinds of layers of the compiled transformer: a step of the inside pass, and a step of the outside pass.

Both are causal attention without a softmax ("linear" attention), one head for each symbol as a right child. What isn't
standard, and said here once: scores aren't normalised; positions multiply queries, keys, values and outputs by fixed
zeros and ones, as rotary embeddings multiply queries and keys by fixed rotations, instead of being added to the state;
and a layer replaces the slots that it writes instead of adding to them, which makes each pass a fixed-point iteration
whose step t is exact for all spans of t + 1 words or fewer (inside) and of n - t or more (outside).

Shapes: B sentences, T tokens, S symbols of which the first N are nonterminals, L start positions.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pcfg.compiled import by_head
from pcfg.compiled.places import Places
from pcfg.compiled.slots import Slots


class _Layer(nn.Module):
    """What both kinds share: named views of the state, and heads one by one where a hook is to see them.

    Heads are added up as they are computed, unless one of three submodules has a forward hook, or `heads_apart` is set. Then
    each has its own:

    Attributes:
        head_in: gives the state that each head reads, [B, T, H, D].
        attention: gives the heads' attention scores, [B, H, T, T], from the token that reads to the one that is read.
        head_out: gives what each head adds to the state, [B, T, H, D].
        score: which scores the layer writes; H is S for "inside", 2 S for "outside".
    """

    score: str

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.slots = slots
        self.head_in, self.attention, self.head_out = nn.Identity(), nn.Identity(), nn.Identity()
        self.heads_apart = False

    @property
    def hooked(self) -> bool:
        """Whether heads are to be seen one by one."""
        points: tuple[Any, ...] = (self.head_in, self.attention, self.head_out)
        return self.heads_apart or any(point._forward_hooks or point._forward_pre_hooks for point in points)

    def summed(self, state: Tensor, rules: Tensor, places: Places, head_mask: Tensor | None) -> Tensor:
        """What the heads add to the state, [B, T, D]; passes by the hooks where there are some."""
        if not self.hooked:
            return self.step(state, rules, places, head_mask)
        inside = self.score == "inside"
        count = len(self.slots.symbols) * (1 if inside else 2)
        states = self.head_in(state[:, :, None].expand(-1, -1, count, -1))
        if inside:
            scores = self.attention(by_head.inside_attention(self.slots, states, places))
            found = by_head.inside_outputs(self.slots, states, scores, rules, places)
        else:
            scores = self.attention(by_head.outside_attention(self.slots, states, rules, places))
            found = by_head.outside_outputs(self.slots, states, scores, rules, places)
        return self.head_out(found if head_mask is None else found * head_mask[:, None]).sum(2)

    def step(self, state: Tensor, rules: Tensor, places: Places, head_mask: Tensor | None) -> Tensor:
        """What the heads add to the state, [B, T, D], all at once."""
        raise NotImplementedError

    def spans(self, state: Tensor, score: str) -> Tensor:
        """Scores over spans, [B, T, N, L]."""
        scores = state[..., self.slots.spans(score)]
        return scores.unflatten(-1, (len(self.slots.nonterminals), self.slots.length))

    def tags(self, state: Tensor, score: str) -> Tensor:
        """Scores of preterminals over the token's own word, [B, T, P]."""
        return state[..., self.slots.tags(score)]

    def every(self, state: Tensor, places: Places) -> Tensor:
        """Inside scores of every symbol over i..j, [B, T, S, L]: a preterminal's stand at i = j."""
        own = self.tags(state, "inside")[..., None] * places.here[..., None, :]
        return torch.cat([self.spans(state, "inside"), own], 2)

    def scores(self, state: Tensor, places: Places) -> Tensor:
        """Attention of a nonterminal's inside head, inside(C, k + 1, j) from j (dimension 1) to k, [B, T, T, N]."""
        found = torch.einsum("bjrs,bks->bjkr", self.spans(state, "inside"), places.next)
        return found * places.before[..., None]

    def parents(self, state: Tensor, rules: Tensor, places: Places) -> Tensor:
        """For a nonterminal C on the right, sum over B of P(A -> B C) inside(B, i, k), [B, T, N (C), N (A), L (i)]."""
        inner = len(self.slots.nonterminals)
        found = torch.einsum("alr,bkli->bkrai", rules[:, :inner, :inner], self.spans(state, "inside"))
        own = torch.einsum("alr,bkl->bkra", rules[:, inner:, :inner], self.tags(state, "inside"))
        return torch.addcmul(found, own[..., None], places.here[:, :, None, None])

    def siblings(self, state: Tensor, rules: Tensor) -> Tensor:
        """Sum over the preterminals C that the token's own word may have of P(A -> B C) P(word | C), [B, T, N (A), S (B)]."""
        return torch.einsum("alr,bjr->bjal", rules[..., len(self.slots.nonterminals) :], self.tags(state, "inside"))


class InsideLayer(_Layer):
    """One step of the inside pass: inside(A, i, j) = sum over k, B, C of P(A -> B C) inside(B, i, k) inside(C, k + 1, j).

    The head of C: the query at j holds inside(C, s, j) for every start s, the key at k is 1 at k + 1, so the attention
    score is inside(C, k + 1, j); the value at k is every inside(B, i, k), and the output matrix holds P(A -> B C).
    A preterminal's head attends to the token right before its own only, so those heads are added up there at once.
    """

    score = "inside"

    def forward(
        self,
        state: Float[Tensor, "B T D"],
        rules: Float[Tensor, "N S S"],
        places: Places,
        head_mask: Float[Tensor, " H"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The state with inside scores over spans replaced; `head_mask` multiplies heads, in the order of the symbols."""
        new, written = state.clone(), self.slots.spans("inside")
        new[..., written] = self.summed(state, rules, places, head_mask)[..., written]
        return new

    def step(self, state: Tensor, rules: Tensor, places: Places, head_mask: Tensor | None) -> Tensor:
        """What the heads add to the state, [B, T, D], all at once."""
        rules = rules if head_mask is None else rules * head_mask
        found = torch.einsum("bjkr,bkrai->bjai", self.scores(state, places), self.parents(state, rules, places))
        left = torch.einsum("bjk,bkli->bjli", places.previous, self.every(state, places))
        added = torch.zeros_like(state)
        added[..., self.slots.spans("inside")] = (found + self.siblings(state, rules) @ left).flatten(2)
        return added


class OutsideLayer(_Layer):
    """One step of the outside pass: each symbol's outside score from the outside scores of the parents it may have.

    The first S heads serve right children C: outside(C, k + 1, j) sums, over i, A and B, P(A -> B C) outside(A, i, j)
    inside(B, i, k): the query at j holds outside(A, i, j), the key at k the sum over B, the value is 1 at k + 1. The other S heads
    serve left children B with the sibling C, and read from tokens after their own: outside(B, i, k) sums, over j, A and C, P(A -> B C)
    outside(A, i, j) inside(C, k + 1, j): the query at k is 1 at k + 1, the key at j holds inside(C, s, j), the value outside(A, i, j).
    Preterminals' heads attend to the token right before or right after only, and are added up there at once.
    """

    score = "outside"

    def forward(
        self,
        state: Float[Tensor, "B T D"],
        rules: Float[Tensor, "N S S"],
        roots: Float[Tensor, " S"],
        places: Places,
        head_mask: Float[Tensor, " H"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The state with outside scores replaced; `head_mask` multiplies the 2 S heads: right children, then siblings of left ones."""
        new = state.clone()
        written = slice(self.slots.tags("outside").start, self.slots.spans("outside").stop)
        new[..., written] = self.summed(state, rules, places, head_mask)[..., written]
        return with_roots(new, self.slots, roots, places)

    def step(self, state: Tensor, rules: Tensor, places: Places, head_mask: Tensor | None) -> Tensor:
        """What the heads add to the state, [B, T, D], all at once."""
        symbols, right, left = len(self.slots.symbols), rules, rules
        if head_mask is not None:
            right, left = rules * head_mask[:symbols], rules * head_mask[symbols:]
        spans, tags = self._of_right(state, right, places)
        more, own = self._of_left(state, left, places)
        added = torch.zeros_like(state)
        added[..., self.slots.spans("outside")] = (spans + more).flatten(2)
        added[..., self.slots.tags("outside")] = tags + own
        return added

    def _of_right(self, state: Tensor, rules: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Outside scores of right children: of nonterminals over spans [B, T, N, L], of preterminals over words [B, T, P]."""
        outer, inner = self.spans(state, "outside"), len(self.slots.nonterminals)
        found = torch.einsum("bjai,bkrai->bjkr", outer, self.parents(state, rules, places)) * places.before[..., None]
        left = torch.einsum("bjk,bkli->bjli", places.previous, self.every(state, places))
        tags = torch.einsum("alr,bjal->bjr", rules[..., inner:], outer @ left.mT)
        return torch.einsum("bjkr,bks->bjrs", found, places.next), tags

    def _of_left(self, state: Tensor, rules: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Outside scores of left children, likewise."""
        outer, inner = self.spans(state, "outside"), len(self.slots.nonterminals)
        gathered = torch.einsum("bjkr,bjai->bkrai", self.scores(state, places), outer)
        after = torch.einsum("bjk,bjai->bkai", places.previous, outer)
        beside = torch.einsum("bjk,bjal->bkla", places.previous, self.siblings(state, rules))
        spans = torch.einsum("alr,bkrai->bkli", rules[:, :inner, :inner], gathered) + beside[:, :, :inner] @ after
        own = torch.einsum("bkrai,bki->bkra", gathered, places.here)
        tags = torch.einsum("alr,bkra->bkl", rules[:, inner:, :inner], own)
        after = torch.einsum("bkai,bki->bka", after, places.here)
        return spans * places.upto[:, :, None], tags + torch.einsum("bkla,bka->bkl", beside[:, :, inner:], after)


def with_roots(state: Tensor, slots: Slots, roots: Tensor, places: Places) -> Tensor:
    """The start distribution added where a whole sentence ends: outside scores of spans from its first to its last word."""
    inner = len(slots.nonterminals)
    spans = slots.spans("outside")
    new = state.clone()
    new[..., spans.start : spans.stop : slots.length] += places.last[..., None] * roots[:inner]
    new[..., slots.tags("outside")] += (places.last * places.here[..., 0])[..., None] * roots[inner:]
    return new
