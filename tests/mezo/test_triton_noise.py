"""Triton's kernels against compiled loops on the CPU: on a card, or slowly in Triton's interpreter where there is none."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as kernels are defined

pytest.importorskip("triton", reason="Triton isn't installed: its kernels aren't tested here")

from surgery.mezo import triton_kernels  # noqa: E402
from surgery.mezo.noise import KINDS, Noise, Place  # noqa: E402
from tests.mezo.test_noise import terms  # noqa: E402

# The interpreter computes with numpy, which warns where 32-bit numbers go round.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
SEED = 0xFEDCBA9876543210


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns", "start"), [(1, 700, 0), (3, 130, 77), (2, 3000, 4095)])
def test_spread(kind, rows, columns, start):
    noise, place = Noise(kind, SEED), Place(0xFFFFFFFF, 0xF0000001, 3)
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    starts = start + torch.arange(rows) * (columns + 5)
    found = torch.zeros(2, rows, columns, device=DEVICE)
    triton_kernels.spread(
        values.to(DEVICE), starts.to(DEVICE), (1e-3, -1e-3), place, noise.key, kind == "gaussian", found
    )
    assert torch.equal(found.cpu(), noise.spread(values, starts, (1e-3, -1e-3), place))


@pytest.mark.parametrize("kind", KINDS)
def test_walk(kind):
    noise, walked = Noise(kind, SEED), terms(4)
    values = torch.randn(2500, generator=torch.Generator().manual_seed(0))
    found, wanted = values.to(DEVICE), values.clone()
    triton_kernels.walk(found, 4096, 7, walked, noise.key, kind == "gaussian")
    noise.walk(wanted, 7, walked, 4096)
    assert torch.equal(found.cpu(), wanted)
