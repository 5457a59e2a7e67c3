"""Noise: Philox's published vectors, and the same bits from compiled loops, from torch's integers and, in its own file, from Triton."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery import philox
from surgery.mezo.noise import KINDS, Noise, Place, Terms

ONES = 0xFFFFFFFF
# Counter, key and words of the file kat_vectors of Random123, the authors' own library.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_words(counter, key, words):
    assert philox.philox(torch.tensor(counter), key).tolist() == words


def plain(kind, indices, place, seed):
    """The noise by torch's integers."""
    made = philox.normals if kind == "gaussian" else philox.signs
    return made(indices, place, Noise(kind, seed).key)


PLACES = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)).map(
    lambda p: Place(*p)
)


@given(
    st.sampled_from(KINDS),
    st.integers(0, 2**64 - 1),
    PLACES,
    st.integers(0, 9000),
    st.integers(1, 5),
    st.integers(1, 9000),
)
def test_spread_is_the_sum_bit_for_bit(kind, seed, place, start, rows, columns):
    columns = -(-columns // rows)
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    starts = start + torch.arange(rows) * (columns + 3)
    found = Noise(kind, seed).spread(values, starts, (1e-3, -1e-3, 0.7), place)
    noise = plain(kind, starts[:, None] + torch.arange(columns), place, seed)
    for part, scale in zip(found, (1e-3, -1e-3, 0.7), strict=True):
        assert torch.equal(part, values + noise * torch.tensor(scale))


def terms(count, seed=0):
    draw = np.random.default_rng(seed)
    numbers = draw.integers(0, 2**32, (2, count), dtype=np.uint32)
    return Terms(*numbers, draw.normal(size=count).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4096, 5000])
def test_walks_are_steps_one_after_the_other_bit_for_bit(kind, count):
    noise, walked = Noise(kind, 3), terms(7)
    whole = torch.randn(8192 + count, generator=torch.Generator().manual_seed(0))
    wanted = whole[8192:].clone()
    for step, direction, scale in zip(*walked, strict=True):
        place = Place(5, int(step), int(direction))
        wanted += plain(kind, 8192 + torch.arange(count), place, 3) * torch.tensor(float(scale))
    fused, single = whole[8192:].clone(), whole[8192:].clone()
    noise.walk(fused, 5, walked, 8192)
    noise.walk_at(single, 8192 + torch.arange(count), 5, walked)
    assert torch.equal(fused, wanted)
    assert torch.equal(single, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_walks_keep_24_bits_and_have_no_bias(kind):
    noise, count = Noise(kind, 1), 1 << 14
    start = torch.full((count,), 0.02)
    bit = 2.0**-21  # of 24 bits of .02
    walked = Terms(np.arange(40, dtype=np.uint32), np.zeros(40, np.uint32), np.full(40, bit / 8, np.float32))
    wanted, rounded = start.clone(), start.bfloat16().float()
    noise.walk(wanted, 0, walked)
    before = rounded.clone()
    noise.walk_rounded(rounded, 0, walked)
    assert not (rounded.view(torch.int32) & 0xFF).any()
    went, true = rounded - before, wanted - start
    assert float((went * true).sum() / (true * true).sum()) == pytest.approx(
        1, abs=0.1
    )  # to the nearest, 0 would be left
    reference = before.clone()
    for step, _, scale in zip(*walked, strict=True):
        indices, place = torch.arange(count), (0, int(step), 0)
        moved = reference + plain(kind, indices, place, 1) * torch.tensor(float(scale))
        chance = philox.chances(indices, place, noise.key, kind == "gaussian")
        reference = ((moved.view(torch.int32) + chance) & ~0xFF).view(torch.float32)
    assert torch.equal(rounded, reference)


def test_normal_numbers_are_normal():
    found = Noise("gaussian", 5).at(torch.arange(400_000), Place(1, 2, 3)).double()
    assert float(found.mean()) == pytest.approx(0, abs=0.006)
    assert float(found.var()) == pytest.approx(1, abs=0.01)
    for edge, share in ((0.5, 0.30854), (1.0, 0.15866), (2.0, 0.02275), (3.0, 0.00135)):
        assert float((found > edge).double().mean()) == pytest.approx(share, rel=0.15)
        assert float((found < -edge).double().mean()) == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_an_address_counts(kind):
    """Noise at other seeds, steps, directions and tensors isn't correlated."""
    indices = torch.arange(20_000)
    first = Noise(kind, 1).at(indices, Place(1, 2, 3))
    others = [Noise(kind, seed).at(indices, Place(*place)) for seed, place in [
        (2, (1, 2, 3)), (1 + (1 << 32), (1, 2, 3)), (1, (2, 2, 3)), (1, (1, 3, 3)), (1, (1, 2, 4)),
    ]]  # fmt: skip
    for other in others:
        assert abs(float((first * other).mean())) < 0.03


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_gives_the_same_bits(kind):
    noise, walked = Noise(kind, 3), terms(5)
    values = torch.randn(70, 300, generator=torch.Generator().manual_seed(0))
    starts = 100 + torch.arange(70) * 300
    here = noise.spread(values, starts, (0.01, -0.01), Place(1, 2))
    there = noise.spread(values.cuda(), starts.cuda(), (0.01, -0.01), Place(1, 2))
    assert torch.equal(there.cpu(), here)
    one, two = values.reshape(-1).clone(), values.reshape(-1).cuda()
    noise.walk(one, 1, walked)
    noise.walk(two, 1, walked)
    assert torch.equal(two.cpu(), one)
