"""Random words addressed by a counter: Philox 4x32-10 (Salmon et al. 2011, section 3.2), and signs and normal numbers made of them.

Here in torch's integers, on any device, as the reference that kernels are held to bit for bit. Normal numbers come from
a table of quantiles by additions and multiplications alone: a logarithm or cosine has other last bits in every library.
"""

from functools import cache
from itertools import pairwise
from statistics import NormalDist

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # added to the key between rounds
ROUNDS = 10
SIGNS = 128  # signs in a block's four words; of normal numbers a block makes four
_WORD = 0xFFFFFFFF

OCTAVES, SEGMENTS = 24, 32  # halvings of the upper tail, and segments of each, within which quantiles are interpolated
FRACTION = 18  # lowest bits of a float32's mantissa, which tell the place within a segment


def philox(counter: Int64[Tensor, "*shape 4"], key: tuple[int, int]) -> Int64[Tensor, "*shape 4"]:
    """Four random 32-bit words for each counter of four; the key is two words."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(ROUNDS):
        one, two = (
            c0 * MULTIPLIERS[0],
            c2 * MULTIPLIERS[1],
        )  # overflow leaves the lower 64 bits, which are all there are
        c0, c1, c2, c3 = (
            ((two >> 32) & _WORD) ^ c1 ^ k0,
            two & _WORD,
            ((one >> 32) & _WORD) ^ c3 ^ k1,
            one & _WORD,
        )
        k0, k1 = (k0 + WEYL[0]) & _WORD, (k1 + WEYL[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), -1)


def signs(
    indices: Int64[Tensor, "*shape"], place: tuple[int, int, int], key: tuple[int, int]
) -> Float32[Tensor, "*shape"]:
    """Rademacher noise, +1 or -1, of weights by their index in a tensor.

    Args:
        place: number of the tensor, step, direction.
    """
    words = _words(indices // SIGNS, place, key)
    word = words.gather(-1, ((indices >> 5) & 3)[..., None])[..., 0]
    return ((word >> (indices & 31)) & 1).float() * 2 - 1


def normals(
    indices: Int64[Tensor, "*shape"], place: tuple[int, int, int], key: tuple[int, int]
) -> Float32[Tensor, "*shape"]:
    """Normal noise of weights by their index, as `signs`; its size is at most 5.4, and its variance 1."""
    word = _words(indices // 4, place, key).gather(-1, (indices & 3)[..., None])[..., 0]
    bits = ((word >> 9) * 2 + 1).float().view(torch.int32)  # an odd number of 24 bits, exact in float32
    start, slope = (part.to(indices.device) for part in quantiles())
    segment = ((bits >> FRACTION) - 127 * SEGMENTS).long()
    fraction = (bits & ((1 << FRACTION) - 1)).float() * 2.0**-FRACTION
    size = start[segment] + fraction * slope[segment]
    return torch.where((word & 1) == 1, size, -size)


@cache
def quantiles() -> tuple[Float32[Tensor, " segments"], Float32[Tensor, " segments"]]:
    """Where each segment of the normal distribution's upper half begins, and how far it goes.

    A float32 number u from 1 to 2^24 stands for the quantile of an upper tail of u / 2^25; its exponent and the highest
    bits of its mantissa tell the segment. Scaled so that the variance is 1.
    """
    edges = [2.0**octave * (1 + part / SEGMENTS) for octave in range(OCTAVES) for part in range(SEGMENTS)] + [
        2.0**OCTAVES
    ]
    heights = [-NormalDist().inv_cdf(edge / 2 ** (OCTAVES + 1)) for edge in edges]
    variance = sum(
        (stop - start) / 2**OCTAVES * (a * a + a * b + b * b) / 3
        for (start, stop), (a, b) in zip(pairwise(edges), pairwise(heights), strict=True)
    )
    # Kept to 16 bits after the point, so that another logarithm's last bit can't change them.
    kept = [round(height / variance**0.5 * 2**16) / 2**16 for height in heights]
    steps = [b - a for a, b in pairwise(kept)]
    return torch.tensor(kept[:-1], dtype=torch.float32), torch.tensor(steps, dtype=torch.float32)


def _words(blocks: Tensor, place: tuple[int, int, int], key: tuple[int, int]) -> Tensor:
    rest = torch.tensor(place, dtype=torch.int64, device=blocks.device).expand(*blocks.shape, 3)
    return philox(torch.cat((blocks[..., None], rest), -1), key)


def chances(
    indices: Int64[Tensor, " weights"], place: tuple[int, int, int], key: tuple[int, int], normal: bool
) -> Tensor:
    """Eight random bits for each weight, int32, of those that its own noise isn't made of; to round by."""
    if normal:
        word = _words(indices // 4, place, key).gather(-1, (indices & 3)[..., None])[..., 0]
        return ((word >> 1) & 0xFF).int()
    word = _words(indices // SIGNS, place, key).gather(-1, ((indices >> 5) & 3)[..., None])[..., 0]
    bit = indices & 31
    return (((word >> (bit + 1)) | (word << (31 - bit))) & 0xFF).int()
