"""The loops of sampling, compiled: random numbers, alias tables, derivations, lengths.

Every sentence has a random stream of its own, which its number and the seed fix: a SplitMix64 generator that starts at
a hash of both.
"""

from typing import no_type_check

import numpy as np

from surgery.compiling import compiled


@compiled()
@no_type_check
def build_aliases(bounds, threshold, alias):
    """Turn each symbol's probabilities into thresholds in place (Vose 1991); a zero can't be drawn."""
    for symbol in range(len(bounds) - 1):
        begin, end = bounds[symbol], bounds[symbol + 1]
        size = end - begin
        total = threshold[begin:end].sum()
        small = np.empty(size, np.int64)
        large = np.empty(size, np.int64)
        smalls = larges = 0
        for i in range(begin, end):
            threshold[i] *= size / total
            if threshold[i] < 1.0:
                small[smalls] = i
                smalls += 1
            else:
                large[larges] = i
                larges += 1
        while smalls and larges:
            smalls -= 1
            i, j = small[smalls], large[larges - 1]
            alias[i] = j
            threshold[j] -= 1.0 - threshold[i]
            if threshold[j] < 1.0:
                larges -= 1
                small[smalls] = j
                smalls += 1
        for k in range(larges):
            threshold[large[k]] = 1.0
        best = begin  # rounding leaves some here whose excess has no owner: none of them may be a zero made likely
        for i in range(begin, end):
            if threshold[i] > threshold[best]:
                best = i
        for k in range(smalls):
            i = small[k]
            if threshold[i] > 0.5:
                threshold[i] = 1.0
            else:
                alias[i] = best


@compiled(inline="always")
@no_type_check
def _mix(x):
    """Scramble 64 bits: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled(inline="always")
@no_type_check
def _stream(seed, number):
    """The state that sentence `number`'s own stream of random numbers begins with."""
    return _mix(_mix(seed + np.uint64(0x9E3779B97F4A7C15)) + np.uint64(number) * np.uint64(0xD1342543DE82EF95))


@compiled(inline="always")
@no_type_check
def _next(state):
    """The stream's next state; `_uniform` makes a number of it."""
    return state + np.uint64(0x9E3779B97F4A7C15)


@compiled(inline="always")
@no_type_check
def _uniform(state):
    """A number in [0, 1)."""
    return (_mix(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled(inline="always")
@no_type_check
def _pick(bounds, threshold, alias, symbol, u):
    """A rule of a symbol: u's whole part chooses a column, its fraction between the column's two rules."""
    begin = bounds[symbol]
    place = u * (bounds[symbol + 1] - begin)
    column = int(place)
    i = begin + column
    return i if place - column < threshold[i] else alias[i]


@compiled()
@no_type_check
def draw_freely(bounds, threshold, alias, left, right, tokens, roots, seed, first, limit, words, steps, offsets):
    """Sentences first, first + 1, ... into words, steps and offsets; returns how many fitted.

    A tree is given up as soon as its words and the symbols that wait for theirs are more than the limit.
    """
    binary = len(left)
    stack = np.empty(min(limit, len(words)) + 2, np.int32)
    for number in range(len(offsets) - 1):
        state = _stream(seed, first + number)
        begin = offsets[number]
        at = 2 * begin - number
        ready = False
        while not ready:
            state = _next(state)
            stack[0] = np.searchsorted(roots, _uniform(state), side="right")
            depth, length, step = 1, 0, at
            while depth and length + depth <= limit:
                if begin + length + depth > len(words):
                    return number
                depth -= 1
                state = _next(state)
                rule = _pick(bounds, threshold, alias, stack[depth], _uniform(state))
                steps[step] = rule
                step += 1
                if rule < binary:
                    stack[depth] = right[rule]
                    stack[depth + 1] = left[rule]
                    depth += 2
                else:
                    words[begin + length] = tokens[rule - binary]
                    length += 1
            ready = not depth
        offsets[number + 1] = begin + length
    return len(offsets) - 1


@compiled()
@no_type_check
def fill_lengths(parents, probs, pairs, number, lengths):
    """lengths[A, l] = sum over rules p(A -> B C) sum over k lengths[B, k] lengths[C, l - k]."""
    both = np.empty(len(pairs))
    for length in range(2, lengths.shape[1]):
        for pair in range(len(pairs)):
            both[pair] = _split_weights(lengths[pairs[pair, 0]], lengths[pairs[pair, 1]], length)
        for rule in range(len(parents)):
            lengths[parents[rule], length] += probs[rule] * both[number[rule]]


@compiled()
@no_type_check
def _split_weights(left, right, length):
    total = 0.0
    for k in range(1, length):
        total += left[k] * right[length - k]
    return total


@compiled()
@no_type_check
def rules_by_length(bounds, probs, pairs, number, lengths):
    """[l, rule]: running sums, within each parent, of the probability that it derives l words by the rules so far."""
    sums = np.empty((lengths.shape[1], len(probs)))
    both = np.empty(len(pairs))
    for length in range(lengths.shape[1]):
        for pair in range(len(pairs)):
            both[pair] = _split_weights(lengths[pairs[pair, 0]], lengths[pairs[pair, 1]], length)
        for parent in range(len(bounds) - 1):
            total = 0.0
            for rule in range(bounds[parent], bounds[parent + 1]):
                total += probs[rule] * both[number[rule]]
                sums[length, rule] = total
    return sums


@compiled()
@no_type_check
def draw_by_length(
    rules, heads, roots, lengths, left, right, bounds, threshold, alias, tokens, seed, first, words, steps, offsets
):
    """Like `draw_freely`, with the length of every constituent drawn before what is in it."""
    binary, sizes = len(left), lengths.shape[1]
    stack = np.empty((sizes + 1, 2), np.int32)  # symbols with the words they are to have
    for number in range(len(offsets) - 1):
        state = _next(_stream(seed, first + number))
        begin = offsets[number]
        step = 2 * begin - number
        root = np.searchsorted(roots, _uniform(state), side="right")
        stack[0, 0], stack[0, 1] = root // sizes, root % sizes
        length, depth = stack[0, 1], 1
        if begin + length > len(words):
            return number
        place = begin
        while depth:
            depth -= 1
            symbol, size = stack[depth, 0], stack[depth, 1]
            state = _next(state)
            if size == 1:
                rule = _pick(bounds, threshold, alias, symbol, _uniform(state))
                words[place] = tokens[rule - binary]
                place += 1
            else:
                own = rules[size, heads[symbol] : heads[symbol + 1]]
                rule = heads[symbol] + np.searchsorted(own, _uniform(state) * own[-1], side="right")
                one, two = lengths[left[rule]], lengths[right[rule]]
                state = _next(state)
                rest = _uniform(state) * _split_weights(one, two, size)
                k = last = 0
                while k < size - 1 and (rest >= 0 or last == 0):
                    k += 1
                    weight = one[k] * two[size - k]
                    rest -= weight
                    if weight > 0:
                        last = k
                stack[depth, 0], stack[depth, 1] = right[rule], size - last
                stack[depth + 1, 0], stack[depth + 1, 1] = left[rule], last
                depth += 2
            steps[step] = rule
            step += 1
        offsets[number + 1] = begin + length
    return len(offsets) - 1


@compiled()
@no_type_check
def hashes(words, offsets, seed):
    """A number in [0, 1) for each sentence, made of its words and the seed."""
    values = np.empty(len(offsets) - 1)
    for number in range(len(values)):
        state = _stream(seed, offsets[number + 1] - offsets[number])
        for place in range(offsets[number], offsets[number + 1]):
            state = _mix(state ^ np.uint64(words[place] + 1)) + np.uint64(0x9E3779B97F4A7C15)
        values[number] = _uniform(state)
    return values
