"""Where a tuning begins: what is tuned, how it is kept, and at which step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from surgery.checkpoints.models import Model
from surgery.checkpoints.region import Region
from surgery.errors import OptionError
from surgery.mezo.adapters import matrices, with_factors
from surgery.mezo.noise import Noise
from surgery.mezo.trajectory import Trajectory
from surgery.mezo.walk import Precision
from surgery.mezo.weights import LowRankTensor, SixteenBitTensor, TunedTensor

Tuned = TunedTensor | LowRankTensor


def check_ways(**ways: Any) -> bool:
    """Whether fewer numbers are tuned than whole tensors have; raises OptionError for two ways at once."""
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise OptionError(f"give `{given[0]}` or `{given[1]}`, not both")
    return bool(given)


def pick_precision(kind: str, few: bool, residual: bool, force: bool) -> Precision:
    """How tuned weights are kept; raises OptionError for what would lose most of the steps."""
    if kind not in ("float32", "bfloat16"):
        raise OptionError(f"`dtype` {kind} isn't for tuning: float32 or bfloat16")
    if kind == "float32" or few:
        return "float32"
    if not residual and not force:
        raise OptionError(
            f"weights of bfloat16 alone can't hold the steps: {_loss_of_16_bits()}; keep the `residual`, or `force` it"
        )
    return "residual" if residual else "bfloat16"


def begin(
    model: Model,
    new: Trajectory,
    names: Sequence[str],
    region: Region | None,
    rank: int | None,
    onward: Trajectory | None,
) -> tuple[Trajectory, list[Tuned]]:
    """The trajectory, without a step or the one to go on from, and what is tuned, at its end.

    Raises OptionError where the one to go on from moves something else.
    """
    if rank is not None:
        columns = matrices(model, names)
        about = {**new.about, "columns": [name for name, columns in columns.items() if columns]}
        new = replace(new, tensors=tuple(columns), rank=rank, about=about)
    elif region is not None:
        new = replace(new, tensors=tuple(sorted(region.indices)), region=dict(region.indices))
    else:
        new = replace(new, tensors=tuple(names))
    if onward is not None:
        onward.check_base(model.checkpoint)
        if not _alike(onward, new):
            raise OptionError(
                "`onward` moved other weights, or in another way (dtype, noise, directions, momentum): give what it was tuned with"
            )
        new = replace(onward, about=new.about)
    tensors: list[Tuned] = []
    if rank is not None:
        tensors += with_factors(model, columns, rank, new.noise)
    else:
        for number, name in enumerate(new.tensors):
            stored = None if new.region is None else model.checkpoint.tensor(name)
            tensors.append(new.tuned(number, model.parameters[name], stored))
    if new.steps:
        for tensor in tensors:
            tensor.walk(new.terms())
    return new, tensors


def leaves(tensors: Sequence[Tuned]) -> list[TunedTensor]:
    """The tensors that forward passes move: factors, where those are tuned."""
    each = [[tensor.down, tensor.up] if isinstance(tensor, LowRankTensor) else [tensor] for tensor in tensors]
    return [tensor for pair in each for tensor in pair]


def _alike(one: Trajectory, two: Trajectory) -> bool:
    if (one.tensors, one.precision, one.momentum, one.rank) != (two.tensors, two.precision, two.momentum, two.rank):
        return False
    if one.coefficients.shape[1] != two.coefficients.shape[1] or one.noise.kind != two.noise.kind:
        return False
    if one.region is None or two.region is None:
        return one.region is two.region
    return all(torch.equal(index, two.region[name]) for name, index in one.region.items())


def _loss_of_16_bits() -> str:
    """What becomes of 100 steps of a usual size in bfloat16, measured on the spot."""
    start = torch.randn(4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    size = 1e-5
    walk = Trajectory("", Noise(), ("weights",), np.full((100, 1), size, np.float32))
    kept = SixteenBitTensor("weights", 0, start.clone(), walk.noise)
    true = TunedTensor("weights", 0, start.float(), walk.noise)
    for tensor in (kept, true):
        tensor.walk(walk.terms())
    went, wanted = kept.values.float() - start.float(), true.values - start.float()
    share, off = float((went * wanted).sum() / wanted.square().sum()), float((went - wanted).norm() / wanted.norm())
    return f"of 100 steps of {size:g} on weights of size .02, a share of {share:.2f} arrives, with an error of {off:.1f} times the movement"
