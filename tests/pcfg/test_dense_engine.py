"""The dense engine against enumeration of all trees, torch-struct, autograd and itself in other precisions."""

import gc
import itertools
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy import stats

from pcfg.dense.cuda_graphs import Once
from pcfg.dense.engine import dense_inside_outside, dense_sample, dense_viterbi, log_partition
from pcfg.dense.log_space import LogInside
from pcfg.dense.steps import LoopSteps
from pcfg.errors import GrammarError, OptionError
from tests.support.replaying import Eager

INF = math.inf


@pytest.fixture(params=["loops", "tensors", "replayed"])
def steps(request, monkeypatch):
    """What uses it holds for compiled loops, for tensors and for charts that are padded and replayed as on a card."""
    monkeypatch.setattr("pcfg.dense.steps.MOST", {"loops": 1 << 60}.get(request.param, 0))
    if request.param == "replayed":
        monkeypatch.setattr("pcfg.dense.passes.RECORDED", ("cpu",))
        monkeypatch.setattr("pcfg.dense.passes.charts", Eager())


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


def misleading(gap, own=False):
    """The heaviest entry of (0, 2) is of no use to the root; the one that is lies exp(-gap) below it."""
    tops, size = 3, 5  # root 0; 1 is heavy and useless, 2 light and needed
    start, binary = torch.full((size,), -INF).double(), torch.full((tops, size, size), -INF).double()
    start[0] = 0.0
    binary[1, 3, 3], binary[2, 3, 4], binary[0, 2, 4] = 0.0, -gap, 0.0
    emissions = torch.zeros(1, 3, 2, dtype=torch.float64)
    return (start[None], binary[None], emissions) if own else (start, binary, emissions)


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
        with pytest.raises(
            (error, TypeCheckError), match=f"{words}|Type-check"
        ):  # shapes are caught by jaxtyping first
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
