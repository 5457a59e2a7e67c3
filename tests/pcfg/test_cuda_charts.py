"""Charts on a card: recorded ones against those computed kernel by kernel, bit for bit, and against a CPU in float64."""

import itertools
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from pcfg.dense import passes
from pcfg.dense.cuda_graphs import Recordings, Replayed
from pcfg.dense.engine import dense_inside_outside, dense_k_best, dense_sample, dense_viterbi, log_partition

pytestmark = pytest.mark.cuda

NAMES = ("log_z", "span_marginals", "label_marginals", "tag_posteriors", "rule_expectations", "start_expectations")


def scores(batch=5, n=11, dtype=torch.float32, seed=0, own=False, device="cuda", gap=1.0):
    draw = torch.Generator().manual_seed(seed)
    first = (batch,) if own else ()
    shapes = ((*first, 11), (*first, 4, 11, 11), (batch, n, 7))
    found = [(gap * torch.randn(shape, generator=draw, dtype=torch.float64)).to(device, dtype) for shape in shapes]
    lengths = torch.tensor([n, *[1 + (3 * i) % n for i in range(1, batch)]], device=device)
    return *found, lengths


@pytest.fixture(autouse=True)
def recordings(monkeypatch):
    found = Recordings()
    monkeypatch.setattr("pcfg.dense.passes.charts", found)
    yield found
    assert not any("captur" in reason for reason in found.failures.values()), found.failures
    found.forget()


def twice(given, ask):
    """What is asked of a chart that was computed kernel by kernel, and of its replay."""
    passes.charts.enabled = False
    plain = ask(dense_inside_outside(*given))
    passes.charts.enabled = True
    dense_inside_outside(*given), dense_inside_outside(*given)
    result = dense_inside_outside(*given)
    assert isinstance(result.parts[0].run, Replayed)
    return plain, ask(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [False, True])
def test_the_same_bits_as_kernel_by_kernel(dtype, own):
    for batch, n in ((5, 11), (1, 4), (8, 20), (2, 1)):
        given = scores(batch, n, dtype, own=own)
        for name in NAMES:
            plain, replayed = twice(given, lambda result, name=name: getattr(result, name))
            assert torch.equal(plain, replayed), (name, batch, n)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize("own", [False, True])
def test_as_a_cpu_in_double_precision_whatever_the_lengths(dtype, error, own):
    for _, (batch, n) in itertools.product(range(3), ((5, 11), (7, 10), (6, 12))):
        given = scores(batch, n, dtype, own=own)
        exact = dense_inside_outside(*(x.cpu().double() if x.is_floating_point() else x.cpu() for x in given))
        found = dense_inside_outside(*given)
        for name in NAMES:
            value = getattr(found, name)
            assert value.is_cuda
            torch.testing.assert_close(value.cpu().double(), getattr(exact, name), atol=error, rtol=error)
    assert len(passes.charts.kept) == 2, "three batches of 5 to 7 sentences of 10 to 12 words are of two sizes"


def test_one_result_after_another(recordings):
    given = [scores(seed=seed) for seed in range(4)]
    results = [dense_inside_outside(*some) for _ in range(2) for some in given]
    alone = [dense_inside_outside(*some).label_marginals for some in given]
    for result, expected in zip(results, alone * 2, strict=True):
        assert torch.equal(result.label_marginals, expected)


def test_gradients_and_second_derivatives():
    for turn in range(3):
        found = []
        for device, dtype in (("cuda", torch.float64), ("cpu", torch.float64)):
            start, binary, words, lengths = scores(4, 9, dtype, seed=turn, device=device)
            leaves = [x.requires_grad_() for x in (start, binary, words)]
            weights = torch.arange(1.0, 5.0, device=device, dtype=dtype)
            slopes = torch.autograd.grad((log_partition(*leaves, lengths) * weights).sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum((x * x).sum() for x in slopes), leaves)
            found.append([x.detach().cpu() for x in (*slopes, *second)])
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-9)
    assert len(passes.charts.kept) == 2


def test_what_underflows_is_promoted():
    for _ in range(3):
        given = scores(3, 8, torch.float32, gap=60.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = dense_inside_outside(*given)
            exact = dense_inside_outside(*(x.cpu().double() if x.is_floating_point() else x.cpu() for x in given))
        torch.testing.assert_close(found.log_z.cpu(), exact.log_z, atol=1e-4, rtol=1e-6)
        torch.testing.assert_close(found.span_marginals.cpu().double(), exact.span_marginals, atol=1e-4, rtol=0)


def test_samples_of_a_replayed_chart_are_those_of_the_chart():
    given = scores(4, 9, torch.float64)
    plain, replayed = twice(given, lambda r: dense_sample(r, 50, torch.Generator("cuda").manual_seed(1)))
    assert all(torch.equal(x, y) for x, y in zip(plain, replayed, strict=True))


@pytest.mark.parametrize("own", [False, True])
def test_best_trees_are_those_of_a_cpu(own):
    for seed, n in itertools.product(range(3), (1, 2, 7, 20)):
        given = scores(5, n, torch.float32, seed=seed, own=own)
        given[2][2, 0] = -torch.inf  # without a parse
        plain = dense_viterbi(*(x.cpu() for x in given))
        values, trees = dense_viterbi(*given)
        assert values.is_cuda and all(tree.is_cuda for tree in trees)
        assert torch.equal(values.cpu(), plain[0]), "sums and largest of the same numbers in the same order"
        assert [tree.tolist() for tree in trees] == [tree.tolist() for tree in plain[1]]
    found, expected = dense_k_best(*given, 4), dense_k_best(*(x.cpu() for x in given), 4)
    assert [[score for score, _ in row] for row in found] == [[score for score, _ in row] for row in expected]


def test_memory_is_bounded(recordings):
    for n in (8, 8, 8):
        dense_inside_outside(*scores(4, n))
    size = next(iter(recordings.kept.values())).size
    recordings.limit = int(2.5 * size)
    for n, _ in itertools.product((4, 8, 12, 6, 7), range(3)):
        dense_inside_outside(*scores(4, n))
        assert sum(kept.size for kept in recordings.kept.values()) <= recordings.limit
    recordings.forget()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for n in range(4, 40, 4):
        for _ in range(3):
            dense_inside_outside(*scores(4, n))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < recordings.limit + (64 << 20)


def test_threads_and_streams_do_not_mix_results():
    given = [scores(4, 12, seed=seed) for seed in range(4)]
    expected = [dense_inside_outside(*some).label_marginals.cpu() for some in given for _ in range(3)][::3]
    wrong = []

    def work(number):
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for _ in range(10):
                if not torch.equal(dense_inside_outside(*given[number]).label_marginals.cpu(), expected[number]):
                    wrong.append(number)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failed_recording_leaves_the_card_usable():
    """In a process of its own, lest others suffer if it doesn't."""
    code = """
import warnings
import torch
from pcfg.dense import passes
from pcfg.dense.engine import dense_inside_outside
from tests.pcfg.test_cuda_charts import scores

given, run_passes = scores(), passes._passes
plain = dense_inside_outside(*given).log_z

def waiting(dtype, outside, checks, *tensors):
    float(tensors[0].sum())  # may not be captured
    return run_passes(dtype, outside, checks, *tensors)

passes._passes = waiting
dense_inside_outside(*given)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert torch.equal(dense_inside_outside(*given).log_z, plain)
assert "couldn't be recorded as a CUDA graph" in str(caught[0].message), caught
assert len(passes.charts.failures) == 1
passes._passes = run_passes
passes.charts.failures.clear()
for _ in range(3):
    assert torch.equal(dense_inside_outside(*given).log_z, plain)
assert passes.charts.kept
print("usable")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "usable", done.stderr[-2000:]
