"""Random scores for the dense engine, and all trees of a sentence under them by plain recursion."""

import itertools
import math

import numpy as np
import torch

from pcfg.dense.engine import dense_inside_outside

INF = math.inf


def grammar(seed, tops, tags, batch, n, zeros=0.0, temperature=1.0, own=False):
    """Random scores; a share of `zeros` is -inf; roots may be preterminals."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        values = temperature * torch.randn(*shape, generator=draw, dtype=torch.float64)
        return values.masked_fill(torch.rand(shape, generator=draw) < zeros, -INF)

    size = tops + tags
    first = (batch,) if own else ()
    return normal(*first, size), normal(*first, tops, size, size), normal(batch, n, tags)


def softmaxed(seed, tops, tags, batch, n, temperature=1.0, dtype=torch.float64):
    """A proper grammar whose rules are a softmax of normal scores times the temperature; roots are nonterminals."""
    start, binary, emissions = grammar(seed, tops, tags, batch, n, temperature=temperature)
    start[tops:] = -INF
    size = tops + tags
    binary = binary.view(tops, -1).log_softmax(1).view(tops, size, size)
    return start.log_softmax(0).to(dtype), binary.to(dtype), emissions.log_softmax(2).to(dtype)


def trees(start, binary, emissions):
    """Every tree of one sentence: (weight, nodes), nodes in preorder as (symbol, i, j, split)."""
    tops = len(binary)

    def build(i, j):
        if j - i == 1:
            for tag, p in enumerate(emissions[i]):
                if p:
                    yield p, ((tops + tag, i, j, -1),)
            return
        for k in range(i + 1, j):
            for (p, left), (q, right) in itertools.product(list(build(i, k)), list(build(k, j))):
                for parent in range(tops):
                    r = binary[parent, left[0][0], right[0][0]]
                    if r:
                        yield p * q * r, ((parent, i, j, k), *left, *right)

    return [(w * start[t[0][0]], t) for w, t in build(0, len(emissions)) if start[t[0][0]]]


def enumerated(start, binary, emissions):
    """Log Z and every posterior, by adding up all trees."""
    n, tags = emissions.shape
    tops = len(binary)
    found = {
        "label_marginals": np.zeros((n, n + 1, tops)),
        "tag_posteriors": np.zeros((n, tags)),
        "rule_expectations": np.zeros_like(binary),
        "start_expectations": np.zeros(len(start)),
    }
    forest = trees(start, binary, emissions)
    total = math.fsum(w for w, _ in forest)
    for weight, tree in forest:
        share = weight / total
        found["start_expectations"][tree[0][0]] += share
        at = {(i, j): symbol for symbol, i, j, _ in tree}
        for symbol, i, j, k in tree:
            if j - i == 1:
                found["tag_posteriors"][i, symbol - tops] += share
            else:
                found["label_marginals"][i, j, symbol] += share
                found["rule_expectations"][symbol, at[i, k], at[k, j]] += share
    found["span_marginals"] = found["label_marginals"].sum(2)
    return math.log(total) if total else -INF, found


def dense(scores, lengths=None, **options):
    lengths = torch.full((len(scores[2]),), scores[2].shape[1]) if lengths is None else torch.tensor(lengths)
    return dense_inside_outside(*scores, lengths, **options)


def misleading(gap, own=False):
    """The heaviest entry of (0, 2) is of no use to the root; the one that is lies exp(-gap) below it."""
    tops, size = 3, 5  # root 0; 1 is heavy and useless, 2 light and needed
    start, binary = torch.full((size,), -INF).double(), torch.full((tops, size, size), -INF).double()
    start[0] = 0.0
    binary[1, 3, 3], binary[2, 3, 4], binary[0, 2, 4] = 0.0, -gap, 0.0
    emissions = torch.zeros(1, 3, 2, dtype=torch.float64)
    return (start[None], binary[None], emissions) if own else (start, binary, emissions)
