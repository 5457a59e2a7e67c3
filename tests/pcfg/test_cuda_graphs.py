"""Recordings: what is replayed is what was asked, memory is bounded, failures are told of; and nothing in a chart waits for the card."""

import contextlib
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pcfg.dense import chart, passes, scaled
from pcfg.dense.chart import Scores
from pcfg.dense.cuda_graphs import Once, Recordings, Replayed
from pcfg.dense.engine import dense_inside_outside, dense_k_best, dense_viterbi, log_partition
from pcfg.errors import GrammarError
from tests.support.replaying import Again, Eager

# What a capture refuses: reading a number of the card's, sizes that depend on numbers, and copies from or to a CPU.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "item", "is_nonzero", "equal")


class NoWaiting(TorchDispatchMode):
    """Refuses operations that a CUDA graph can't hold."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert not any(name.startswith(word) for word in WAITING), f"{name} waits for the card"
        found = function(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs, found))
        places = {x.device.type for x in flat if isinstance(x, torch.Tensor) and x.dim()}
        assert "cpu" not in places, f"{name} works on the CPU"
        assert name not in ("_to_copy", "copy_") or len(places) <= 1, f"{name} copies between devices"
        self.count += 1
        return found


def scores(batch=3, n=7, dtype=torch.float32, seed=0, own=False):
    draw = torch.Generator().manual_seed(seed)
    first = (batch,) if own else ()
    shapes = ((*first, 5), (*first, 2, 5, 5), (batch, n, 3))
    found = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes]
    return *found, torch.tensor([n, *[max(1, n - 2)] * (batch - 1)])


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes tensors of a device that has no numbers to read, and is not the CPU."""
    monkeypatch.setattr(
        "pcfg.dense.chart.full_precision", lambda like: contextlib.nullcontext()
    )  # knows no such device
    return lambda tensors: [x.to("meta") for x in tensors]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_passes_neither_wait_for_the_card_nor_touch_the_cpu(elsewhere, n, own):
    given = elsewhere(scores(n=n, own=own))
    ways = [torch.ones_like(x, dtype=torch.float64) for x in given[:3]]
    with NoWaiting() as seen, torch.inference_mode():
        for dtype, outside in itertools.product((torch.float32, torch.float64), (False, True)):
            for checks in (False, True):
                passes._passes(dtype, outside, checks, *given)
            passes._turned(outside, *given, *ways)
            passes._upper(dtype, 1e-30, *given)
            passes._parsed(dtype, *given)
            passes._best(*given)
            found = passes._passes(torch.float32, True, True, *given)
            for whole in (False, True):
                scaled._gradients_of(found, torch.ones_like(found.inside.total), whole)
            chart.by_end(scaled._labels(found))
    assert seen.count > 100


@pytest.mark.parametrize(
    "wrong", [torch.nonzero, torch.Tensor.cpu, lambda x: x[x > 0], lambda x: x.tolist(), lambda x: torch.ones(2)]
)
def test_what_waits_is_seen_to(elsewhere, wrong):
    with NoWaiting(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        wrong(*elsewhere([torch.ones(2)]))


@pytest.fixture
def eager(monkeypatch):
    found = Eager()
    monkeypatch.setattr("pcfg.dense.passes.RECORDED", ("cpu",))
    monkeypatch.setattr("pcfg.dense.passes.charts", found)
    monkeypatch.setattr("pcfg.dense.steps.MOST", 0)
    return found


def test_a_result_whose_memory_another_used_is_computed_again(eager):
    one, two = scores(seed=0), scores(seed=1)
    results = [dense_inside_outside(*given) for given in (one, two)]
    again = [dense_inside_outside(*given) for given in (one, two)]
    assert len(eager.kept) == 1
    for name in ("log_z", "span_marginals", "rule_expectations", "tag_posteriors", "log_inside", "start_expectations"):
        for result, other, given in zip(results, again, (one, two), strict=True):
            eager.forget()
            alone = getattr(dense_inside_outside(*given), name)
            assert torch.equal(getattr(result, name), alone) and torch.equal(getattr(other, name), alone)
    assert not torch.equal(results[0].log_z, results[1].log_z)


def test_gradients_of_several_batches_at_once(eager):
    found = []
    for together in (True, False):
        leaves = [[x.requires_grad_() for x in scores(seed=seed)[:3]] for seed in range(3)]
        values = [log_partition(*own, scores()[3]).sum() for own in leaves] if together else []
        for seed, own in enumerate(leaves):
            value = values[seed] if together else log_partition(*own, scores()[3]).sum()
            (value * (seed + 1)).backward()
        found.append([x.grad for own in leaves for x in own])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("size", [(4, 8), (5, 6)])
def test_weighed_gradients_are_those_of_the_plain_chart(eager, monkeypatch, own, size):
    found = []
    for places in (("cpu",), ()):
        monkeypatch.setattr("pcfg.dense.passes.RECORDED", places)
        leaves = [x.requires_grad_() for x in scores(*size, torch.float64, own=own)[:3]]
        weights = torch.arange(1.0, 1 + size[0], dtype=torch.float64).requires_grad_()
        value = (log_partition(*leaves, scores(*size)[3]) * weights).sum()
        slopes = torch.autograd.grad(value, leaves, create_graph=True)
        more = torch.autograd.grad(sum((x * x).sum() for x in slopes), [*leaves, weights])
        found.append([*slopes, *more])
    assert len(eager.kept) == 2, "passes, and turned ones"
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-12, rtol=1e-12)


class Counting(TorchDispatchMode):
    """What is started one by one, but for views: each takes a card's driver some microseconds."""

    VIEWS = ("view", "expand", "slice", "select", "transpose", "alias", "detach", "unsqueeze", "resolve")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.overloadpacket.__name__.startswith(self.VIEWS):
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Counted(Again):
    """A recording whose plays start one operation."""

    def play(self):
        with torch.utils._python_dispatch._disable_current_modes():
            super().play()
        torch.ones(1).abs()


@pytest.mark.parametrize(("size", "most"), [((4, 8), 24), ((5, 6), 36)])
@pytest.mark.parametrize("gradient", [False, True])
def test_little_is_started_outside_of_the_recordings(eager, gradient, size, most):
    eager.record = Counted
    start, binary, words, lengths = scores(*size)

    def run():
        if gradient:
            leaves = binary.clone().requires_grad_(), words.clone().requires_grad_()
            return torch.autograd.grad(log_partition(start, *leaves, lengths).sum(), leaves)
        result = dense_inside_outside(start, binary, words, lengths)
        return result.span_marginals, result.tag_posteriors, result.rule_expectations

    expected = run()
    with Counting() as seen:
        found = run()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert 5 < len(seen.names) <= most, seen.names
    assert not any(name.startswith(WAITING) for name in seen.names), "flags are read in one piece"


@pytest.mark.parametrize("ask", [dense_inside_outside, log_partition])
@pytest.mark.parametrize("size", [(3, 8), (5, 6)])
def test_numbers_that_cant_be_are_refused_by_the_recorded_passes(eager, ask, size):
    def wrong(change):
        start, binary, words, lengths = scores(*size)
        change(start, binary, words, lengths)
        return start, binary, words, lengths

    n = size[1]
    for change, message in (
        (lambda s, b, w, k: k.fill_(n + 1), f"1 to {n}, the words of emissions, but are .{n + 1}"),
        (lambda s, b, w, k: k[1].zero_(), "leave empty sentences out"),
        (lambda s, b, w, k: k.fill_(-1), "leave empty sentences out"),
        (lambda s, b, w, k: s[0].fill_(math.nan), "log_start holds NaN"),
        (lambda s, b, w, k: b[0, 1].fill_(math.inf), "log_binary holds NaN"),
        (lambda s, b, w, k: w[-1, 0].fill_(math.nan), "log_emissions holds NaN"),
    ):
        for _ in range(2):
            with pytest.raises(GrammarError, match=message):
                ask(*wrong(change))
    fine = ask(
        *wrong(lambda s, b, w, k: w[1, int(k[1]) :].fill_(math.nan))
    )  # what is beyond a sentence may be anything
    log_z = fine if ask is log_partition else fine.log_z
    assert torch.equal(log_z, ask(*scores(*size)) if ask is log_partition else ask(*scores(*size)).log_z)
    assert len(eager.kept) == 1


def test_what_is_asked_of_a_recording_is_recorded_in_turn_and_bounded():
    class Large(Again):
        size = 400

    home = Recordings(Large, limit=1000)
    runs = [home.run("double", lambda x: 2 * x, [torch.full((2,), float(value))]) for value in (1, 2, 3)]
    assert [type(run) for run in runs] == [Once, Replayed, Replayed]

    def times(state, by):
        return state * by

    for _, (run, value) in itertools.product(range(2), zip(runs, (1, 2, 3), strict=True)):
        assert run.ask("times", times, [torch.tensor(10.0)], lambda x: x[:1]).tolist() == [20.0 * value]
    assert len(runs[1].recording.questions) == 1 and 800 <= runs[1].recording.size <= 1000
    assert runs[2].ask("plus", lambda state: state + 1, (), lambda x: x).tolist() == [7.0, 7.0]
    assert not home.kept, "three of 400 bytes are too many"
    assert runs[1].ask("times", times, [torch.tensor(0.5)], lambda x: x).tolist() == [2.0, 2.0]


def test_a_question_that_cant_be_recorded_is_answered_all_the_same():
    class Failing(Again):
        def __init__(self, function, inputs, beside=None):
            if beside is not None:
                raise RuntimeError("operation not permitted when stream is capturing")
            super().__init__(function, inputs)

    home = Recordings(Failing, limit=1000)
    runs = [home.run("a", lambda x: x + 1, [torch.ones(1)]) for _ in range(2)]
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing.: such charts"):
        answers = [run.ask("b", lambda state: state * 3, (), lambda x: x) for run in runs]
    answers.append(runs[1].ask("b", lambda state: state * 3, (), lambda x: x))
    assert [x.item() for x in answers] == [6.0] * 3


def test_batches_of_many_lengths_need_few_recordings(eager):
    for n, batch in itertools.product(range(1, 41), (13, 14, 15, 16)):
        dense_inside_outside(*scores(batch, n))
    assert len(eager.kept) == 10
    sizes = [
        passes.padded_size(Scores(*scores(batch, n))) for batch, n in ((1, 1), (2, 4), (3, 5), (5, 8), (9, 9), (64, 40))
    ]
    assert sizes == [(1, 4), (2, 4), (3, 8), (6, 8), (12, 12), (64, 40)]


def test_doubts_are_settled_by_what_the_whole_batch_could_have_lost(eager, monkeypatch):
    floors, plain = [], passes._upper
    monkeypatch.setattr(passes, "_upper", lambda *given: floors.append(given[1]) or plain(*given))
    passes._upper.__name__ = "_upper"
    start, binary, words, _ = scores(3, 30, torch.float64)
    words[
        2, 0, :2
    ] = -math.inf  # only the last tag there, with which the second symbol doesn't begin: a zero in a short sentence
    binary[1, 4, :] = -math.inf
    given = Scores(start, binary, words, torch.tensor([30, 30, 4]))
    dense_inside_outside(start, binary, words, given.lengths)
    assert floors and min(floors) >= passes.floor_of(given, torch.float64)


def test_a_padded_chart_is_that_of_the_batch(eager):
    for own, batch in itertools.product((False, True), (3, 5)):
        given = scores(batch, 6, torch.float64, own=own)
        eager.enabled = True
        replayed = dense_inside_outside(*given)
        plain_device, passes.RECORDED = passes.RECORDED, ()
        plain = dense_inside_outside(*given)
        passes.RECORDED = plain_device
        weights = [torch.randn(x.shape, dtype=x.dtype) for x in (given[0], given[1], given[2])]
        for name in ("log_z", "label_marginals", "rule_expectations", "tag_posteriors", "log_inside"):
            torch.testing.assert_close(getattr(replayed, name), getattr(plain, name), atol=1e-13, rtol=1e-13)
        if not own:
            torch.testing.assert_close(replayed.expected(*weights), plain.expected(*weights), atol=1e-12, rtol=0)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("room", [1, 1 << 23])
def test_best_trees_are_those_of_the_plain_walk(eager, monkeypatch, own, room):
    for module in ("tree_walk", "viterbi"):
        monkeypatch.setattr(f"pcfg.dense.{module}.MOST_ENTRIES", room)
    for seed, n in enumerate((1, 2, 3, 4, 9, 13)):
        start, binary, words, lengths = scores(5, n, seed=seed, own=own)
        words[3, 0] = -math.inf  # without a parse
        given = start, binary, words.round(), lengths  # many trees are as good as another
        values, trees = dense_viterbi(*given)
        k_best = dense_k_best(*given, 3)
        monkeypatch.setattr("pcfg.dense.passes.RECORDED", ())
        plain_values, plain = dense_viterbi(*given)
        assert torch.equal(values, plain_values)
        assert [tree.tolist() for tree in trees] == [tree.tolist() for tree in plain]
        assert [len(tree) for tree in trees] == [0 if row == 3 else 2 * m - 1 for row, m in enumerate(lengths.tolist())]
        for mine, theirs in zip(k_best, dense_k_best(*given, 3), strict=True):
            assert [(score, tree.tolist()) for score, tree in mine] == [(s, tree.tolist()) for s, tree in theirs]
        monkeypatch.setattr("pcfg.dense.passes.RECORDED", ("cpu",))


def test_the_first_of_a_kind_is_computed_as_it_is_and_the_second_recorded():
    home, ran = Recordings(Again, limit=1 << 30), []

    def double(x):
        ran.append(1)
        return 2 * x

    kinds = [home.run("double", double, [torch.full((size,), 3.0)]) for size in (2, 2, 2, 4)]
    assert [type(kind) for kind in kinds] == [Once, Replayed, Replayed, Once]
    assert [kind.read(lambda x: x.tolist()) for kind in kinds] == [[6.0] * 2] * 3 + [[6.0] * 4]
    other = home.run("double", double, [torch.full((2,), 3.0, dtype=torch.float64)])
    assert isinstance(other, Once)
    home.enabled = False
    assert isinstance(home.run("double", double, [torch.ones(2)]), Once)


def test_memory_is_bounded_by_what_was_used_longest_ago():
    class Large(Again):
        size = 400

    home = Recordings(Large, limit=1000)
    for name in ("a", "a", "b", "b", "a", "c", "c"):
        home.run(name, lambda x: x + 1, [torch.ones(1)])
    assert [key[0] for key in home.kept] == ["a", "c"]
    assert sum(kept.size for kept in home.kept.values()) <= 1000
    home.limit = 300
    for _ in range(3):
        assert isinstance(home.run("d", lambda x: x + 1, [torch.ones(1)]), Once)
    assert "bytes of the 300" in next(iter(home.failures.values()))


def test_what_cant_be_recorded_is_computed_all_the_same_and_the_reason_kept():
    class Failing(Again):
        def __init__(self, function, inputs):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    home = Recordings(Failing, limit=1000)
    first = home.run("a", lambda x: x + 1, [torch.ones(1)])
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing.: such charts"):
        second = home.run("a", lambda x: x + 1, [torch.ones(1)])
    third = home.run("a", lambda x: x + 1, [torch.ones(1)])
    assert [x.read(lambda value: value.item()) for x in (first, second, third)] == [2.0] * 3
    assert list(home.failures.values()) == ["operation not permitted when stream is capturing\nmore"]


def test_charts_too_large_to_keep_are_not_padded(eager):
    eager.limit = 1000
    result = dense_inside_outside(*scores(3, 5))
    assert not eager.seen and result.parts[0].run.state.inside.n == 5
    assert float(result.log_z[0]) > -math.inf
