"""Kernels of Triton against operations of torch: on a card, or slowly in Triton's interpreter where there is none."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as kernels are defined

triton = pytest.importorskip("triton", reason="Triton isn't installed: its kernels aren't tested here")

from pcfg.dense import chart, passes, steps, triton_kernels  # noqa: E402
from pcfg.dense.engine import dense_inside_outside, log_partition  # noqa: E402

# The interpreter computes with numpy, which warns of the logarithm of 0.
pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning")
NAMES = ("log_z", "label_marginals", "tag_posteriors", "rule_expectations", "start_expectations", "log_inside")


def scores(batch, n, tops, tags, own=False, seed=0):
    draw, symbols = torch.Generator().manual_seed(seed), tops + tags
    first = (batch,) if own else ()
    shapes = ((*first, symbols), (*first, tops, symbols, symbols), (batch, n, tags))
    found = [torch.randn(shape, generator=draw).to(DEVICE) for shape in shapes]
    return *found, torch.tensor([n, *[1 + (3 * i) % n for i in range(1, batch)]], device=DEVICE)


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setattr(passes, "FUSED", (DEVICE,))
    monkeypatch.setattr(steps, "MOST", 0)
    monkeypatch.setattr(triton_kernels, "works", lambda device, size: True)
    return monkeypatch


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize(("batch", "n", "tops", "tags"), [(2, 1, 3, 2), (3, 2, 2, 3), (2, 6, 3, 4)])
def test_charts_are_those_of_double_precision(fused, own, kept, batch, n, tops, tags):
    fused.setattr(chart, "KEPT_BYTES", kept)
    fused.setattr(chart, "KEPT_ON_CARD", kept)
    given = scores(batch, n, tops, tags, own)
    check(given)


def test_more_splits_and_symbols_than_a_program_takes_at_once(fused):
    if DEVICE == "cpu":
        fused.setattr(triton_kernels, "SPLITS", 2)  # too few for a card
    check(scores(1, 20 if DEVICE == "cuda" else 7, 3, 2))
    check(scores(1, 5, 17, 2))


def check(given):
    given[2][-1, 0, 0] = -torch.inf
    given[2][1:, 0] = -torch.inf  # without a parse
    given[1][..., 0, 1, :] = -torch.inf
    found = dense_inside_outside(*given)
    assert type(found.parts[0].run.state.inside.steps) is triton_kernels.TritonSteps
    exact = dense_inside_outside(*(x.double() if x.is_floating_point() else x for x in given))
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name).double(), getattr(exact, name), rtol=1e-4, atol=2e-5, msg=name)


def test_gradients_are_those_of_double_precision(fused):
    found = []
    for dtype in (torch.float32, torch.float64):
        start, binary, words, lengths = scores(3, 5, 3, 4)
        leaves = [x.to(dtype).requires_grad_() for x in (start, binary, words)]
        found.append(torch.autograd.grad(log_partition(*leaves, lengths).sum(), leaves))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-5)


def test_the_same_bits_from_call_to_call(fused):
    one, two = (dense_inside_outside(*scores(2, 6, 3, 4)) for _ in range(2))
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in NAMES)


def test_kernels_are_tried_before_they_are_used(monkeypatch):
    device = torch.device(DEVICE)
    monkeypatch.setattr(triton_kernels, "TRIED", 5)
    triton_kernels.works.cache_clear()
    assert triton_kernels.works(device, 16), triton_kernels.reasons
    triton_kernels.works.cache_clear()
    plain = triton_kernels.TritonSteps.scale
    monkeypatch.setattr(
        triton_kernels.TritonSteps,
        "scale",
        lambda self, inside, width, raw, best: plain(self, inside, width, raw * 2, best),
    )
    assert not triton_kernels.works(device, 16)
    assert "AssertionError" in triton_kernels.reasons.pop((device, 16))
    assert not triton_kernels.TritonSteps.suits(torch.zeros(2, 2, 2, device=device), 3)
    triton_kernels.works.cache_clear()


def test_what_they_are_not_made_for_is_left_to_tensors():
    for tags, nonterminals in (
        (torch.zeros(2, 2, 2, dtype=torch.float64), 3),
        (torch.zeros(2, 2, 2, dtype=torch.complex128), 3),
        (torch.zeros(2, 2, 2), 65),
    ):
        assert not triton_kernels.TritonSteps.suits(tags, nonterminals)
