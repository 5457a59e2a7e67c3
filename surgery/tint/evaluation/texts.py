"""Texts: a file read, tokenized and cut into windows, and the models that need a tokenizer for it."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from surgery.errors import OptionError, TintError
from surgery.tint.auxiliary import load_named


def load_whole(model: Any, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Any:
    """A model with its tokenizer; raises TintError for one without, or that can't be simulated."""
    model = load_named(model, device=device, dtype=dtype, tokenized=True)
    if getattr(model, "tokenizer", None) is None:
        raise TintError("a text needs a tokenizer: give a folder, a hub id or a loaded Model, or give token ids")
    return model


def load_with_tokens(
    model: str,
    text: Path | None,
    tokens: int,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[Any, Int[Tensor, "1 tokens"]]:
    """A loaded model, and one row of a text's first tokens, or of random ones, on the CPU."""
    written = None if text is None else read_text(text)
    loaded = load_whole(model, device, dtype)
    if written is None:
        size = min(len(loaded.tokenizer), loaded.module.get_input_embeddings().num_embeddings)  # either may be padded
        return loaded, torch.randint(size, (1, tokens), generator=torch.Generator().manual_seed(seed))
    ids = tokenize(loaded, written)
    if len(ids) < tokens:
        raise TintError(f"{text} has {len(ids)} tokens, fewer than the {tokens} asked for")
    return loaded, ids[None, :tokens]


def read_text(file: Path) -> str:
    """A file's text, without a byte order mark; raises TintError where there is none to read."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TintError(f"{file} can't be read as text ({error})") from error


def tokenize(model: Any, text: str) -> Int[Tensor, " tokens"]:
    """A text's token ids, without the tokens that a tokenizer puts around texts."""
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.long)


def bos_token(tokenizer: Any, wanted: bool | None) -> int | None:
    """The token that begins each window: the tokenizer's, where it puts one before a text by itself or one is asked for."""
    start = tokenizer.bos_token_id
    if wanted is None:
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        return start if start is not None and first == [start] else None
    if wanted and start is None:
        raise OptionError("the tokenizer has no token that begins a text: leave `start_token` out")
    return start if wanted else None


def cut_windows(
    ids: Int[Tensor, " tokens"], window: int, *, start: int | None, held: int, windows: int | None
) -> Int[Tensor, "rows window"]:
    """The first `held` + `windows` windows of a text, side by side and without overlap.

    Args:
        window: tokens of a window, with the start token where there is one.
        start: a token id to begin each window with.
        windows: default all that `held` leaves.

    Raises:
        TintError: a text too short.
    """
    own = window if start is None else window - 1
    there = len(ids) // own
    wanted = there - held if windows is None else windows
    if wanted < 1 or there < held + wanted:
        raise TintError(
            f"the text has {len(ids):,} tokens, which is {there} windows of {window}, but {held + max(wanted, 1)} are needed: give a longer text or a smaller `window`"
        )
    rows = ids[: (held + wanted) * own].view(-1, own)
    if start is not None:
        rows = torch.cat((torch.full((len(rows), 1), start), rows), 1)
    return rows
