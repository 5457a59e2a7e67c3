"""The dense engine's precisions against each other: what underflows is promoted, to float64 or to log-space."""

import itertools
import math
import warnings

import pytest
import torch

from pcfg.dense.chart import Outside
from pcfg.dense.engine import dense_inside_outside, dense_sample, log_partition
from pcfg.dense.log_space import LogInside
from tests.support.dense_scores import INF, dense, grammar, misleading, softmaxed


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("own", [False, True])
def test_single_is_near_double(own):
    scores = list(softmaxed(3, 10, 15, 4, 30))
    if own:
        scores[:2] = [torch.stack([x, x.roll(1, 0), x, x]) for x in scores[:2]]
    lengths = [30, 25, 12, 1]
    one, two = dense(scores, lengths, dtype=torch.float32), dense(scores, lengths)
    assert one.span_marginals.dtype == torch.float32
    for name in ("log_z", "span_marginals", "label_marginals", "tag_posteriors", "start_expectations"):
        torch.testing.assert_close(getattr(one, name).double(), getattr(two, name), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.rule_expectations.double(), two.rule_expectations, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("seed", range(3))
def test_peaked_grammars_are_right_in_single_or_promoted(seed):
    scores = softmaxed(seed, 6, 8, 2, 80, temperature=10.0)
    two = dense(scores)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one = dense(scores, dtype=torch.float32)
        again = one.rule_expectations
    assert len(caught) <= 1
    torch.testing.assert_close(one.log_z, two.log_z, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(one.span_marginals.double(), two.span_marginals, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.double(), two.rule_expectations, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(two.span_marginals.sum((1, 2)), torch.full((2,), 79.0).double(), atol=1e-10, rtol=0)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize(
    ("gap", "dtype", "words"),
    [
        (60.0, torch.float32, None),
        (300.0, torch.float32, "1 in float32 of 1 .* up to float64"),
        (2000.0, torch.float32, "1 in float32 and 1 in float64 .* up to log-space"),
        (2000.0, torch.float64, "1 in float64 of 1 .* up to log-space"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_what_underflows_is_promoted(gap, dtype, words, own):
    scores = misleading(gap, own)
    if words is None:
        result = dense(scores, dtype=dtype)
    else:
        with pytest.warns(RuntimeWarning, match=words):
            result = dense(scores, dtype=dtype)
    assert float(result.log_z) == pytest.approx(-gap, rel=1e-9)
    assert result.span_marginals[0, 0, 2] == 1 and result.span_marginals.sum() == 2
    rules = result.rule_expectations.reshape(3, 5, 5)
    assert rules[2, 3, 4] == 1 and rules[0, 2, 4] == 1 and rules.sum() == 2
    assert torch.isfinite(result.label_marginals).all()
    tree = [[0, 0, 3, 2], [2, 0, 2, 1], [3, 0, 1, -1], [4, 1, 2, -1], [4, 2, 3, -1]]
    assert dense_sample(result, 2)[0].tolist() == [tree, tree]


@pytest.mark.usefixtures("steps")
def test_two_losses_at_once_are_noticed():
    # A light tree is seen, while a far heavier one hides behind two entries that underflow both.
    tops, size = 5, 7
    start, binary = torch.full((size,), -INF).double(), torch.full((tops, size, size), -INF).double()
    start[0] = 0.0
    binary[1, 5, 5], binary[2, 5, 6], binary[0, 2, 2], binary[0, 1, 1] = 0.0, -200.0, 0.0, -700.0
    binary[3, 5, 5] = 0.0
    scores = (start, binary, torch.zeros(1, 4, 2, dtype=torch.float64))
    with pytest.warns(RuntimeWarning, match="float32"):
        result = dense(scores, dtype=torch.float32)
    assert float(result.log_z) == pytest.approx(-400.0, rel=1e-9)
    assert result.label_marginals[0, 0, 2, 2] == 1


@pytest.mark.usefixtures("steps")
def test_promoted_sentences_leave_the_others_alone():
    start, binary, _ = misleading(300.0)
    binary[0, 1, 3] = -1.0
    emissions = torch.zeros(3, 4, 2, dtype=torch.float64)
    emissions[1, 2, 0] = -INF  # then the third word can't be what follows the heavy entry
    scores, lengths = (start, binary, emissions), [3, 3, 2]
    with pytest.warns(RuntimeWarning, match="1 in float32 of 3 sentences"):
        one = dense(scores, lengths, dtype=torch.float32)
    two = dense(scores, lengths)
    torch.testing.assert_close(one.log_z, two.log_z, rtol=1e-6, atol=0)
    assert one.log_z.tolist() == pytest.approx([-1.0, -300.0, -INF])
    torch.testing.assert_close(one.label_marginals.double(), two.label_marginals, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.rule_expectations.double(), two.rule_expectations, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("own", [False, True])
def test_log_space_agrees_with_scaled_charts(own):
    scores = grammar(5, 3, 4, 2, 7, zeros=0.3, own=own)
    result = dense(scores, [7, 5])
    for row, n in enumerate((7, 5)):
        start, binary = (x[row] if own else x for x in scores[:2])
        extra = torch.zeros(n, n + 1, 3, dtype=torch.float64, requires_grad=True)
        inside = LogInside.of(start, binary, scores[2][row, :n], extra)
        assert float(inside.log_z.detach()) == pytest.approx(float(result.log_z[row]), abs=1e-12)
        (labels,) = torch.autograd.grad(inside.log_z, extra)
        for i, j in itertools.combinations(range(n + 1), 2):
            if j - i > 1:
                torch.testing.assert_close(labels[i, j - i], result.label_marginals[row, i, j], atol=1e-12, rtol=0)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("gap", [95, 98, 102, 120, 300])
def test_what_single_precision_scores_would_lose_is_promoted_in_time(gap):
    start = torch.tensor([0.0, -INF, -INF, -INF])
    binary = torch.full((2, 4, 4), -INF)
    binary[1, 2, 2], binary[0, 2, 2], binary[0, 2, 3] = 0.0, -gap, -gap - 1.0
    given = (start, binary, torch.zeros(1, 2, 2), torch.tensor([2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        free = binary.clone().requires_grad_()
        log_z = log_partition(start, free, *given[2:])
        log_z.sum().backward()
        results = [dense_inside_outside(*given, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    right = math.log(1 + math.exp(-1)) - gap
    assert float(log_z.detach()) == pytest.approx(right, rel=1e-6)
    assert free.grad[0, 2, 2:].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))], abs=1e-6)
    assert [float(result.log_z) for result in results] == pytest.approx([right, right], abs=1e-12)


@pytest.mark.usefixtures("steps")
def test_a_sentence_whose_outside_pass_lost_something_is_computed_again(monkeypatch):
    whole = Outside._reach_words

    def lossy(self):
        whole(self)
        if self.of_words.dtype == torch.float32 and self.inside.batch > 2:  # not again in the sentences that are kept
            self.of_words[1, 1] *= 0.9  # the second word of the second sentence

    scores = grammar(0, 3, 4, 3, 5)
    exact = dense(scores, [5, 5, 4])
    monkeypatch.setattr(Outside, "_reach_words", lossy)
    with pytest.warns(RuntimeWarning, match="^1 in float32 of 3 sentences underflow"):
        found = dense([x.float().double() for x in scores], [5, 5, 4], dtype=torch.float32)
    assert [sorted(part.rows.tolist()) for part in found.parts] == [[0, 2], [1]]
    torch.testing.assert_close(found.tag_posteriors.double(), exact.tag_posteriors, atol=1e-5, rtol=0)
