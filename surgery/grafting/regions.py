"""Regions that were located, kept in files, so that a stopped sweep needn't locate them again."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from surgery.errors import first_line
from surgery.files import replace_bytes
from surgery.resuming import damaged


def kept_region(
    file: Path | None, candidates: int, find: Callable[[], Int64[Tensor, " k"]]
) -> tuple[Int64[Tensor, " k"], float]:
    """Read the candidates that are in a file, or locate them by `find`; returns them and the seconds that locating took."""
    if file is not None and file.exists():
        return _read(file, candidates)
    began = time.monotonic()
    chosen = find()
    seconds = round(time.monotonic() - began, 2)
    if file is not None:
        replace_bytes(file, save({"chosen": chosen.cpu().contiguous()}, metadata={"seconds": str(seconds)}))
    return chosen, seconds


def _read(file: Path, candidates: int) -> tuple[Int64[Tensor, " k"], float]:
    try:
        with safe_open(file, "pt") as opened:
            chosen, seconds = opened.get_tensor("chosen"), float(opened.metadata()["seconds"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise damaged(file, first_line(error)) from None
    whole = chosen.dtype == torch.int64 and chosen.dim() == 1 and len(chosen) == len(chosen.unique()) > 0
    if not whole or int(chosen.min()) < 0 or int(chosen.max()) >= candidates:
        raise damaged(file, "it holds no candidates of these checkpoints")
    return chosen, seconds
