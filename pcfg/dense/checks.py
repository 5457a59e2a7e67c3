"""Checks of what the dense engine is given: sizes here, numbers in a few operations that a card does beside the chart."""

import torch
from jaxtyping import Bool
from torch import Tensor

from pcfg.dense.chart import Scores
from pcfg.devices import one_device
from pcfg.errors import GrammarError


def fitted(start: Tensor, binary: Tensor, emissions: Tensor, lengths: Tensor) -> Scores:
    """The scores if their sizes fit together, else GrammarError; numbers aren't checked, and padding isn't masked."""
    lengths = lengths.to(one_device(log_start=start, log_binary=binary, log_emissions=emissions))
    batch, n, preterminals = emissions.shape
    nonterminals, symbols = binary.shape[-3], binary.shape[-1]
    if symbols != nonterminals + preterminals or binary.shape[-2] != symbols or start.shape[-1] != symbols:
        raise GrammarError(
            f"Scores don't fit together: binary {tuple(binary.shape)} and start {tuple(start.shape)} must speak of the same symbols, {nonterminals} nonterminals and the {preterminals} preterminals of emissions {tuple(emissions.shape)}."
        )
    if not (batch and nonterminals and preterminals and n):
        raise GrammarError(
            f"Emissions are {tuple(emissions.shape)} and binary {tuple(binary.shape)}: give at least one sentence, word, nonterminal and preterminal."
        )
    own = {x.shape[0] for x, dims in ((start, 1), (binary, 3), (lengths, 0)) if x.dim() > dims}
    if own != {batch}:
        raise GrammarError(
            f"Emissions are of {batch} sentences, but lengths, start or binary of {sorted(own)}: give one each."
        )
    if lengths.is_floating_point():
        raise _misfit(n, lengths)
    return Scores(start, binary, emissions, lengths.long())


def masked(scores: Scores) -> Scores:
    """The same with -inf for words beyond a sentence's length."""
    n = scores.emissions.shape[1]
    padding = torch.arange(n, device=scores.lengths.device) >= scores.lengths[:, None]
    emissions = scores.emissions.masked_fill(padding[:, :, None], -torch.inf)
    return Scores(scores.start, scores.binary, emissions, scores.lengths)


def within_chart(scores: Scores) -> Scores:
    """The same with lengths clamped to those that a chart has; `alarms` reports the ones that had to be."""
    lengths = scores.lengths.clamp(1, scores.emissions.shape[1])
    return Scores(scores.start, scores.binary, scores.emissions, lengths)


def alarms(scores: Scores) -> Bool[Tensor, "4"]:
    """Flags: a length out of range; NaN or +inf in the scores of the start, of rules, of words (whose padding is masked)."""
    n, lengths = scores.emissions.shape[1], scores.lengths
    numbers = [~(x.detach().amax() < torch.inf) for x in (scores.start, scores.binary, scores.emissions)]  # NaN too
    return torch.stack([((lengths <= 0) | (lengths > n)).any(), *numbers])


def complain(scores: Scores, raised: list[bool]) -> None:
    """Raise GrammarError for the first of `alarms` that is raised."""
    if raised[0]:
        raise _misfit(scores.emissions.shape[1], scores.lengths)
    for name, wrong in zip(("log_start", "log_binary", "log_emissions"), raised[1:], strict=True):
        if wrong:
            raise GrammarError(f"{name} holds NaN or +inf: give log-potentials, -inf for what can't be.")


def _misfit(n: int, lengths: Tensor) -> GrammarError:
    return GrammarError(
        f"Lengths must be 1 to {n}, the words of emissions, but are {lengths.tolist()}: leave empty sentences out."
    )
