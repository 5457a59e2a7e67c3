"""The dense engine on a card against torch-struct there: marginals and rule expectations, log Z with its gradient, Viterbi."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pcfg.dense import passes
from pcfg.dense.cuda_graphs import charts
from pcfg.dense.engine import dense_inside_outside, dense_viterbi, log_partition
from tests.benchmarks.card.measure import Line, faster, holds, peak_bytes, shown, timed, within

DEVICE = "cuda"
# Nonterminals, preterminals, sentences, words, and how many times as fast as torch-struct (0: it isn't run, for want of memory).
SIZES = ((20, 45, 8, 20, 15), (20, 45, 8, 40, 15), (20, 45, 64, 40, 25), (30, 60, 16, 40, 15), (90, 180, 4, 40, 0))

BEST = (20, 45, 64, 40)  # where Viterbi is timed
MIXED = (20, 45, 16, 40)  # nonterminals, preterminals, sentences, and words of the longest


def scores(tops: int, tags: int, batch: int, n: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """A random grammar with softmax of normal scores for rules, and random words."""
    draw, symbols = torch.Generator().manual_seed(0), tops + tags
    start = torch.randn(symbols, generator=draw, dtype=torch.float64)
    start[tops:] = -torch.inf
    binary = torch.randn(tops, symbols * symbols, generator=draw, dtype=torch.float64).log_softmax(1)
    words = torch.randn(batch, n, tags, generator=draw, dtype=torch.float64) - 5
    found = (start.log_softmax(0), binary.view(tops, symbols, symbols), words)
    return *(x.to(device, dtype) for x in found), torch.full((batch,), n, device=device)


def marginals(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Span marginals, tag posteriors and rule expectations."""
    result = dense_inside_outside(*given)
    return result.span_marginals, result.tag_posteriors, result.rule_expectations


def training(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Gradients of the summed log Z by rules and words."""
    start, binary, words, lengths = given
    leaves = binary.detach().requires_grad_(), words.detach().requires_grad_()
    return torch.autograd.grad(log_partition(start, *leaves, lengths).sum(), leaves)


def theirs(given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """torch-struct's marginals; it wants rules per sentence."""
    import torch_struct

    start, binary, words, lengths = given
    rules = binary.expand(len(words), *binary.shape).contiguous()
    roots = start[: len(binary)].expand(len(words), len(binary)).contiguous()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*arg_constraints")  # of torch, about torch-struct
        return torch_struct.SentCFG((words, rules, roots), lengths=lengths).marginals


def lines() -> Iterator[Line]:
    """Errors first: a fast wrong number is none."""
    has_rival = _importable()
    for tops, tags, batch, n, target in SIZES:
        name = f"pcfg {tops}+{tags}, batch {batch}, n {n}"
        given = scores(tops, tags, batch, n, torch.float32, DEVICE)
        exact = marginals(tuple(x.double().cpu() if x.is_floating_point() else x.cpu() for x in given))
        error = max(
            float(((x.cpu() - y).abs() / y.abs().clamp(min=1)).max())
            for x, y in zip(marginals(given), exact, strict=True)
        )
        yield within(f"{name}: error of posteriors and counts", error, 1e-4)
        ours = timed(lambda given=given: marginals(given))
        with launched():
            plain = timed(lambda given=given: marginals(given), 3, 1)
            bits = [x.clone() for x in marginals(given)]
        same = all(torch.equal(x, y) for x, y in zip(marginals(given), bits, strict=True))
        yield holds(f"{name}: replayed, the same bits as kernel by kernel", same)
        note = f"kernel by kernel {shown(plain)}, {peak_bytes(lambda given=given: marginals(given)) / 1e6:.0f} MB"
        if target and has_rival:
            rival = timed(lambda given=given: theirs(given), 3, 1)
            yield faster(f"{name}: marginals, rules; torch-struct", ours, rival, target, note)
            torch.cuda.empty_cache()
        else:
            yield within(f"{name}: marginals, rules", 1e3 * ours, 30.0, lambda x: f"{x:.2f} ms", note)
        slope = timed(lambda given=given: training(given))
        yield faster(f"{name}: gradient of log Z; marginals", slope, ours, 0.95)
    yield from fused()
    yield from mixed_lengths()
    given = scores(*BEST, torch.float32, DEVICE)
    best = timed(lambda: dense_viterbi(*given), 5, 3)
    yield within("pcfg 20+45, batch 64, n 40: Viterbi", 1e3 * best, 20.0, lambda x: f"{x:.2f} ms")


def fused() -> Iterator[Line]:
    """Kernels of Triton against operations of torch, both replayed."""
    given, places = scores(*BEST, torch.float32, DEVICE), passes.FUSED
    steps = dense_inside_outside(*given).parts[0].run.state.inside.steps
    used = type(steps).__name__ == "TritonSteps"  # by name: Triton may not be installed
    reasons = "; ".join(getattr(sys.modules.get("pcfg.dense.triton_kernels"), "reasons", {}).values())
    yield holds("pcfg: Triton's kernels are used", used, " ".join(reasons.split())[:300])
    ours = timed(lambda: marginals(given))
    charts.forget()
    passes.FUSED = ()
    try:
        plain = timed(lambda: marginals(given))
    finally:
        passes.FUSED = places
        charts.forget()
    yield faster("pcfg 20+45, batch 64, n 40: Triton's kernels; torch's", ours, plain, 1.0 if used else 0.0)


def mixed_lengths() -> Iterator[Line]:
    """Gradients of batches whose longest sentences differ, as in training: each size is recorded once."""
    tops, tags, batch, longest = MIXED
    given = [scores(tops, tags, batch, n, torch.float32, DEVICE) for n in range(longest // 4, longest + 1, 3)]
    replayed = timed(lambda: [training(some) for some in given], 3, 2)
    with launched():
        plain = timed(lambda: [training(some) for some in given], 1, 1)
    yield faster(f"pcfg {tops}+{tags}, batch {batch}, mixed lengths: gradients; kernel by kernel", replayed, plain, 3)
    start, binary, words, lengths = given[-1]

    def second() -> None:
        leaves = binary.detach().requires_grad_(), words.detach().requires_grad_()
        slopes = torch.autograd.grad(log_partition(start, *leaves, lengths).sum(), leaves, create_graph=True)
        torch.autograd.grad(sum((slope * slope).sum() for slope in slopes), leaves)

    replayed = timed(second, 3, 3)
    with launched():
        plain = timed(second, 2, 1)
    yield faster(
        f"pcfg {tops}+{tags}, batch {batch}, n {longest}: second derivative; kernel by kernel", replayed, plain, 2
    )


@contextmanager
def launched() -> Iterator[None]:
    """Nothing is recorded or replayed."""
    charts.enabled = False
    try:
        yield
    finally:
        charts.enabled = True


def _importable() -> bool:
    try:
        import torch_struct  # noqa: F401
    except Exception:
        return False
    return True
