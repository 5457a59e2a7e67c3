"""The sparse chart's two passes in compiled loops: Inside (or Viterbi) bottom-up, Outside top-down, scaled per span.

Memory. `left[row, m]` holds the scaled inside value of a left child that starts at i and ends at m, its row given by
`left_row[i, symbol]`; `right[row, m]` that of a right child that starts at m and ends at j. So the splits of (i, j) for
one pair of children are two contiguous rows multiplied, and a word of bits a row says which splits exist: most pairs are
dismissed by one AND. Rules with the same children share that product.

Scale. A span's values are divided by 2**exponents[i, j], so that the greatest lies in [1/2, 1): exact. A pass stops with
`UNDERFLOW` when a product *might* leave the normal range (a bound on exponents); `wide` then takes over.
"""

import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros, trailing_zeros

from surgery.compiling import compiled

DONE, UNDERFLOW, FULL = 0, 1, 2
NOTHING = -(1 << 60)
LOWEST = -1000  # exponent below which nothing may fall: float64 is normal down to -1022, and products have four factors

kernel = compiled(error_model="numpy")
# Reordering a sum changes its rounding only, and a maximum not at all; without it these loops don't use SIMD.
reordered = compiled(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "nnan"})


class Tables(NamedTuple):
    """Rules twice: by pairs of children (sorted by left, right, parent) and by parents; probabilities / 2**exponent."""

    left_start: Any  # [S + 1]: pairs of each left child
    pair_right: Any  # [Q]
    pair_start: Any  # [Q + 1]: rules of each pair
    rule_parent: Any  # [R]
    rule_prob: Any  # [R]
    rule_unscaled: Any  # [R]
    rule_number: Any  # [R]: the rule's place in the caller's arrays
    parent_start: Any  # [N + 1]: rules of each parent, in the arrays that follow
    left: Any  # [R]
    right: Any  # [R]
    prob: Any  # [R]
    unscaled: Any  # [R]
    number: Any  # [R]
    exponent: int
    least: int  # exponent of the smallest probability
    rules: int  # in the caller's arrays


class Space(NamedTuple):
    """Memory for one sentence, used again for the next: pages once touched are half of the time otherwise."""

    left_mask: Any  # [n + 1, S] bits of the splits at which a row is positive
    right_mask: Any
    left_row: Any  # [n + 1, S]
    right_row: Any
    left: Any  # [rows, n + 1]
    right: Any
    left_outside: Any
    right_outside: Any
    item_symbol: Any  # [items]
    item_inside: Any


class Cells(NamedTuple):
    """What is known of each span, [n, n + 1]: its items, the scale, the exponent of its smallest value."""

    first: Any
    size: Any
    exponents: Any
    least: Any


@reordered
@no_type_check
def sum_products(a, b, low, high):
    """Sum of a[m] b[m]."""
    total = 0.0
    for m in range(low, high):
        total += a[m] * b[m]
    return total


@reordered
@no_type_check
def max_product(a, b, low, high):
    """Maximum of a[m] b[m]."""
    best = 0.0
    for m in range(low, high):
        best = max(best, a[m] * b[m])
    return best


@reordered
@no_type_check
def pass_down(weight, factors, left, right, left_outside, right_outside, low, high):
    """Add to both children's outside values; returns the sum of their products, as in the inside pass."""
    total = 0.0
    for m in range(low, high):
        scaled = left[m] * factors[m]
        total += scaled * right[m]
        left_outside[m] += weight * factors[m] * right[m]
        right_outside[m] += weight * scaled
    return total


@kernel
@no_type_check
def bit_shift(n):
    """How far a position is shifted to give its bit: one bit a position up to 63, then 2, 4... positions share one."""
    shift = 0
    while n >> shift >= 64:
        shift += 1
    return shift


@kernel
@no_type_check
def splits(mask, shift, i, j):
    """First split and end of splits that a mask allows in (i, j)."""
    low, high = np.int64(trailing_zeros(mask)), 64 - np.int64(leading_zeros(mask))
    return max(low << shift, i + 1), min(high << shift, j)


@kernel
@no_type_check
def split_factors(cells, i, j, factors):
    """Fill the splits' scales relative to the greatest; returns its exponent and the least exponent of any product."""
    top = least = NOTHING
    for m in range(i + 1, j):
        if cells.size[i, m] > 0 and cells.size[m, j] > 0:
            top = max(top, cells.exponents[i, m] + cells.exponents[m, j])
    for m in range(i + 1, j):
        factors[m] = 0.0
        if cells.size[i, m] > 0 and cells.size[m, j] > 0:
            exponent = cells.exponents[i, m] + cells.exponents[m, j] - top
            factors[m] = math.ldexp(1.0, max(exponent, -2000))
            exponent += cells.least[i, m] + cells.least[m, j]
            least = exponent if least == NOTHING else min(least, exponent)
    return top, least


@kernel
@no_type_check
def combine(tables, space, active, i, j, shift, factors, scaled, sums, bits, maximum):
    """Add to `sums` all parents of (i, j), before scaling, and set their bits."""
    right_mask, right_row = space.right_mask[j], space.right_row[j]
    for left in active:
        mask = space.left_mask[i, left]
        row = space.left[space.left_row[i, left]]
        for m in range(i + 1, j):
            scaled[m] = row[m] * factors[m]
        for pair in range(tables.left_start[left], tables.left_start[left + 1]):
            right = tables.pair_right[pair]
            both = mask & right_mask[right]
            if both == 0:
                continue
            low, high = splits(both, shift, i, j)
            if maximum:
                product = max_product(scaled, space.right[right_row[right]], low, high)
            else:
                product = sum_products(scaled, space.right[right_row[right]], low, high)
            if product == 0:  # bits shared by several positions promise too much
                continue
            for rule in range(tables.pair_start[pair], tables.pair_start[pair + 1]):
                parent = tables.rule_parent[rule]
                value = product * tables.rule_prob[rule]
                sums[parent] = max(sums[parent], value) if maximum else sums[parent] + value
                bits[parent >> 6] |= np.uint64(1) << np.uint64(parent & 63)


@kernel
@no_type_check
def collect(space, item, sums, bits):
    """Move the sums, by rising symbol, to items from `item` on; returns their number, greatest and least value."""
    count, top, least = 0, 0.0, np.inf
    for word in range(bits.size):
        rest = bits[word]
        bits[word] = 0
        while rest:
            symbol = (word << 6) + np.int64(trailing_zeros(rest))
            rest &= rest - np.uint64(1)
            value = sums[symbol]
            sums[symbol] = 0.0
            space.item_symbol[item + count] = symbol
            space.item_inside[item + count] = value
            top, least = max(top, value), min(least, value)
            count += 1
    return count, top, least


@kernel
@no_type_check
def leaves(emissions, i, first_tag, sums, bits):
    """Set word i's scores, as `combine` does for longer spans."""
    for tag in range(emissions.shape[1]):
        if emissions[i, tag] > 0:
            symbol = first_tag + tag
            sums[symbol] = emissions[i, tag]
            bits[symbol >> 6] |= np.uint64(1) << np.uint64(symbol & 63)


@kernel
@no_type_check
def store(tables, space, cells, i, j, shift, gain, active, used):
    """Scale the items of (i, j) and write them into their rows; `used` counts left rows, right rows and items."""
    one = np.uint64(1)
    for k in range(cells.first[i, j], cells.first[i, j] + cells.size[i, j]):
        symbol, value = space.item_symbol[k], math.ldexp(space.item_inside[k], -gain)
        space.item_inside[k] = value
        if tables.left_start[symbol + 1] > tables.left_start[symbol]:
            if space.left_mask[i, symbol] == 0:
                space.left_row[i, symbol] = used[0]
                space.left[used[0]] = 0
                used[0] += 1
                active[i, 1 + active[i, 0]] = symbol
                active[i, 0] += 1
            space.left_mask[i, symbol] |= one << np.uint64(j >> shift)
            space.left[space.left_row[i, symbol], j] = value
        if space.right_mask[j, symbol] == 0:
            space.right_row[j, symbol] = used[1]
            space.right[used[1]] = 0
            used[1] += 1
        space.right_mask[j, symbol] |= one << np.uint64(i >> shift)
        space.right[space.right_row[j, symbol], i] = value
    used[2] += cells.size[i, j]


@kernel
@no_type_check
def inside_pass(tables, space, cells, emissions, maximum):
    """Fill `space` and the cells, all 0 before, bottom-up; returns a status, left symbols by start, and what is used."""
    n, tags = emissions.shape
    symbols, shift = tables.left_start.size - 1, bit_shift(n)
    factors, scaled, used = np.zeros(n + 1), np.zeros(n + 1), np.zeros(3, np.int64)
    sums, bits = np.zeros(symbols), np.zeros((symbols >> 6) + 1, np.uint64)
    active = np.zeros((n, symbols + 1), np.int32)  # left symbols that start at i, after their number
    space.left_mask[:] = 0
    space.right_mask[:] = 0
    for j in range(1, n + 1):
        for i in range(j - 1, -1, -1):
            left_over = min(
                space.left.shape[0] - used[0], space.right.shape[0] - used[1], space.item_symbol.size - used[2]
            )
            if left_over < symbols:
                return FULL, active, used
            exponent = 0
            if j - i == 1:
                leaves(emissions, i, symbols - tags, sums, bits)
            else:
                exponent, lowest = split_factors(cells, i, j, factors)
                if lowest == NOTHING:
                    continue
                if lowest + tables.least < LOWEST:
                    return UNDERFLOW, active, used
                exponent += tables.exponent
                symbols_left = active[i, 1 : 1 + active[i, 0]]
                combine(tables, space, symbols_left, i, j, shift, factors, scaled, sums, bits, maximum)
            count, top, least = collect(space, used[2], sums, bits)
            if count > 0:
                gain = math.frexp(top)[1]
                cells.first[i, j], cells.size[i, j], cells.exponents[i, j] = used[2], count, exponent + gain
                cells.least[i, j] = math.frexp(least)[1] - gain
                if cells.least[i, j] < LOWEST:
                    return UNDERFLOW, active, used
                store(tables, space, cells, i, j, shift, gain, active, used)
    return DONE, active, used


@kernel
@no_type_check
def root_sum(space, cells, start, maximum):
    """Sum (or maximum) over root symbols, scaled as span (0, n) is, and whether a product might underflow."""
    n = cells.first.shape[0]
    total, low = 0.0, False
    for k in range(cells.first[0, n], cells.first[0, n] + cells.size[0, n]):
        chance, value = start[space.item_symbol[k]], space.item_inside[k]
        if chance > 0:
            low = low or math.frexp(chance)[1] + math.frexp(value)[1] < LOWEST
            total = max(total, chance * value) if maximum else total + chance * value
    return total, low


@kernel
@no_type_check
def outside_pass(tables, space, cells, active, start, total, used):
    """Marginals top-down, where the inside value is positive.

    An outside value is kept times 2**exponents[i, j] / Z, so its product with the scaled inside value is the marginal,
    and it is at most 1 / inside: no overflow. What underflows is a marginal below 1e-300.

    Returns:
        Marginals of the items in `space`, and the expected count of each rule.
    """
    n = cells.first.shape[0]
    shift = bit_shift(n)
    space.left_outside[: used[0]] = 0
    space.right_outside[: used[1]] = 0
    marginals, counts, factors = np.zeros(used[2]), np.zeros(tables.rule_prob.size), np.zeros(n + 1)
    outsides = np.zeros(tables.left_start.size - 1)
    for j in range(n, 0, -1):
        for i in range(j):
            reached = False
            items = range(cells.first[i, j], cells.first[i, j] + cells.size[i, j])
            for k in items:
                symbol = space.item_symbol[k]
                outside = space.right_outside[space.right_row[j, symbol], i]
                if tables.left_start[symbol + 1] > tables.left_start[symbol]:
                    outside += space.left_outside[space.left_row[i, symbol], j]
                if i == 0 and j == n:
                    outside += start[symbol] / total
                marginals[k] = outside * space.item_inside[k]
                outsides[symbol] = outside
                reached = reached or outside > 0
            if reached and j - i > 1:
                exponent = split_factors(cells, i, j, factors)[0] + tables.exponent - cells.exponents[i, j]
                unscale = math.ldexp(1.0, exponent)
                for k in items:
                    outsides[space.item_symbol[k]] *= unscale
                descend(tables, space, active[i, 1 : 1 + active[i, 0]], outsides, factors, i, j, shift, counts)
            for k in items:
                outsides[space.item_symbol[k]] = 0.0
    ordered = np.zeros(tables.rules)
    for rule in range(counts.size):
        ordered[tables.rule_number[rule]] = counts[rule]
    return marginals, ordered


@kernel
@no_type_check
def descend(tables, space, active, outsides, factors, i, j, shift, counts):
    """Pass the outside values of (i, j) to all children, and add to the counts of their rules."""
    right_mask, right_row = space.right_mask[j], space.right_row[j]
    ones = ~np.uint64(0)
    between = (ones << np.uint64((i + 1) >> shift)) & (ones >> np.uint64(63 - ((j - 1) >> shift)))
    for left in active:
        mask = space.left_mask[i, left] & between
        if mask == 0:
            continue
        x = space.left_row[i, left]
        for pair in range(tables.left_start[left], tables.left_start[left + 1]):
            right = tables.pair_right[pair]
            both = mask & right_mask[right]
            if both == 0:
                continue
            weight = 0.0
            for rule in range(tables.pair_start[pair], tables.pair_start[pair + 1]):
                weight += outsides[tables.rule_parent[rule]] * tables.rule_prob[rule]
            if weight == 0:
                continue
            low, high = splits(both, shift, i, j)
            y = right_row[right]
            product = pass_down(
                weight, factors, space.left[x], space.right[y], space.left_outside[x], space.right_outside[y], low, high
            )
            for rule in range(tables.pair_start[pair], tables.pair_start[pair + 1]):
                counts[rule] += outsides[tables.rule_parent[rule]] * tables.rule_prob[rule] * product


@kernel
@no_type_check
def best_tree(tables, space, cells, start):
    """The tree that the maxima in `space` belong to, found again from the top: symbols, starts, ends in preorder."""
    n = cells.first.shape[0]
    shift = bit_shift(n)
    nodes, factors = np.empty((2 * n - 1, 3), np.int32), np.zeros(n + 1)
    stack, depth, best = np.empty((n + 1, 3), np.int64), 1, -1.0
    for k in range(cells.first[0, n], cells.first[0, n] + cells.size[0, n]):
        symbol = space.item_symbol[k]
        if start[symbol] * space.item_inside[k] > best:
            best = start[symbol] * space.item_inside[k]
            stack[0, 0], stack[0, 1], stack[0, 2] = symbol, 0, n
    for node in range(2 * n - 1):
        depth -= 1
        nodes[node] = stack[depth]
        parent, i, j = stack[depth, 0], stack[depth, 1], stack[depth, 2]
        if j - i == 1:
            continue
        split_factors(cells, i, j, factors)
        best, split, chosen = -1.0, 0, 0
        for rule in range(tables.parent_start[parent], tables.parent_start[parent + 1]):
            left, right = tables.left[rule], tables.right[rule]
            both = space.left_mask[i, left] & space.right_mask[j, right]
            if both == 0:
                continue
            low, high = splits(both, shift, i, j)
            x, y = space.left_row[i, left], space.right_row[j, right]
            for m in range(low, high):
                value = space.left[x, m] * factors[m] * space.right[y, m] * tables.prob[rule]
                if value > best:
                    best, split, chosen = value, m, rule
        stack[depth, 0], stack[depth, 1], stack[depth, 2] = tables.right[chosen], split, j
        stack[depth + 1, 0], stack[depth + 1, 1], stack[depth + 1, 2] = tables.left[chosen], i, split
        depth += 2
    return nodes
