"""Derivatives of the dense engine's log Z, first and second, against autograd and finite differences."""

import warnings

import pytest
import torch

from pcfg.dense.engine import log_partition
from pcfg.dense.log_space import LogInside
from tests.support.dense_scores import INF, dense, grammar, misleading


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("own", [False, True])
def test_gradients(own):
    scores = [x.requires_grad_() for x in grammar(2, 2, 3, 3, 5, own=own)]
    lengths = torch.tensor([5, 3, 1])
    assert torch.autograd.gradcheck(lambda *x: log_partition(*x, lengths), scores)
    assert torch.autograd.gradgradcheck(lambda *x: log_partition(*x, lengths), scores)


@pytest.mark.parametrize("own", [False, True])
def test_gradients_in_log_space(own):
    start, binary, emissions = misleading(2000.0)
    binary[2, 4, 3] = -2001.0
    binary[2, 3, 3] = -2000.5
    scores = [x[None] if own and x is not emissions else x for x in (start, binary, emissions)]
    free = scores[1] > -INF
    values = scores[1][free].requires_grad_()
    words = emissions.requires_grad_()

    def run(values, words):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return log_partition(scores[0], scores[1].masked_scatter(free, values), words, torch.tensor([3]))

    assert torch.autograd.gradcheck(run, (values, words), rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradgradcheck(run, (values, words), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("own", [False, True])
def test_counts_are_derivatives_of_the_log_space_pass(own):
    scores = [x.requires_grad_() for x in grammar(4, 3, 3, 2, 8, zeros=0.2, own=own)]
    log_z = []
    for row in range(2):
        start, binary = (x[row] if own else x for x in scores[:2])
        log_z.append(LogInside.of(start, binary, scores[2][row], torch.zeros(8, 9, 3).double()).log_z)
    weights = torch.tensor([0.3, -2.0]).double()
    expected = torch.autograd.grad((torch.stack(log_z) * weights).sum(), scores)
    found = torch.autograd.grad((log_partition(*scores, torch.tensor([8, 8])) * weights).sum(), scores)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)
    result = dense([x.detach() for x in scores])
    counts = torch.autograd.grad(log_partition(*scores, torch.tensor([8, 8])).sum(), scores[1])[0]
    torch.testing.assert_close(result.rule_expectations, counts, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("steps")
def test_single_precision_gradients_keep_their_type():
    scores = [x.float().requires_grad_() for x in grammar(4, 3, 3, 2, 6)]
    log_z = log_partition(*scores, torch.tensor([6, 4]))
    gradients = torch.autograd.grad(log_z.sum(), scores, create_graph=True)
    second = torch.autograd.grad(sum((x * x).sum() for x in gradients), scores)
    assert {x.dtype for x in (log_z, *gradients, *second)} == {torch.float32}
    doubled = [x.detach().double().requires_grad_() for x in scores]
    exact = torch.autograd.grad(log_partition(*doubled, torch.tensor([6, 4])).sum(), doubled, create_graph=True)
    for one, two in zip(second, torch.autograd.grad(sum((x * x).sum() for x in exact), doubled), strict=True):
        torch.testing.assert_close(one.double(), two, atol=1e-5, rtol=1e-4)
