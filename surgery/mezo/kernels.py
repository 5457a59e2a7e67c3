"""Noise on a CPU, compiled: the bits of `surgery/philox.py`, made and added in one pass over the weights.

No kernel lets the compiler fuse a product with the addition that follows (numba doesn't unless told to): then every
weight takes the same roundings here, in torch and on a card. Words are made for a group of blocks at once, in arrays
indexed plainly, which is what lets the compiler use SIMD.
"""

from typing import Any, no_type_check

import numpy as np

from surgery.compiling import compiled
from surgery.philox import FRACTION, MULTIPLIERS, ROUNDS, SEGMENTS, WEYL, quantiles

GROUP = 32  # blocks whose words are made at once
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint32(WEYL[0]), np.uint32(WEYL[1])
_HALF, _BITS, _ONE = np.uint64(32), 32, np.uint32(1)
_STARTS, _SLOPES = (part.numpy() for part in quantiles())
_LOWEST, _SHIFT = np.int32(127 * SEGMENTS), np.int32(FRACTION)
_MASK, _UNIT = np.int32((1 << FRACTION) - 1), np.float32(2.0**-FRACTION)
_TOP, _LAST, _NINE, _TWO = np.uint32(1 << 31), np.uint32(31), np.uint32(9), np.uint32(2)
_LOW, _HIGH, _BYTE = np.uint32(0xFF), np.uint32(0xFFFFFF00), np.uint32(8)

kernel = compiled()


@kernel
@no_type_check
def _words(first: int, tensor: int, step: int, direction: int, k0: int, k1: int, words: Any) -> None:
    """Words of `GROUP` blocks from `first` on, [4 * GROUP], word by word."""
    start, c1, c2, c3 = np.uint32(first), np.uint32(tensor), np.uint32(step), np.uint32(direction)
    for b in range(GROUP):
        words[b] = start + np.uint32(b)
        words[GROUP + b] = c1
        words[2 * GROUP + b] = c2
        words[3 * GROUP + b] = c3
    key0, key1 = np.uint32(k0), np.uint32(k1)
    for _ in range(ROUNDS):
        for b in range(GROUP):
            one, two = _M0 * np.uint64(words[b]), _M1 * np.uint64(words[2 * GROUP + b])
            words[b] = np.uint32(two >> _HALF) ^ words[GROUP + b] ^ key0
            words[GROUP + b] = np.uint32(two)
            words[2 * GROUP + b] = np.uint32(one >> _HALF) ^ words[3 * GROUP + b] ^ key1
            words[3 * GROUP + b] = np.uint32(one)
        key0, key1 = np.uint32(key0 + _W0), np.uint32(key1 + _W1)


@kernel
@no_type_check
def _word(block: int, number: int, tensor: int, step: int, direction: int, k0: int, k1: int) -> int:
    """One word of one block."""
    c0, c1, c2, c3 = np.uint32(block), np.uint32(tensor), np.uint32(step), np.uint32(direction)
    key0, key1 = np.uint32(k0), np.uint32(k1)
    for _ in range(ROUNDS):
        one, two = _M0 * np.uint64(c0), _M1 * np.uint64(c2)
        c0, c2 = np.uint32(np.uint32(two >> _HALF) ^ c1 ^ key0), np.uint32(np.uint32(one >> _HALF) ^ c3 ^ key1)
        c1, c3 = np.uint32(two), np.uint32(one)
        key0, key1 = np.uint32(key0 + _W0), np.uint32(key1 + _W1)
    if number < 2:
        return c0 if number == 0 else c1
    return c2 if number == 2 else c3


@kernel
@no_type_check
def _normal(word: int) -> float:
    bits = np.float32(np.int32(np.uint32(word >> _NINE) * _TWO + _ONE)).view(np.int32)
    segment = (bits >> _SHIFT) - _LOWEST
    size = _STARTS[segment] + np.float32(bits & _MASK) * _UNIT * _SLOPES[segment]
    return size if word & _ONE else -size


@kernel
@no_type_check
def _one(index: int, tensor: int, step: int, direction: int, k0: int, k1: int, normal: bool) -> float:
    """The noise of one weight."""
    if normal:
        return _normal(_word(index // 4, index % 4, tensor, step, direction, k0, k1))
    word = _word(index // 128, (index >> 5) & 3, tensor, step, direction, k0, k1)
    return np.float32(1) if (word >> np.uint32(index & 31)) & _ONE else np.float32(-1)


@kernel
@no_type_check
def _add(words: Any, scale: Any, normal: bool, out: Any) -> None:
    """Add `scale` times a group's noise to `out`, in the order of the weights."""
    if normal:
        for b in range(GROUP):
            for w in range(4):
                out[4 * b + w] += scale * _normal(words[w * GROUP + b])
        return
    bits = np.uint32(np.float32(scale).view(np.uint32) ^ _TOP)
    for b in range(GROUP):
        for w in range(4):
            word, first = words[w * GROUP + b], (b * 4 + w) * _BITS
            for bit in range(_BITS):  # the sign bit is flipped where the word's bit is 1, after being flipped for all
                signed = np.uint32(np.uint32(np.uint32(word << np.uint32(_LAST - np.uint32(bit))) & _TOP) ^ bits)
                out[first + bit] += signed.view(np.float32)


@kernel
@no_type_check
def _round(words: Any, normal: bool, bits: Any) -> None:
    """Round float32 numbers, seen as bits, to their upper 24 bits, up or down by chance: by bits that no sign of theirs is made of."""
    for b in range(GROUP):
        for w in range(4):
            word = words[w * GROUP + b]
            if normal:
                chance = np.uint32(np.uint32(word >> _ONE) & _LOW)
                bits[4 * b + w] = np.uint32(np.uint32(bits[4 * b + w] + chance) & _HIGH)
                continue
            first = (b * 4 + w) * _BITS
            for bit in range(_BITS):
                after = np.uint32(np.uint32(np.uint32(word >> np.uint32(bit)) >> _ONE) & _LOW)
                around = np.uint32(np.uint32(word << np.uint32(_LAST - np.uint32(bit))) & _LOW)
                chance = np.uint32(after | around)
                bits[first + bit] = np.uint32(np.uint32(bits[first + bit] + chance) & _HIGH)


@kernel
@no_type_check
def at(indices: Any, tensor: int, step: int, direction: int, k0: int, k1: int, normal: bool, out: Any) -> None:
    """The noise of single weights by their index."""
    for i in range(len(indices)):
        out[i] = _one(indices[i], tensor, step, direction, k0, k1, normal)


@kernel
@no_type_check
def spread(
    values: Any,
    starts: Any,
    scales: Any,
    tensor: int,
    step: int,
    direction: int,
    k0: int,
    k1: int,
    normal: bool,
    out: Any,
) -> None:
    """out[p] = values + scales[p] z, for weights [rows, columns] whose rows begin at these indices of the tensor."""
    size = GROUP * (4 if normal else 128)
    words, moved = np.empty(4 * GROUP, np.uint32), np.empty((len(scales), size), np.float32)
    columns = values.shape[1]
    held, noisy = np.int64(-1), np.int64(-1)  # groups whose words and whose noise are held: short rows share them
    for row in range(values.shape[0]):
        start, done = starts[row], 0
        while done < columns:
            group = (start + done) // size
            place = start + done - group * size
            stop = min(columns, done + size - place)
            if group != held:
                _words(group * GROUP, tensor, step, direction, k0, k1, words)
                held = group
            if stop - done < size and noisy != group:
                moved[:] = 0
                for p in range(len(scales)):
                    _add(words, scales[p], normal, moved[p])
                noisy = group
            for p in range(len(scales)):
                part = out[p, row, done:stop]
                if stop - done == size:
                    part[:] = values[row, done:stop]
                    _add(words, scales[p], normal, part)
                else:
                    _sum(values[row, done:stop], moved[p, place : place + stop - done], part)
            done = stop


@kernel
@no_type_check
def walk(
    values: Any, start: int, tensor: int, steps: Any, directions: Any, scales: Any, k0: int, k1: int, normal: bool
) -> None:
    """values + scales[0] z_0 + scales[1] z_1 and so on, in that order, in place: weights from index `start`, a group's first, on."""
    size = GROUP * (4 if normal else 128)
    words, part = np.empty(4 * GROUP, np.uint32), np.empty(size, np.float32)
    for done in range(0, len(values), size):
        count = min(size, len(values) - done)
        part[:count] = values[done : done + count]
        for t in range(len(steps)):
            _words((start + done) // size * GROUP, tensor, steps[t], directions[t], k0, k1, words)
            _add(words, scales[t], normal, part)
        values[done : done + count] = part[:count]


@kernel
@no_type_check
def walk_rounded(
    bits: Any, start: int, tensor: int, steps: Any, directions: Any, scales: Any, k0: int, k1: int, normal: bool
) -> None:
    """`walk` of numbers that keep 24 bits, rounded by chance after each step; given and left as a float32's bits."""
    size = GROUP * (4 if normal else 128)
    words, part = np.empty(4 * GROUP, np.uint32), np.zeros(size, np.uint32)
    floats = part.view(np.float32)
    for done in range(0, len(bits), size):
        count = min(size, len(bits) - done)
        part[:count] = bits[done : done + count]
        for t in range(len(steps)):
            _words((start + done) // size * GROUP, tensor, steps[t], directions[t], k0, k1, words)
            _add(words, scales[t], normal, floats)
            _round(words, normal, part)
        bits[done : done + count] = part[:count]


@kernel
@no_type_check
def walk_at(
    values: Any, indices: Any, tensor: int, steps: Any, directions: Any, scales: Any, k0: int, k1: int, normal: bool
) -> None:
    """`walk` of single weights."""
    for i in range(len(values)):
        value = values[i]
        for t in range(len(steps)):
            value += scales[t] * _one(indices[i], tensor, steps[t], directions[t], k0, k1, normal)
        values[i] = value


@kernel
@no_type_check
def _sum(one: Any, two: Any, out: Any) -> None:
    for i in range(len(one)):
        out[i] = one[i] + two[i]
