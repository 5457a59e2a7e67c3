"""Which arithmetic holds a sentence: scaled charts where nothing that counts underflows, in float32 or float64, else logs."""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pcfg.dense.chart import Scores
from pcfg.dense.checks import complain
from pcfg.dense.cuda_graphs import Once, Replayed
from pcfg.dense.log_space import Logs
from pcfg.dense.passes import ROUNDINGS, run_parsed, run_passes, run_upper
from pcfg.dense.scaled import Scaled


def solve(scores: Scores, dtype: torch.dtype, outside: bool) -> list[Scaled | Logs]:
    """Charts in which no sentence has lost anything, the first of dtype, float64 and log-space that holds it.

    Where charts are recorded, the passes check the scores themselves (GrammarError) and mask what is beyond a sentence's length.
    """
    rows = torch.arange(len(scores.lengths), device=scores.lengths.device)
    parts: list[Scaled | Logs] = []
    failed = {}
    for level in dict.fromkeys((dtype, torch.float64)):
        some = scores if len(rows) == len(scores.lengths) else scores.rows(rows)
        run, sound = _attempt(some, level, outside)
        if sound is None:
            parts.append(_scaled(rows, run, some))
            rows = rows[:0]
            break
        failed[level] = int((~sound).sum())
        if failed[level] < len(rows):
            held = scores.rows(rows[sound])
            parts.append(_scaled(rows[sound], _attempt(held, level, outside)[0], held))
        rows = rows[~sound]
    if len(rows):
        parts.append(Logs(rows, scores.rows(rows)))
    if failed:
        levels = " and ".join(f"{count} in {str(level).removeprefix('torch.')}" for level, count in failed.items())
        last = "log-space" if len(rows) else "float64"
        warnings.warn(
            f"{levels} of {len(scores.lengths)} sentences underflow: they were computed again, up to {last}, slower and exact.",
            RuntimeWarning,
            stacklevel=4,
        )
    return parts


def _scaled(rows: Int64[Tensor, " r"], run: Once | Replayed, scores: Scores) -> Scaled:
    return Scaled(rows, run, run.state.inside.batch, scores.emissions.shape[1], scores.binary.dim() == 3)


@torch.inference_mode()  # some hundred small operations: what autograd would note of each takes as long as they do
def _attempt(scores: Scores, dtype: torch.dtype, outside: bool) -> tuple[Once | Replayed, Bool[Tensor, " B"] | None]:
    """Scaled charts, and which sentences they are proven to hold; None for all of them."""
    run, batch = run_passes(scores, dtype, outside), len(scores.lengths)
    some_doubted, some_wrong, *wrongs = run.read(lambda passes: passes.some.tolist())  # waits for a card, once a chart
    if wrongs:
        complain(scores, wrongs)
    if not (some_doubted or some_wrong):
        return run, None
    doubted, wrong = run.read(lambda passes: (passes.doubted[:batch].clone(), passes.wrong[:batch].clone()))
    sound = ~doubted
    if some_doubted:
        rows = doubted.nonzero()[:, 0]
        some = scores.rows(rows)
        log_z, empty = run.read(lambda passes: (passes.inside.log_z[rows], passes.inside.total[rows] == 0))
        floor = run.read(lambda passes: passes.floor)  # of the whole batch, whose entries are the ones in doubt
        upper = run_upper(some, dtype, floor).read(lambda bounds: bounds[: len(rows)].clone())
        gap, size = upper - log_z, upper.abs()
        sound[rows] = gap <= ROUNDINGS * torch.finfo(dtype).eps / 2 + 8 * torch.finfo(size.dtype).eps * size
        if bool(empty.any()):
            sound[rows] |= empty & ~run_parsed(some, dtype).read(lambda parsed: parsed[: len(rows)].clone())
    if some_wrong:
        sound &= ~wrong
    return run, None if bool(sound.all()) else sound


def merge(
    parts: Sequence[Scaled | Logs],
    tensors: Sequence[Tensor],
    shape: Sequence[int],
    dtype: torch.dtype = torch.float64,
    padding: float = 0.0,
) -> Tensor:
    """Results of the parts, in the order of the batch; parts cut to shorter sentences are padded."""
    if len(parts) == 1 and tensors[0].shape == tuple(shape):
        return tensors[0].to(dtype)
    merged = tensors[0].new_full(tuple(shape), padding, dtype=torch.float64)
    for part, tensor in zip(parts, tensors, strict=True):
        place: tuple[Tensor | slice, ...] = (part.rows, *(slice(0, size) for size in tensor.shape[1:]))
        merged[place] = tensor.double()
    return merged.to(dtype)
