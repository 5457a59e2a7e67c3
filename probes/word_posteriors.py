"""The exact posterior of a masked word, read off its mask's state by a linear softmax."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from probes.intervals import Measure, ratio
from probes.linear import Scale
from probes.masked_words import MaskedWords, divergence
from probes.probe import TRAINED, Features, Metric, Probe
from probes.probed_model import ProbedModel
from probes.scorer import Scorer

_EPOCHS, _BATCH, _RATE = 15, 64, 1e-2


def fit_words(
    features: np.ndarray,
    words: MaskedWords,
    train: Int64[np.ndarray, " train"],
    test: Int64[np.ndarray, " test"],
    seed: int,
) -> Float64[np.ndarray, " test"]:
    """Train a linear softmax on exact posteriors; return KL(exact || predicted) at each test row, in nats.

    Training starts from the mean posterior, which a probe without features would predict.
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


@dataclass(frozen=True)
class WordPosteriorProbe(Probe):
    """A linear softmax on the states of masks."""

    def measure(self, scorer: Scorer, seen: Features) -> list[Measure]:
        """Measure the divergence of the predicted posterior from the exact one."""
        masked = seen.masked
        assert masked is not None and seen.masks is not None
        stats, test = [], masked.rows(scorer.dataset.test)
        for seed in range(scorer.settings.seeds):
            kl = fit_words(seen.masks, masked, masked.rows(scorer.train_for(seed)), test, seed)
            stats.append(scorer.per_sentence(masked.sentence[test], kl))
        return [scorer.measure(self.name, seen.source, seen.layer, "kl", np.stack(stats), ratio)]


def own_prediction(scorer: Scorer, masked: MaskedWords, model: ProbedModel) -> Measure:
    """Measure the divergence of what the model's own head predicts, without any probe."""
    test = masked.rows(scorer.dataset.test)
    stats = scorer.per_sentence(masked.sentence[test], masked.model_kl(model, test))
    return scorer.measure("none", "model", None, "kl", stats[None], ratio)


WORD_POSTERIORS = WordPosteriorProbe(
    name="words",
    label="masked words",
    style=0,
    metrics=(
        Metric(
            "kl",
            TRAINED,
            "KL masked",
            "Kullback-Leibler divergence, in nats, of the exact posterior of a masked word from the probe's prediction; 0 is best. Judged at the last layer.",
            lower_is_better=True,
            without_probe=False,
        ),
    ),
    sees="masks",
    judged_at_last_layer=True,
)
