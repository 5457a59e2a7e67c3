"""The pieces of a block, forward and backward, against autograd."""

import math

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from surgery.tint.modules import (
    Arithmetic,
    activate,
    activate_backward,
    attend,
    attend_backward,
    cross_entropy,
    normalise,
    normalise_backward,
    rotate,
)
from tests.support.tint import relative


@given(
    st.sampled_from(["relu", "gelu", "gelu_new", "silu"]),
    st.integers(0, 10**6),
    st.floats(0.01, 30.0),
)
def test_activation_backward(kind, seed, size):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(2, 3, 7, dtype=torch.float64, generator=generator) * s for s in (size, 1.0))
    x.requires_grad_()
    y = activate(x, kind)
    (wanted,) = torch.autograd.grad(y, x, g)
    x, y = x.detach(), y.detach()
    assert torch.allclose(activate_backward(g, x, y, kind, Arithmetic.of("exact", torch.float64)), wanted, atol=1e-12)
    differenced = activate_backward(g, x, y, kind, Arithmetic.of("paper", torch.float64))
    clear = x.abs() > 1e-3  # the kink of ReLU
    assert torch.allclose(differenced[clear], wanted[clear], atol=1e-6 * float(g.abs().max()))


@given(
    st.sampled_from(["layer", "rms"]),
    st.sampled_from([1e-6, 1e-5, 0.1]),
    st.integers(0, 10**6),
    st.floats(0.01, 1000.0),
    st.floats(1e-6, 100.0),
)
def test_norm_backward(kind, epsilon, seed, size, height):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(2, 3, 9, dtype=torch.float64, generator=generator) * s for s in (size, height))
    x.requires_grad_()
    y = normalise(x, kind, epsilon)
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    assert torch.allclose(y, centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt(), rtol=1e-9)
    (wanted,) = torch.autograd.grad(y, x, g)
    x, y = x.detach(), y.detach()
    exact = normalise_backward(g, x, y, kind, epsilon, Arithmetic.of("exact", torch.float64))
    assert torch.allclose(exact, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    # Relative to each token, so neither a large x nor a small gradient drowns it.
    differenced = normalise_backward(g, x, y, kind, epsilon, Arithmetic.of("paper", torch.float64))
    assert relative(differenced, wanted) < 1e-6


@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]), st.booleans())
def test_attention_backward(seed, heads, masked):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = heads
    q, k, v, g = (
        torch.randn(2, 5, n, 4, dtype=torch.float64, generator=generator) for n in (queries, keys, keys, queries)
    )
    visible = None
    if masked:
        visible = torch.rand(2, 5, 5, generator=generator) < 0.5
        visible = visible.tril() | torch.eye(5, dtype=torch.bool)
    for x in (q, k, v):
        x.requires_grad_()
    scores = torch.einsum("bqhw,bkhw->bhqk", q, k.repeat_interleave(queries // keys, 2)) / 2
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None] if visible is None else visible
    p = scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1)
    read = torch.einsum("bhqk,bkhw->bqhw", p, v.repeat_interleave(queries // keys, 2))
    assert torch.allclose(attend(q, k, v, visible), read, atol=1e-12)
    wanted = torch.autograd.grad(read, (q, k, v), g)
    with torch.no_grad():
        found = attend_backward(g, q, k, v, visible, scores=True)
        _, _, alone = attend_backward(g, q, k, v, visible, scores=False)
    for ours, truth in zip(found, wanted, strict=True):
        assert torch.allclose(ours, truth, atol=1e-12)
    assert torch.equal(alone, found[2])


@given(st.integers(0, 10**6))
def test_turning_back_is_the_transposed_turn(seed):
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(1, 5, 1, 3, dtype=torch.float64, generator=generator).repeat(1, 1, 1, 2)
    turn = (angles.cos(), angles.sin())
    x, y = (torch.randn(1, 5, 2, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.allclose((rotate(x, turn) * y).sum(), (x * rotate(y, turn, back=True)).sum())
    assert torch.allclose(rotate(rotate(x, turn), turn, back=True), x)


def test_relus_kink_is_met_by_tokens_next_to_it_alone():
    """Differences step over it; a step a hundred times as large would from here too."""
    x, g = torch.tensor([[[-1e-6, 1e-6, 2.0]]], dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.float64)
    slope = activate_backward(g, x, activate(x, "relu"), "relu", Arithmetic.of("paper", torch.float64))
    assert torch.allclose(slope, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 10))
def test_cross_entropy_in_chunks_is_autograds(seed, positions, chunk):
    generator = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (positions, 7))
    targets = torch.randint(7, (positions,), generator=generator)
    hidden.requires_grad_()
    wanted = F.cross_entropy(hidden @ head.T, targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted.sum(), hidden)
    losses, ours = cross_entropy(hidden.detach(), head, targets, chunk)
    assert torch.allclose(losses, wanted) and torch.allclose(ours, gradient)
