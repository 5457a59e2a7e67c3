"""Inside values with an exponent each, for sentences whose values span more than float64: slower, and never underflows."""

import math
from typing import no_type_check

import numpy as np

from pcfg.sparse.kernels import kernel


@kernel
@no_type_check
def add(mantissas, exponents, at, mantissa, exponent):
    """Add mantissa * 2**exponent to entry `at`; the greater exponent is kept."""
    gap = exponent - exponents[at]
    if mantissas[at] == 0:
        mantissas[at], exponents[at] = mantissa, exponent
    elif gap > 0:
        mantissas[at] = math.ldexp(mantissas[at], max(-gap, -2000)) + mantissa
        exponents[at] = exponent
    else:
        mantissas[at] += math.ldexp(mantissa, max(gap, -2000))


@kernel
@no_type_check
def combine_wide(tables, items, sizes, position, i, j, split, mantissas, exponents):
    """Add the parents of (i, split) and (split, j); `position` gives the item of each symbol in (split, j), or -1."""
    first, symbols, values, scales = items
    for x in range(first[i, split], first[i, split] + sizes[i, split]):
        left = symbols[x]
        for pair in range(tables.left_start[left], tables.left_start[left + 1]):
            y = position[tables.pair_right[pair]]
            if y < 0:
                continue
            for rule in range(tables.pair_start[pair], tables.pair_start[pair + 1]):
                mantissa, exponent = math.frexp(tables.rule_unscaled[rule])
                mantissa *= values[x] * values[y]
                add(mantissas, exponents, tables.rule_parent[rule], mantissa, exponent + scales[x] + scales[y])


@kernel
@no_type_check
def inside_wide(tables, emissions):
    """Items by rising (j - i, i, symbol): firsts and sizes [n, n + 1], symbols, mantissas in [1/2, 1), exponents."""
    n, tags = emissions.shape
    symbols, capacity, used = tables.left_start.size - 1, 1024, 0
    first, sizes = np.zeros((n, n + 1), np.int64), np.zeros((n, n + 1), np.int64)
    names, values, scales = np.empty(capacity, np.int32), np.empty(capacity), np.empty(capacity, np.int32)
    mantissas, exponents = np.zeros(symbols), np.zeros(symbols, np.int64)
    position = np.full(symbols, -1)
    for width in range(1, n + 1):
        for i in range(n - width + 1):
            j = i + width
            if width == 1:
                mantissas[symbols - tags :] = emissions[i]
                exponents[symbols - tags :] = 0
            for split in range(i + 1, j):
                right = slice(first[split, j], first[split, j] + sizes[split, j])
                for y in range(right.start, right.stop):
                    position[names[y]] = y
                combine_wide(tables, (first, names, values, scales), sizes, position, i, j, split, mantissas, exponents)
                position[names[right]] = -1
            if used + symbols > names.size:
                extra = names.size + symbols
                names = np.concatenate((names, np.empty(extra, np.int32)))
                values = np.concatenate((values, np.empty(extra)))
                scales = np.concatenate((scales, np.empty(extra, np.int32)))
            first[i, j] = used
            for symbol in range(symbols):
                if mantissas[symbol] > 0:
                    mantissa, exponent = math.frexp(mantissas[symbol])
                    names[used], values[used], scales[used] = symbol, mantissa, exponent + exponents[symbol]
                    mantissas[symbol] = 0.0
                    used += 1
            sizes[i, j] = used - first[i, j]
    return first, sizes, names[:used], values[:used], scales[:used]
