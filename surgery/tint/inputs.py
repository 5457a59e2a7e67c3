"""Token ids, masks and segments as users have them: a row or rows, lists, numpy arrays, tensors on any device."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from surgery.errors import TintError, first_line

_KINDS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def as_ids(given: Any, vocabulary: int, name: str = "input_ids") -> Int[Tensor, "batch tokens"]:
    """Token ids as int64 on the CPU, [batch, tokens]; one row may come without its first axis.

    Raises:
        TintError: numbers that aren't whole, rows of different lengths, none at all, or a token that the model doesn't have.
    """
    ids = _tensor(given, name)
    if ids.dtype not in _KINDS:
        kind = str(ids.dtype).removeprefix("torch.")
        raise TintError(
            f"{name} holds {kind}, but tokens are whole numbers: give the tokenizer's ids, such as ids.long()"
        )
    ids = ids.long()
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2 or ids.numel() == 0:
        raise TintError(f"{name} has shape {tuple(ids.shape)}: give [batch, tokens], with a token at least")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise TintError(
            f"{name} holds token {low if low < 0 else high}, but the model has 0 to {vocabulary - 1}: was another tokenizer used?"
        )
    return ids


def as_mask(given: Any, ids: Tensor, name: str) -> Bool[Tensor, "batch tokens"] | None:
    """A mask as booleans on the CPU, one value a token; whole numbers must be 0 or 1. None stays None."""
    if given is None:
        return None
    mask = _fitting(given, ids, name)
    if mask.dtype is not torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise TintError(f"{name} must be true or false, or 0 or 1, a token")
    return mask.bool()


def as_segments(given: Any, ids: Tensor) -> Int[Tensor, "batch tokens"] | None:
    """Segments' numbers as int64 on the CPU, one a token. None stays None."""
    if given is None:
        return None
    segments = _fitting(given, ids, "segments")
    if segments.dtype not in _KINDS or int(segments.min()) < 0:
        raise TintError("segments must be whole numbers, 0 or more, one a token")
    return segments.long()


def _fitting(given: Any, ids: Tensor, name: str) -> Tensor:
    tensor = _tensor(given, name)
    if tensor.dim() == 1:
        tensor = tensor[None]
    if tensor.shape != ids.shape:
        raise TintError(
            f"{name} has shape {tuple(tensor.shape)}, but input_ids {tuple(ids.shape)}: give one value a token"
        )
    return tensor


def _tensor(given: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(given).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise TintError(f"{name} can't be read as a table of numbers ({reason}): give rows of one length") from None
