"""How far models are from the exact posterior at every masked word: divergence and total variation."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from pcfg.devices import Device
from pcfg.grammars.grammar import Grammar
from pcfg.inference.masked_words import tag_posteriors
from pcfg.learning.excess_loss import generative, masked_log_probs, word_ids
from pcfg.sampling.samples import Samples
from probes.errors import ProbeModelError
from surgery.files import replace_json
from surgery.progress import Progress, silent
from surgery.resuming import read_state
from surgery.sync import ranks

_SENTENCES = 100  # at once: their exact posteriors, then every model
_ROWS, _NUMBERS = 256, 4_000_000  # masks at once, and the numbers that they may hold over the words


@runtime_checkable
class MaskedLanguageModel(Protocol):
    """What is measured: a model of masked words with its tokenizer, as `Pretrained` and `ProbedModel` are."""

    @property
    def module(self) -> Any:
        """Takes `input_ids` and `attention_mask`, gives `logits`."""

    @property
    def tokenizer(self) -> Any:
        """Has a token for each of the grammar's words."""


@dataclass(frozen=True, eq=False)
class Divergences:
    """Models against the exact posterior at M masks, each the only one of its copy of a sentence.

    Attributes:
        sentence: number of the mask's sentence; `position` of the word in it, from 0.
        entropy: of the exact posterior, in nats.
        kl: KL(exact || model) in nats, model by model: what a model loses beyond the optimum.
        variation: total variation between exact and model, from 0 to 1: half the sum of absolute differences.
    """

    sentence: Int64[np.ndarray, " M"]
    position: Int64[np.ndarray, " M"]
    entropy: Float64[np.ndarray, " M"]
    kl: Float64[np.ndarray, "models M"]
    variation: Float64[np.ndarray, "models M"]


def mask_divergences(
    grammar: Grammar,
    drawn: Samples,
    models: Sequence[MaskedLanguageModel],
    *,
    masks: int | None = None,
    seed: int = 0,
    device: Device | None = None,
    state: Path | None = None,
    progress: Progress = silent,
) -> Divergences:
    """Mask words one at a time, and hold models to the exact posterior of each.

    Args:
        masks: words of each sentence to mask, drawn at random; None for all.
        state: a folder for what is done, where a later call with the same arguments goes on, and which ranks of
            `surgery.sync.ranks` share.
    """
    grammar = generative(grammar)
    places = masked_places(drawn.lengths, masks, seed)
    order = np.argsort(-drawn.lengths, kind="stable")
    groups = np.array_split(order, -(-len(order) // _SENTENCES))
    ids = [word_ids(grammar, model.tokenizer) for model in models]

    def measured(number: int) -> Float64[np.ndarray, "numbers M"]:
        progress(number * _SENTENCES, len(order), "masked words: models against the exact posterior")
        file = None if state is None else state / f"masks-{number}.json"
        if file is not None and file.exists():
            return np.array(read_state(file, list[list[float]]))
        made = _measured(grammar, drawn, groups[number], places, models, ids, device)
        if file is not None:
            replace_json(file, made.tolist())
        return made

    found = ranks.shared_out(len(groups), measured)
    sentences = np.concatenate([np.repeat(i, len(places[i])) for i in order])
    positions = np.concatenate([places[i] for i in order])
    numbers, back = np.concatenate(found, 1), np.lexsort((positions, sentences))
    count = len(models)
    kl, variation = numbers[1 : 1 + count, back], numbers[1 + count :, back]
    return Divergences(sentences[back], positions[back], numbers[0, back], kl, variation)


def masked_places(lengths: Int64[np.ndarray, " count"], masks: int | None, seed: int) -> list[Int64[np.ndarray, " _"]]:
    """The words to mask in each sentence, in order."""
    if masks is None:
        return [np.arange(length) for length in lengths]
    random = np.random.default_rng(seed)
    return [np.sort(random.choice(length, min(masks, length), replace=False)) for length in lengths.tolist()]


def _measured(
    grammar: Grammar,
    drawn: Samples,
    group: Int64[np.ndarray, " some"],
    places: Sequence[np.ndarray],
    models: Sequence[MaskedLanguageModel],
    ids: Sequence[np.ndarray],
    device: Device | None,
) -> Float64[np.ndarray, "numbers M"]:
    """Entropy, divergence of each model, total variation of each model: a column a mask."""
    sentences = [drawn[i] for i in group.tolist()]
    tags = tag_posteriors(grammar, sentences, device=device)
    at = [places[i] for i in group.tolist()]
    masked = np.concatenate([rows[chosen] for rows, chosen in zip(tags, at, strict=True)])
    whose, where = np.repeat(np.arange(len(group)), list(map(len, at))), np.concatenate(at)
    found, table = np.zeros((1 + 2 * len(models), len(where))), grammar.lexical_table
    size = max(1, min(_ROWS, _NUMBERS // len(grammar.words)))
    for rows in np.array_split(np.arange(len(where)), -(-len(where) // size)):
        exact = masked[rows] @ table
        exact /= exact.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            found[0, rows] = -np.where(exact > 0, exact * np.log(exact), 0.0).sum(1)
        texts, masks = [sentences[whose[row]] for row in rows], [[int(where[row])] for row in rows]
        for number, model in enumerate(models):
            logs = masked_log_probs(model.module, model.tokenizer, texts, masks, grammar, ids[number])
            kl, variation = divergence(exact, logs)
            if not np.isfinite(kl).all():
                raise ProbeModelError(
                    f"{getattr(model, 'name', f'model {number + 1}')} gives some masked words no finite log probability: its weights hold NaN, or it rules words out"
                )
            found[1 + number, rows], found[1 + len(models) + number, rows] = kl, variation
    return found


def divergence(
    exact: Float64[np.ndarray, "rows V"], logs: Float64[np.ndarray, "rows V"]
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """KL(exact || predicted) in nats and total variation, from probabilities and log probabilities.

    What a prediction has beside these words, on special tokens, counts as wrong. Terms are p log(p / q) - p + q, none of
    which is negative, so nothing cancels where the two are close.
    """
    predicted = np.exp(logs)
    beside = np.maximum(0.0, 1 - predicted.sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(exact > 0, exact * (np.log(exact) - logs), 0.0) - exact + predicted
    return np.maximum(terms, 0).sum(1) + beside, (np.abs(exact - predicted).sum(1) + beside) / 2


def weights_digest(module: Any) -> str:
    """SHA-256 of a model's weights, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
