"""The passes of the dense engine as functions of tensors alone: run as they are on a CPU, recorded and replayed on a card.

On a card a batch is padded to one of few sizes: to words by fours, and to sentences by copies of the last, of which there are
as many as makes 1, 2, 3, 4, 6, 8, 12, ... So a model that is trained on batches of all lengths soon finds each recorded.
"""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from pcfg.dense.chart import Inside, Outside, Potentials, Scores, Settle, Steps, floor_of
from pcfg.dense.checks import alarms, masked, within_chart
from pcfg.dense.cuda_graphs import Once, Replayed, charts
from pcfg.dense.steps import LoopSteps, TensorSteps
from pcfg.dense.viterbi import best_of

# Words' posteriors must sum to 1 within this many roundings, lest the outside pass has lost something.
ROUNDINGS = 64
WORDS = 4  # a chart on a card is of a multiple of so many
RECORDED = ("cuda",)  # kinds of devices where charts are recorded
FUSED = ("cuda",)  # kinds of devices for which there are kernels of Triton


@dataclass(frozen=True, eq=False)
class Passes:
    """What a batch's passes leave, and which sentences they may have lost something of."""

    inside: Inside
    outside: Outside | None
    doubted: Bool[Tensor, " B"]  # something is so small that what underflowed beside it may count
    wrong: Bool[Tensor, " B"]  # words that don't have one preterminal each
    floor: float  # no entry lost more
    # Whether any is doubted, and wrong, and `alarms` if they were asked for: what a caller has to wait for.
    some: Bool[Tensor, " flags"]


@dataclass(frozen=True, eq=False)
class Turned:
    """Passes whose imaginary parts over `step` are slopes along what they were turned by."""

    slope: Float64[Tensor, " B"]
    step: Float64[Tensor, ""]
    inside: Inside
    outside: Outside | None


def run_passes(scores: Scores, dtype: torch.dtype, outside: bool) -> Once | Replayed:
    """`Passes` of this batch; where charts are recorded they look for `alarms` and mask padding themselves."""
    return _run(scores, _passes, (), dtype, outside, is_recorded(scores))


def run_upper(scores: Scores, dtype: torch.dtype, floor: float) -> Once | Replayed:
    """An upper bound of the true log Z of each sentence: what each entry could have lost is given to all of them."""
    return _run(scores, _upper, (), dtype, floor)


def run_parsed(scores: Scores, dtype: torch.dtype) -> Once | Replayed:
    """Whether each sentence has a tree at all, whatever it weighs."""
    return _run(scores, _parsed, (), dtype)


def run_turned(scores: Scores, ways: tuple[Tensor, Tensor, Tensor], outside: bool) -> Once | Replayed:
    """`Turned` passes along `ways`, in complex128."""
    return _run(scores, _turned, ways, outside)


def run_best(scores: Scores) -> Once | Replayed:
    """Scores, charts and trees of `viterbi.best_of`."""
    return _run(scores, _best, ())


def _run(scores: Scores, function: Any, ways: tuple[Tensor, ...], *options: Any) -> Once | Replayed:
    run = partial(function, *options)
    device = scores.lengths.device
    given: tuple[Tensor, ...] = (scores.start, scores.binary, scores.emissions, scores.lengths)
    if not is_recorded(scores):
        return Once(run(*given, *ways))
    rows, words = padded_size(scores)
    if _least_bytes(scores, rows, words) > charts.most(device):
        return Once(run(*given, *ways))
    if (rows, words) == scores.emissions.shape[:2]:
        return charts.run((function.__name__, *options), run, (*given, *ways))
    which = torch.arange(rows, device=device).clamp(max=len(scores.lengths) - 1)
    lengths = scores.lengths.masked_fill(scores.lengths > scores.emissions.shape[1], words + 1)  # too long stays so
    given = (*_padded(given[:3], which, words, -torch.inf), lengths[which])
    return charts.run((function.__name__, *options), run, (*given, *_padded(ways, which, words, 0.0)))


def is_recorded(scores: Scores) -> bool:
    """Whether the scores are on a device where charts are recorded."""
    return scores.lengths.device.type in RECORDED


def padded_size(scores: Scores) -> tuple[int, int]:
    """Sentences and words of the chart that a batch gets on a card."""
    batch, n = scores.emissions.shape[:2]
    power = 1 << (batch - 1).bit_length()
    return 3 * power // 4 if batch <= 3 * power // 4 else power, -(-n // WORDS) * WORDS


def _padded(
    tensors: tuple[Tensor, ...], which: Int64[Tensor, " rows"], words: int, filler: float
) -> tuple[Tensor, ...]:
    """Numbers of the start, rules and words for these sentences and so many words; what sentences share stays as it is."""
    if not tensors:
        return ()
    start, binary, emissions = tensors
    start = start[which] if start.dim() == 2 else start
    binary = binary[which] if binary.dim() == 4 else binary
    emissions = emissions[which]
    return start, binary, torch.nn.functional.pad(emissions, (0, 0, 0, words - emissions.shape[1]), value=filler)


def _least_bytes(scores: Scores, rows: int, words: int) -> int:
    """Less than what the charts of a batch take in float32: the spans' and the words' with their rules."""
    inner, tags = scores.symbols
    return 4 * rows * words * inner * (6 * words + 4 * inner + 2 * tags)


def _passes(dtype: torch.dtype, outside: bool, checks: bool, *given: Tensor) -> Passes:
    scores = Scores(*given)
    raised: list[Tensor] = []
    if checks:
        raised.append(alarms(masked(scores)))
        scores = masked(within_chart(scores))
    floor, eps = floor_of(scores, dtype), torch.finfo(dtype).eps
    inside = _inside(scores, dtype, drop(floor))
    doubted = inside.faint(scores, floor / eps)
    if not outside:
        wrong = torch.zeros_like(doubted)
        return Passes(inside, None, doubted, wrong, floor, _some(doubted, wrong, raised))
    posteriors = Outside(inside)
    words = torch.arange(len(inside.tags), device=doubted.device)[:, None] < scores.lengths
    expected = (words & (inside.total > 0)).to(dtype)
    right = (posteriors.tag_posteriors.sum(2) - expected).abs() <= ROUNDINGS * eps  # NaN is wrong too
    wrong = ~right.all(0)
    return Passes(inside, posteriors, doubted, wrong, floor, _some(doubted, wrong, raised))


def _inside(
    scores: Scores, dtype: torch.dtype, settle: Settle, tangent: tuple[Tensor, Tensor, Tensor] | None = None
) -> Inside:
    return Inside(Potentials.of(scores, dtype, tangent), scores.symbols[0], settle, fastest_steps)


def fastest_steps(inside: Inside) -> Steps:
    """Compiled loops for a small batch on a CPU, kernels of Triton on a card where it is installed, else operations of torch."""
    if LoopSteps.suits(inside.tags, inside.nonterminals):
        return LoopSteps(inside)
    if inside.tags.device.type in FUSED and find_spec("triton"):
        from pcfg.dense.triton_kernels import TritonSteps

        if TritonSteps.suits(inside.tags, inside.nonterminals):
            return TritonSteps(inside)
    return TensorSteps(inside)


def _some(doubted: Tensor, wrong: Tensor, more: list[Tensor]) -> Bool[Tensor, " flags"]:
    return torch.cat([torch.stack([doubted, wrong]).any(1), *more])


def _upper(dtype: torch.dtype, floor: float, *given: Tensor) -> Tensor:
    scores = Scores(*given)
    return _inside(scores, dtype, lambda entries: entries + 2 * floor).log_z


def _parsed(dtype: torch.dtype, *given: Tensor) -> Tensor:
    scores = Scores(*given).support()
    return _inside(scores, dtype, lambda entries: (entries > 0).to(dtype)).total > 0


def _turned(outside: bool, *given: Tensor) -> Turned:
    """The step is so far below rounding that its square is nothing to the real part: there is no difference of close
    numbers, as in a difference quotient, and no error but rounding."""
    scores, ways = Scores(*given[:4]), given[4:]
    largest = torch.stack([way.abs().amax() for way in ways]).amax().double()
    step = 1e-20 / torch.where(largest > 0, largest, 1.0)
    tangent = (ways[0].double() * step, ways[1].double() * step, ways[2].double() * step)
    inside = _inside(scores, torch.complex128, drop(floor_of(scores, torch.float64)), tangent)
    some = inside.total.real > 0
    slope = torch.where(some, inside.total.imag / torch.where(some, inside.total.real, 1.0), 0.0) / step
    return Turned(slope, step, inside, Outside(inside) if outside else None)


def _best(*given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return best_of(Scores(*given))


def drop(floor: float) -> Settle:
    """Makes entries 0 that are too small to divide by."""
    return partial(_dropped, floor=floor)


def _dropped(entries: Tensor, floor: float) -> Tensor:
    if entries.is_complex():
        return entries.masked_fill(entries.real <= floor, 0.0)
    return torch.nn.functional.threshold(entries, floor, 0.0)
