"""Loops over the spans of a width, compiled: what `steps.TensorSteps` does with some thirty operations of torch.

Charts are [n, batch, width, symbols], by first word. Sums may be reordered, without which these loops use no SIMD; NaN and
infinity stay what they are.
"""

import math
from typing import Any, no_type_check

import numpy as np

from surgery.compiling import compiled

kernel = compiled(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@kernel
@no_type_check
def weigh(
    width: int, chart: Any, scales: Any, left_words: Any, right_words: Any, tags: Any, weights: Any, best: Any, raw: Any
) -> None:
    """Weigh the splits of each span and sum over those with a word.

    Fills weights [spans, batch, width - 1], the best split's logarithm [spans, batch] and the sums raw [spans, batch, N].
    """
    spans, batch, nonterminals = raw.shape
    zero = raw.dtype.type(0)
    for i in range(spans):
        for b in range(batch):
            weight, sums, highest = weights[i, b], raw[i, b], -math.inf
            for split in range(1, width):
                highest = max(highest, scales[i, b, split] + scales[i + split, b, width - split])
            best[i, b] = highest
            for split in range(1, width):
                both = scales[i, b, split] + scales[i + split, b, width - split]
                weight[split - 1] = math.exp(both - highest) if both > -math.inf else 0.0
            if width == 2:
                for parent in range(nonterminals):
                    one = zero
                    for tag in range(tags.shape[2]):
                        one += left_words[i, b, parent, nonterminals + tag] * tags[i + 1, b, tag]
                    sums[parent] = one * weight[0]
                continue
            right, left = chart[i + 1, b, width - 1], chart[i, b, width - 1]
            for parent in range(nonterminals):
                one, two = zero, zero
                for child in range(nonterminals):
                    one += left_words[i, b, parent, child] * right[child]
                    two += right_words[i + width - 1, b, parent, child] * left[child]
                sums[parent] = one * weight[0] + two * weight[width - 2]


@kernel
@no_type_check
def scale(width: int, raw: Any, best: Any, tiny: float, chart: Any, scales: Any, peaks: Any) -> None:
    """Divide what was summed for each span by the largest of it, into the chart."""
    spans, batch, nonterminals = raw.shape
    for i in range(spans):
        for b in range(batch):
            peak = raw[i, b, 0]
            for symbol in range(1, nonterminals):
                peak = max(peak, raw[i, b, symbol])
            peaks[i, b, width] = peak
            divisor = max(peak, raw.dtype.type(tiny))
            for symbol in range(nonterminals):
                chart[i, b, width, symbol] = raw[i, b, symbol] / divisor
            scales[i, b, width] = np.log(np.float64(peak)) + best[i, b]


@kernel
@no_type_check
def receive(
    width: int,
    inside: Any,
    peaks: Any,
    tiny: float,
    left_words: Any,
    right_words: Any,
    weights: Any,
    chart: Any,
    at_left: Any,
    at_right: Any,
    here: Any,
) -> None:
    """Fill here [spans, batch, N], the outside scores of a width's rules; give the siblings of words theirs."""
    spans, batch, nonterminals = here.shape
    zero = here.dtype.type(0)
    for i in range(spans):
        for b in range(batch):
            first, last, weight = at_left[i, b, width], at_right[i + width, b, chart.shape[0] - width], weights[i, b]
            divisor = max(peaks[i, b, width], here.dtype.type(tiny))
            for symbol in range(nonterminals):
                if inside[i, b, width, symbol] == zero:
                    chart[i, b, width, symbol] = zero
                value = chart[i, b, width, symbol] / divisor
                here[i, b, symbol] = value
                first[symbol], last[symbol] = value * weight[0], value * weight[width - 2]
            if width > 2:
                right, left = chart[i + 1, b, width - 1], chart[i, b, width - 1]
                for parent in range(nonterminals):
                    one, two = first[parent], last[parent]
                    for child in range(nonterminals):
                        right[child] += one * left_words[i, b, parent, child]
                        left[child] += two * right_words[i + width - 1, b, parent, child]


@kernel
@no_type_check
def spread(width: int, weights: Any, to_left: Any, to_right: Any, chart: Any) -> None:
    """Add to the chart what the splits without a word give: [spans, batch, width - 3, N], the left yet to be weighted."""
    spans, batch, _, nonterminals = to_left.shape
    for i in range(spans):
        for b in range(batch):
            for split in range(2, width - 1):
                share = weights[i, b, split - 1]
                left, right = chart[i, b, split], chart[i + split, b, width - split]
                for symbol in range(nonterminals):
                    left[symbol] += to_left[i, b, split - 2, symbol] * share
                for symbol in range(nonterminals):
                    right[symbol] += to_right[i, b, split - 2, symbol]
