"""Memory that TinT needs on a text: each method's own work on one batch of windows, rehearsed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import pick_dtype
from surgery.devices import pick_device
from surgery.memory import Need
from surgery.resuming import Memo
from surgery.tasks.rehearsal import model_bytes, read_one, rehearsed
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.cuda_graphs import pays
from surgery.tint.evaluation.perplexity import USUAL, WINDOW, Evaluation, check_options
from surgery.tint.segments import Plan
from surgery.tint.shape import Shape
from surgery.tint.simulator import BlockNumbers, pick_blocks

_LOWER = "lower `window`, `batch_size` or the number of `layers` that learn, or give `dtype` bfloat16"
_GRAPHS = "what CUDA graphs keep of a model this small, about as much as its activations again, isn't counted"


def text_need(
    model: str | Path | Checkpoint,
    *,
    shares: Sequence[float] = (0.5,),
    steps: int = 1,
    layers: BlockNumbers = "all",
    methods: Sequence[str] = USUAL,
    window: int | None = None,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Need:
    """Find what memory `run_text` with these arguments needs at once, from shapes alone; no weights are read.

    Raises:
        TintError: an architecture that can't be simulated. OptionError: an option out of range.
    """
    check_options(shares, methods, window, batch_size, steps)
    checkpoint, place, precision = open_checkpoint(model), pick_device(device), pick_dtype(dtype)
    shape = Shape.of_config(checkpoint.config, str(checkpoint))
    tokens = window or min(WINDOW, shape.positions)
    check_options(shares, methods, tokens, batch_size, steps)

    def peak() -> int:
        windows = torch.zeros(batch_size, tokens, dtype=torch.long)
        plans = []
        for share, method in product(shares, set(methods) - {"frozen"} or methods):  # which takes the least
            rows, boundary = windows[: 1 if method == "dynamic evaluation" else None], round(share * tokens)
            mask = (torch.arange(tokens) < boundary).expand(len(rows), -1)
            plans.append((method, Plan.of(rows, mask, shape=shape, device=place, whole=True), boundary))
        with rehearsed(checkpoint, place, precision, tokenized=False) as (loaded, meter):
            read_one(loaded)
            evaluation = Evaluation(Auxiliary.of(loaded), windows, methods, steps, layers, batch_size, Memo(None))
            for method, plan, boundary in plans:
                evaluation.row_losses(method, plan, boundary, 1e-4)
            return meter.peak

    weights = model_bytes(checkpoint, precision)
    rows = max(
        (1 if method == "dynamic evaluation" else batch_size for method in methods if method != "frozen"), default=0
    )
    learning = shape.block_weights * len(pick_blocks(layers, shape.layers)) // shape.layers
    known = {"weights": weights, "each window's own weights": rows * learning * precision.itemsize}
    need = Need.of_peak("TinT", place, known, peak, _LOWER, {})
    return need if need.note or not pays(place, weights) else replace(need, note=_GRAPHS)
