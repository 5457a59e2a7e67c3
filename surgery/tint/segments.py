"""Masks and segments turned into what the passes use: positions, attention masks, and pairs to learn from."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from surgery.errors import TintError
from surgery.tint.inputs import as_ids, as_mask, as_segments
from surgery.tint.shape import Shape


@dataclass(frozen=True, eq=False)
class Plan:
    """A batch put in order, on the model's device.

    Attributes:
        ids: [batch, tokens]. `positions`: where each stands in its text.
        visible: the attention mask after the update, [batch, reader, read]; None for the causal one.
        train_visible: the same while training, where training tokens read training tokens alone; for the first `train_tokens`.
        train_tokens: tokens up to the last training token of any row, which is all that training reads.
        targets: [batch, tokens - 1]: whether the token that follows is one to learn.
        pairs: the same as numbers, row * train_tokens + place, in order.
    """

    ids: Int[Tensor, "batch tokens"]
    positions: Int[Tensor, "batch tokens"]
    visible: Bool[Tensor, "batch tokens tokens"] | None
    train_visible: Bool[Tensor, "batch train train"] | None
    train_tokens: int
    targets: Bool[Tensor, "batch places"]
    pairs: Int[Tensor, " pairs"]

    @classmethod
    def of(
        cls,
        input_ids: Any,
        train_mask: Any = None,
        *,
        loss_mask: Any = None,
        segments: Any = None,
        attention_mask: Any = None,
        shape: Shape,
        device: torch.device,
        whole: bool = False,
    ) -> "Plan":
        """Check a batch and put it in order: on the CPU, so that no check waits for the device.

        Args:
            input_ids: [batch, tokens], or one row; tensors on any device, numpy arrays or lists, as are all below.
            train_mask: the training tokens; default all.
            loss_mask: of the training tokens, those that are to be predicted; default all.
            segments: a token reads earlier tokens of its own segment and of segment 0; positions count on from there.
            attention_mask: 0 for padding, which nobody reads and which takes up no position.
            shape: of the model: its vocabulary and its positions.
            whole: allow that every token is a training token, as where only the update is wanted.

        Raises:
            TintError: shapes or types that don't fit, a token that the model doesn't have, too long a sequence, a row with
                nothing to learn or (unless `whole`) all of it, padding that is marked to learn from.
        """
        ids = as_ids(input_ids, shape.vocabulary)
        given, loss = as_mask(train_mask, ids, "train_mask"), as_mask(loss_mask, ids, "loss_mask")
        real, parts = as_mask(attention_mask, ids, "attention_mask"), as_segments(segments, ids)
        if given is not None and real is not None and bool((given & ~real).any()):
            row = int((given & ~real).any(1).long().argmax())
            raise TintError(f"row {row} of train_mask marks padding: mark tokens that attention_mask has as 1")
        train = given if given is not None else torch.ones_like(ids, dtype=torch.bool) if real is None else real
        positions, visible = positions_and_visible(ids, parts, real)
        check_length(positions, shape.positions)
        targets = train[:, :-1] & train[:, 1:]
        if parts is not None:
            targets &= (parts[:, :-1] == parts[:, 1:]) | (parts[:, :-1] == 0)
        if loss is not None:
            targets &= loss[:, 1:]
        _check_rows(targets, train if real is None else train | ~real, whole)
        last = int(train.any(0).nonzero().max()) + 1
        return cls(
            ids.to(device),
            positions.to(device),
            None if visible is None else visible.to(device),
            _train_visible(train[:, :last], None if visible is None else visible[:, :last, :last], device),
            last,
            targets.to(device),
            _pair_numbers(targets, last).to(device),
        )


def _check_rows(targets: Tensor, full: Tensor, whole: bool) -> None:
    """Raise TintError for a row that has nothing to learn, or nothing left to test."""
    empty, all_of_it = ~targets.any(1), full.all(1)
    if bool(empty.any()):
        raise TintError(
            f"row {int(empty.long().argmax())} has no pair of neighbouring training tokens to learn from: mark at least two in train_mask"
        )
    if bool(all_of_it.any()) and not whole:
        raise TintError(
            f"row {int(all_of_it.long().argmax())} has training tokens only, so nothing is left to test: leave some out of train_mask"
        )


def _train_visible(train: Tensor, visible: Tensor | None, device: torch.device) -> Tensor | None:
    if not bool(train.all()):
        last = train.shape[1]
        causal = torch.ones(last, last, dtype=torch.bool).tril()
        visible = (causal if visible is None else visible) & train[:, None, :]
        # A row of the softmax without entries would be NaN: a token that isn't a training token reads itself, and no other reads it.
        visible = visible | torch.eye(last, dtype=torch.bool)
    return None if visible is None else visible.to(device)


def _pair_numbers(targets: Tensor, train_tokens: int) -> Int[Tensor, " pairs"]:
    rows, places = targets[:, : train_tokens - 1].nonzero(as_tuple=True)
    return rows * train_tokens + places


def positions_and_visible(
    input_ids: Int[Tensor, "batch tokens"],
    segments: Int[Tensor, "batch tokens"] | None,
    attention_mask: Bool[Tensor, "batch tokens"] | None = None,
) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens tokens"] | None]:
    """Positions, and the attention mask [batch, reader, read]; None for the causal one."""
    tokens = input_ids.shape[1]
    if attention_mask is not None and not bool((~attention_mask[:, :-1] & attention_mask[:, 1:]).any()):
        attention_mask = None  # padding comes last, where the causal mask keeps it from being read
    if segments is None and attention_mask is None:
        return torch.arange(tokens, device=input_ids.device).expand(input_ids.shape), None
    visible = (
        torch.ones(tokens, tokens, dtype=torch.bool, device=input_ids.device).tril().expand(len(input_ids), -1, -1)
    )
    if segments is not None:
        visible = visible & ((segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :])
    if attention_mask is not None:
        visible = visible & attention_mask[:, None, :]
    positions = (visible.sum(2) - 1).clamp_min(0)
    # Padding reads itself too, as a row of the softmax without entries would be NaN; no other token reads it.
    return positions, visible | torch.eye(tokens, dtype=torch.bool, device=input_ids.device)


def check_length(positions: Int[Tensor, "batch tokens"], limit: int) -> None:
    """Raise TintError for a sequence longer than the model has positions."""
    longest = int(positions.max()) + 1
    if longest > limit:
        raise TintError(f"a sequence of {longest} tokens is longer than the model's {limit} positions: cut it")
