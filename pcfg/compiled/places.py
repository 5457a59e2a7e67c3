"""Places: the fixed zeros and ones that say where each token's word stands."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Places:
    """Where each token's word stands: the fixed zeros and ones by which layers multiply.

    Attributes:
        here: 1 at the position of the token's word; all 0 for tokens that are no words.
        next: 1 at the position after it.
        upto: 1 at its position and all before.
        last: 1 for the last word of its sentence.
        before: [reader, read]: 1 where the token that is read stands before the one that reads.
        previous: [reader, read]: 1 where it stands right before it.
    """

    here: Float[Tensor, "B T L"]
    next: Float[Tensor, "B T L"]
    upto: Float[Tensor, "B T L"]
    last: Float[Tensor, "B T"]
    before: Float[Tensor, "B T T"]
    previous: Float[Tensor, "B T T"]

    @classmethod
    def of(cls, is_word: Tensor, length: int, dtype: torch.dtype) -> "Places":
        """Of tokens that are words (bool [B, T]), counted from 0 in each sentence."""
        positions = is_word.long().cumsum(1) - 1
        ones = is_word.to(dtype)
        here = nn.functional.one_hot(positions.clamp(min=0), length + 1).to(dtype) * ones[..., None]
        last = (positions == positions[:, -1:]) & is_word
        before = (positions[:, :, None] > positions[:, None, :]).to(dtype) * ones[:, :, None] * ones[:, None, :]
        upto = here.flip(-1).cumsum(-1).flip(-1)
        here, following = here[..., :length], here.roll(1, -1)[..., :length]
        return cls(here, following, upto[..., :length], last.to(dtype), before, here @ following.mT)
