"""The dense engine's best and sampled trees against the list of all trees."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pcfg.dense.engine import dense_sample, dense_viterbi
from tests.support.dense_scores import INF, dense, grammar, softmaxed, trees


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("seed", range(12))
def test_best_tree_is_the_best_of_all(seed):
    n = seed % 5 + 1
    scores = grammar(seed, 2, 3, 2, n, zeros=0.2, own=seed % 2 == 0)
    values, found = dense_viterbi(*scores, torch.tensor([n, max(1, n - 1)]))
    for row, length in enumerate((n, max(1, n - 1))):
        start, binary = (x[row] if seed % 2 == 0 else x for x in scores[:2])
        forest = trees(*(x.exp().numpy() for x in (start, binary, scores[2][row, :length])))
        if forest:
            weight, tree = max(forest)
            assert float(values[row]) == pytest.approx(math.log(weight), abs=1e-12)
            assert tuple(map(tuple, found[row].tolist())) == tree
        else:
            assert values[row] == -INF and len(found[row]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_follow_the_posterior(dtype):
    scores = grammar(11, 2, 2, 2, 4, zeros=0.25)
    drawn = dense_sample(dense(scores, [4, 3], dtype=dtype), 20000, torch.Generator().manual_seed(0))
    for row, length in enumerate((4, 3)):
        forest = trees(*(x.exp().numpy() for x in (*scores[:2], scores[2][row, :length])))
        weights = {tree: weight for weight, tree in forest}
        counts = dict.fromkeys(weights, 0)
        for tree in drawn[row].tolist():
            counts[tuple(map(tuple, tree))] += 1  # a tree that can't be is a KeyError
        expected = np.array(list(weights.values()))
        expected *= 20000 / expected.sum()
        common = expected >= 5
        observed = np.array(list(counts.values()))
        pairs = [np.append(x[common], x[~common].sum()) for x in (observed, expected)]
        pairs = [x[pairs[1] > 0] for x in pairs]
        assert len(pairs[0]) > 10 and stats.chisquare(*pairs).pvalue > 1e-3


def test_samples_repeat_with_the_seed_and_agree_with_marginals():
    scores = softmaxed(2, 5, 6, 2, 20)
    result = dense(scores, [20, 9])
    one, two = (dense_sample(result, 500, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    for row, n in enumerate((20, 9)):
        spans = torch.zeros(20, 21)
        inner = one[row][one[row][..., 3] >= 0]
        spans.index_put_((inner[:, 1], inner[:, 2]), torch.ones(len(inner)), accumulate=True)
        assert len(inner) == 500 * (n - 1)
        assert (spans / 500 - result.span_marginals[row]).abs().max() < 0.1
