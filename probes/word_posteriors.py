"""The exact posterior of a masked word, read off its mask's state by a linear softmax."""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from probes.linear import Scale
from probes.masked_words import MaskedWords, divergence

_EPOCHS, _BATCH, _RATE = 15, 64, 1e-2


def fit_words(
    features: np.ndarray,
    words: MaskedWords,
    train: Int64[np.ndarray, " train"],
    test: Int64[np.ndarray, " test"],
    seed: int,
) -> Float64[np.ndarray, " test"]:
    """A linear probe with a softmax, trained on exact posteriors: KL(exact || predicted) at each test row, in nats.

    It starts from the mean posterior, which is what a probe without features predicts.
    """
    scale, random = Scale.fit(features, train), np.random.default_rng(seed)
    wanted = torch.from_numpy(words.posterior(train))
    states = torch.from_numpy(scale(features[train]))
    layer = nn.Linear(states.shape[1], wanted.shape[1])
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(wanted.mean(0).clamp_min(1e-8).log())
    optimizer = torch.optim.Adam(layer.parameters(), lr=_RATE, weight_decay=1e-5, fused=True)
    size = min(_BATCH, len(train))
    steps = _EPOCHS * (len(train) // size)
    for step in range(steps):
        if step % (len(train) // size) == 0:
            order = torch.from_numpy(random.permutation(len(train)))
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / steps)
        first = size * (step % (len(train) // size))
        some = order[first : first + size]
        loss = -(wanted[some] * torch.log_softmax(layer(states[some]), -1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logs = torch.log_softmax(layer(torch.from_numpy(scale(features[test]))), -1).double().numpy()
    return divergence(words.posterior(test), logs)
