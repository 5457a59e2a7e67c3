"""Which tokens read which, which are pairs to learn from, and where each stands: what masks and segments mean."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from surgery.errors import TintError


@dataclass(frozen=True, eq=False)
class Plan:
    """A batch put in order.

    Attributes:
        positions: [batch, tokens]. `visible`: who reads whom after the update, None for all that went before.
        train_visible: the same while training, where training tokens read training tokens alone; for the first `train_tokens`.
        targets: [batch, tokens - 1]: whether the token that follows is one to learn.
    """

    positions: Int[Tensor, "batch tokens"]
    visible: Bool[Tensor, "batch tokens tokens"] | None
    train_visible: Bool[Tensor, "batch train train"] | None
    train_tokens: int
    targets: Bool[Tensor, "batch pairs"]

    @classmethod
    def of(
        cls,
        input_ids: Int[Tensor, "batch tokens"],
        train_mask: Bool[Tensor, "batch tokens"],
        *,
        loss_mask: Bool[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
        limit: int,
        whole: bool = False,
    ) -> "Plan":
        """Raises TintError for shapes that don't fit, too long a sequence, and a row with nothing to learn or all of it.

        Args:
            loss_mask: of the training tokens, those that are to be predicted; default all.
            segments: a token reads earlier tokens of its own segment and of segment 0; positions count on from there.
            limit: the longest sequence that the model takes.
            whole: allow that every token is a training token, as where only the update is wanted.
        """
        for name, mask in (("train_mask", train_mask), ("loss_mask", loss_mask), ("segments", segments)):
            if mask is not None and mask.shape != input_ids.shape:
                raise TintError(
                    f"{name} has shape {tuple(mask.shape)}, but input_ids {tuple(input_ids.shape)}: give one value a token"
                )
        positions, visible = layout(input_ids, segments)
        check_length(positions, limit)
        targets = train_mask[:, :-1] & train_mask[:, 1:]
        if segments is not None:
            targets &= (segments[:, :-1] == segments[:, 1:]) | (segments[:, :-1] == 0)
        if loss_mask is not None:
            targets &= loss_mask[:, 1:]
        empty, full = ~targets.any(1), train_mask.all(1)
        if bool(empty.any()):
            raise TintError(
                f"row {int(empty.long().argmax())} has no pair of neighbouring training tokens to learn from: mark at least two in train_mask"
            )
        if bool(full.any()) and not whole:
            raise TintError(
                f"row {int(full.long().argmax())} has training tokens only, so nothing is left to test: leave some out of train_mask"
            )
        last = int(train_mask.any(0).nonzero().max()) + 1
        train = train_mask[:, :last]
        train_visible = None if visible is None else visible[:, :last, :last]
        if not bool(train.all()):
            causal = torch.ones(last, last, dtype=torch.bool, device=input_ids.device).tril()
            train_visible = (causal if train_visible is None else train_visible) & train[:, None, :]
            # A token that reads nothing would be NaN; what it is instead reaches nobody.
            train_visible = train_visible | torch.eye(last, dtype=torch.bool, device=input_ids.device)
        return cls(positions, visible, train_visible, last, targets)


def layout(
    input_ids: Int[Tensor, "batch tokens"], segments: Int[Tensor, "batch tokens"] | None
) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens tokens"] | None]:
    """Positions, and who reads whom; None for the plain rule."""
    tokens = input_ids.shape[1]
    if segments is None:
        return torch.arange(tokens, device=input_ids.device).expand(input_ids.shape), None
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=input_ids.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    visible = causal & (same | (segments == 0)[:, None, :])
    return visible.sum(2) - 1, visible


def check_tokens(input_ids: Int[Tensor, "batch tokens"], vocabulary: int) -> None:
    """Raise TintError for a token that the model doesn't have."""
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocabulary:
        raise TintError(
            f"input_ids holds token {low if low < 0 else high}, but the model has 0 to {vocabulary - 1}: was another tokenizer used?"
        )


def check_length(positions: Int[Tensor, "batch tokens"], limit: int) -> None:
    """Raise TintError for a sequence longer than the model has positions."""
    longest = int(positions.max()) + 1
    if longest > limit:
        raise TintError(f"a sequence of {longest} tokens is longer than the model's {limit} positions: cut it")
