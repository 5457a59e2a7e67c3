"""Sparse deltas drawn at random, and a plain view of them as dictionaries of bits: strategies and oracles for the algebra."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from surgery.checkpoints.delta import Extent, SparseDelta
from tests.support.tiny import raw

FINGERPRINT, DIGESTS = "ab" * 32, ("0123456789abcdef", "fedcba9876543210")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_EXPONENT = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float64: 0x7FF << 52}
SHAPES = {"a.weight": (3, 4), "b.bias": (7,), "c.scalar": (), "d.cube": (2, 1, 3)}


@st.composite
def patterns(draw, dtype):
    """One weight's bits: any number or infinity, -0.0 and subnormals among them, but no NaN."""
    wide, exponent = 8 * dtype.itemsize, _EXPONENT[dtype]
    mantissa = exponent & -exponent  # one more than the largest mantissa
    special = [0, 1 << (wide - 1), 1, mantissa - 1, exponent, (1 << (wide - 1)) | 1, exponent - 1]
    magnitude = st.integers(0, exponent)
    sign = draw(st.sampled_from([0, 1 << (wide - 1)]))
    return draw(st.sampled_from(special)) if draw(st.booleans()) else sign | draw(magnitude)


def tensor_of(bits, dtype, shape):
    array = np.array(bits, dtype=_UNSIGNED[dtype.itemsize])
    return torch.from_numpy(array.view(np.uint8)).view(dtype).reshape(shape).clone()


@st.composite
def bases(draw, mixed=True):
    """Tensors of a base checkpoint: `{name: tensor}`."""
    one = draw(st.sampled_from(DTYPES))
    made = {}
    for name, shape in SHAPES.items():
        dtype = draw(st.sampled_from(DTYPES)) if mixed else one
        size = math.prod(shape)
        made[name] = tensor_of(draw(st.lists(patterns(dtype), min_size=size, max_size=size)), dtype, shape)
    return made


@st.composite
def changes(draw, base, at=None):
    """`{(name, index): tuned bits}` over a base, anywhere or `at` given places."""
    places = [(name, index) for name, tensor in base.items() for index in range(tensor.numel())] if at is None else at
    chosen = draw(st.lists(st.sampled_from(places), unique=True, max_size=12)) if places else []
    return {place: draw(patterns(base[place[0]].dtype)) for place in chosen}


def delta_of(base, changed, **fields):
    """The delta from its definition, made without `from_parts`."""
    extents, indices, values, base_values = [], [], [], []
    for name in sorted({name for name, _ in changed}):
        mine = sorted(index for n, index in changed if n == name)
        extents.append(Extent(name, base[name].dtype, tuple(base[name].shape), len(indices), len(indices) + len(mine)))
        indices += mine
        values.append(tensor_of([changed[name, i] for i in mine], base[name].dtype, len(mine)))
        base_values.append(base[name].reshape(-1)[mine])
    rank = [torch.float16, torch.float32, torch.float64]
    dtypes = {part.dtype for part in values}
    wide = dtypes.pop() if len(dtypes) == 1 else max(dtypes - {torch.bfloat16} | {torch.float32}, key=rank.index)
    return SparseDelta(
        extents=tuple(extents),
        indices=torch.tensor(indices, dtype=torch.int64),
        values=torch.cat([part.to(wide) for part in values]) if values else torch.empty(0),
        base_values=torch.cat([part.to(wide) for part in base_values]) if values else torch.empty(0),
        **{"movable": 26, "base_fingerprint": FINGERPRINT, "base_digests": DIGESTS, **fields},
    )


def expected_after(base, *changes):
    """Bits of all tensors with changes written one after another."""
    made = {name: raw(tensor) for name, tensor in base.items()}
    for changed in changes:
        for (name, index), bits in changed.items():
            made[name][index] = bits
    return made


def applied(base, *deltas, restore=False):
    """Bits of all tensors after `write_into`, on a copy."""
    made = {name: tensor.clone() for name, tensor in base.items()}
    for delta in deltas:
        delta.write_into(made, restore=restore)
    return {name: raw(tensor) for name, tensor in made.items()}


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def content(delta):
    """A delta as a dictionary: `{(name, index): (base bits, tuned bits)}`."""
    made = {}
    for name in delta.tensors:
        index, tuned, base = delta.part(name)
        made |= {
            (name, i): (b, t) for i, b, t in zip(index.tolist(), raw(base).tolist(), raw(tuned).tolist(), strict=True)
        }
    return made


def equal(left, right):
    return left.extents == right.extents and content(left) == content(right)


pairs = bases().flatmap(lambda base: st.tuples(st.just(base), changes(base)))
triples = bases().flatmap(lambda base: st.tuples(st.just(base), changes(base), changes(base)))
