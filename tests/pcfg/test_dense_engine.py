"""The dense engine against enumeration of all trees, torch-struct and itself, alone and in batches."""

import gc
import itertools
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from pcfg.dense.cuda_graphs import Once
from pcfg.dense.engine import dense_inside_outside, dense_sample, dense_viterbi, log_partition
from pcfg.dense.steps import LoopSteps
from pcfg.errors import GrammarError, OptionError
from tests.support.dense_scores import INF, dense, enumerated, grammar, softmaxed


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("block", range(10))
def test_agrees_with_all_trees_of_100_small_grammars(block):
    for seed in range(10 * block, 10 * block + 10):
        n = seed % 6 + 1
        tops, tags = (2, 2) if n > 4 else (3, 2)
        scores = grammar(seed, tops, tags, 2, n, zeros=(0.0, 0.4, 0.8)[seed % 3] if n < 5 else 0.5)
        lengths = [n, max(1, n - 1)]
        result = dense(scores, lengths)
        start, binary, emissions = (x.exp().numpy() for x in scores)
        rules = np.zeros_like(binary)
        for row, length in enumerate(lengths):
            log_z, expected = enumerated(start, binary, emissions[row, :length])
            rules += expected.pop("rule_expectations")
            assert float(result.log_z[row]) == pytest.approx(log_z, rel=1e-12, abs=1e-12)
            for name, values in expected.items():
                got = getattr(result, name)[row].numpy()
                if name == "start_expectations":
                    np.testing.assert_allclose(got, values, atol=1e-12)
                else:
                    held = got[:length, : length + 1] if "marginals" in name else got[:length]
                    np.testing.assert_allclose(held, values, atol=1e-12)
                    assert got.sum() == pytest.approx(values.sum(), abs=1e-11)  # nothing outside the sentence
        np.testing.assert_allclose(result.rule_expectations.numpy(), rules, atol=1e-12)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize(("n", "tops", "tags"), [(5, 3, 4), (17, 6, 9), (40, 4, 7)])
def test_agrees_with_torch_struct(n, tops, tags):
    torch_struct = pytest.importorskip("torch_struct")
    scores = softmaxed(n, tops, tags, 3, n)
    lengths = [n, n - 2, 2]
    result = dense(scores, lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rules, roots = scores[1].expand(3, -1, -1, -1).contiguous(), scores[0][:tops].expand(3, tops).contiguous()
        theirs = torch_struct.SentCFG((scores[2], rules, roots), lengths=torch.tensor(lengths))
        words, counts, start, labels = theirs.marginals
        log_z = theirs.partition
    torch.testing.assert_close(result.log_z, log_z.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(result.tag_posteriors, words.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(result.rule_expectations, counts.detach().sum(0), atol=1e-10, rtol=0)
    torch.testing.assert_close(result.start_expectations[:, :tops], start.detach(), atol=1e-10, rtol=0)
    for i, j in itertools.combinations(range(n + 1), 2):
        if j - i > 1:  # theirs by width - 2 and first word
            found, expected = result.label_marginals[:, i, j], labels[:, j - i - 2, i].detach()
            torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("own", [False, True])
def test_batched_is_alone(own):
    scores = grammar(8, 4, 5, 4, 11, zeros=0.2, own=own)
    lengths = [11, 1, 6, 2]
    together = dense(scores, lengths)
    rules = []
    for row, length in enumerate(lengths):
        start, binary = (x[row : row + 1] if own else x for x in scores[:2])
        alone = dense((start, binary, scores[2][row : row + 1, :length]), [length])
        torch.testing.assert_close(alone.log_z[0], together.log_z[row], atol=1e-12, rtol=0)
        spans = together.label_marginals[row]
        torch.testing.assert_close(alone.label_marginals[0], spans[:length, : length + 1], atol=1e-12, rtol=0)
        assert spans.sum() == pytest.approx(float(length - 1) if together.log_z[row] > -INF else 0.0)
        tags = together.tag_posteriors[row]
        torch.testing.assert_close(alone.tag_posteriors[0], tags[:length], atol=1e-12, rtol=0)
        rules.append(alone.rule_expectations)
    expected = torch.cat(rules) if own else torch.stack(rules).sum(0)
    torch.testing.assert_close(together.rule_expectations, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("own", [False, True])
def test_rule_counts_are_the_same_whether_products_are_kept_or_made_again(own, monkeypatch):
    scores = grammar(3, 3, 4, 2, 9, own=own)
    kept = dense(scores, [9, 6]).rule_expectations
    monkeypatch.setattr("pcfg.dense.chart.KEPT_BYTES", 0)
    assert (dense(scores, [9, 6]).rule_expectations - kept).abs().max() < 1e-13


@pytest.mark.usefixtures("steps")
def test_charts_go_with_the_result():
    result = dense(softmaxed(0, 3, 4, 2, 6), [6, 4])
    run = result.parts[0].run
    chart = weakref.ref(run.state.inside if isinstance(run, Once) else run)
    del run
    gc.collect()
    gc.disable()  # it would come for a cycle too, but only after hundreds of tensors, of whatever size
    try:
        del result
        assert chart() is None
    finally:
        gc.enable()


def test_loops_are_for_small_batches_of_real_numbers_on_a_cpu():
    small = torch.zeros(20, 8, 45)
    assert LoopSteps.suits(small, 20)
    assert not LoopSteps.suits(small, 200) and not LoopSteps.suits(torch.zeros(20, 64, 45), 20)
    assert not LoopSteps.suits(small.to(torch.complex128), 20) and not LoopSteps.suits(small.to("meta"), 20)


@pytest.mark.usefixtures("steps")
def test_sums_of_posteriors():
    result = dense(softmaxed(0, 12, 20, 3, 25), [25, 20, 2])
    torch.testing.assert_close(result.span_marginals.sum((1, 2)), torch.tensor([24.0, 19.0, 1.0]).double())
    words = torch.arange(25) < torch.tensor([25, 20, 2])[:, None]
    torch.testing.assert_close(result.tag_posteriors.sum(2), words.double())
    torch.testing.assert_close(result.start_expectations.sum(1), torch.ones(3).double())
    assert float(result.rule_expectations.sum()) == pytest.approx(44.0)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_parse(dtype):
    start, binary, emissions = softmaxed(1, 3, 4, 4, 5)
    emissions[1, 2] = -INF  # an unknown word
    scores = (start.to(dtype), binary.to(dtype), emissions.to(dtype))
    result = dense(scores, [5, 5, 1, 4])  # the third: no preterminal is a root
    assert (result.log_z > -INF).tolist() == [True, False, False, True]
    assert result.span_marginals.sum((1, 2)).tolist() == pytest.approx([4.0, 0.0, 0.0, 3.0])
    assert result.tag_posteriors[1:3].sum() == 0 and torch.isfinite(result.rule_expectations).all()
    assert [len(trees) for trees in dense_sample(result, 3)] == [3, 0, 0, 3]
    assert [len(tree) for tree in dense_viterbi(*scores, torch.tensor([5, 5, 1, 4]))[1]] == [9, 0, 0, 7]
    leaves = [x.requires_grad_() for x in scores]
    log_partition(*leaves, torch.tensor([5, 5, 1, 4]))[[0, 3]].sum().backward()
    assert leaves[2].grad[1:3].abs().sum() == 0 and torch.isfinite(leaves[1].grad).all()


@pytest.mark.usefixtures("steps")
def test_one_word():
    scores = grammar(0, 2, 3, 2, 1)
    result = dense(scores)
    joint = scores[2][:, 0] + scores[0][2:]
    torch.testing.assert_close(result.log_z, joint.logsumexp(1))
    torch.testing.assert_close(result.tag_posteriors[:, 0], joint.softmax(1))
    torch.testing.assert_close(result.start_expectations[:, 2:], joint.softmax(1))
    assert result.rule_expectations.sum() == 0 and result.span_marginals.sum() == 0
    values, found = dense_viterbi(*scores, torch.tensor([1, 1]))
    torch.testing.assert_close(values, joint.amax(1))
    assert [tree.tolist() for tree in found] == [[[2 + int(tag), 0, 1, -1]] for tag in joint.argmax(1)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s, b, e, n: (s[1:], b, e, n), GrammarError, "must speak of the same symbols"),
        (lambda s, b, e, n: (s, b, e, n * 0), GrammarError, "Lengths must be 1 to 3"),
        (lambda s, b, e, n: (s, b, e, n + 1), GrammarError, "leave empty sentences out"),
        (lambda s, b, e, n: (s, b, e, n[:1]), GrammarError, "Emissions are of 2 sentences"),
        (lambda s, b, e, n: (s, b * math.nan, e, n), GrammarError, "log_binary holds NaN"),
        (lambda s, b, e, n: (s + INF, b, e, n), GrammarError, "log_start holds NaN or"),
        (lambda s, b, e, n: (s, b, e * math.nan, n), GrammarError, "log_emissions holds NaN"),
        (lambda s, b, e, n: (s.half(), b.half(), e.half(), n), OptionError, "float32 or float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    given = change(*grammar(0, 2, 2, 2, 3), torch.tensor([3, 3]))
    for engine in (dense_inside_outside, log_partition):
        # Shapes that disagree are caught by the check of types first.
        with pytest.raises((error, TypeCheckError), match=f"{words}|violates type hint"):
            engine(*given)


@pytest.mark.cuda
def test_runs_where_its_arguments_are():
    scores = softmaxed(2, 5, 6, 3, 20)
    lengths = torch.tensor([20, 9, 1])
    *there, far = (x.to("cuda") for x in (*scores, lengths))
    one, two = dense_inside_outside(*scores, lengths), dense_inside_outside(*there, far)
    torch.testing.assert_close(two.label_marginals.cpu(), one.label_marginals, atol=1e-12, rtol=0)
    torch.testing.assert_close(two.rule_expectations.cpu(), one.rule_expectations, atol=1e-12, rtol=0)
    assert [tree.tolist() for tree in dense_viterbi(*there, far)[1]] == [
        tree.tolist() for tree in dense_viterbi(*scores, lengths)[1]
    ]
    assert len(dense_sample(two, 4, torch.Generator("cuda").manual_seed(0))) == 3


@pytest.mark.usefixtures("steps")
def test_mixed_precision_around_it_changes_nothing():
    scores = [x.float().requires_grad_() for x in softmaxed(0, 3, 4, 2, 6)]
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = log_partition(*scores, torch.tensor([6, 4]))
            counts = dense([x.detach() for x in scores], [6, 4]).rule_expectations
        found.append((value, counts, *torch.autograd.grad(value.sum(), scores)))
    assert all(torch.equal(plain, mixed) for plain, mixed in zip(*found, strict=True))


def test_results_are_of_the_scores_that_were_given():
    scores = softmaxed(0, 3, 4, 2, 6)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) for x in scores]
    result = dense(scores, [6, 4])
    before = result.expected(*weights)
    for tensor in scores:
        tensor.mul_(3)  # as an optimiser would
    assert torch.equal(result.expected(*weights), before)
