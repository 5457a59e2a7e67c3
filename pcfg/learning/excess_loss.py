"""How far a masked language model is from the best prediction there can be: the exact posterior of the masked words.

Where the words that stay say nothing of which of them might be wrong (every masked word is <mask>, none is swapped), no
model's expected loss is below the entropy of that posterior (Zhao et al. 2023, section 3.3). What a model loses beyond
it at a mask is, on average over the words that may stand there, the divergence of its prediction from the posterior; we
average that, as it has far less noise than the difference of two losses at the words that happened to be drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from pcfg.devices import Device
from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import Chart
from pcfg.inference.engines import chart_numbers, pick_engine
from pcfg.sentences import batches, others
from surgery.progress import Progress, silent
from surgery.reporting.plural import number_of

_BATCH = 64
_MOST_MASKS = 4  # this many or more are one group
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class MaskedSet:
    """Sentences with masked words, and the exact posterior of each masked word by the grammar.

    Attributes:
        sentences: as they were; `masks` gives each one's masked positions, from 0, in order.
        tags: posterior of each preterminal at each mask, given the words that aren't masked; masks of all sentences in turn.
        optimum: cross-entropy of the exact posterior at each mask, for the word that is there, in nats.
        entropies: entropy of the exact posterior at each mask: what `optimum` is on average.
    """

    grammar: Grammar
    sentences: tuple[tuple[str, ...], ...]
    masks: tuple[tuple[int, ...], ...]
    tags: Float64[np.ndarray, "M T"]
    optimum: Float64[np.ndarray, " M"]
    entropies: Float64[np.ndarray, " M"]

    def __repr__(self) -> str:
        return f"<MaskedSet: {number_of(len(self.optimum), 'masked word')} in {number_of(len(self.sentences), 'sentence')}>"

    @classmethod
    def draw(
        cls,
        grammar: Grammar,
        sentences: Sequence[Sequence[str]],
        *,
        seed: int,
        share: float = 0.15,
        count: int | None = None,
        device: Device | None = None,
        progress: Progress = silent,
    ) -> "MaskedSet":
        """Mask words at random, as the collator does, and work out the exact posteriors.

        Args:
            share: of the words that are masked; a sentence where chance picks none gets one mask.
            count: this many masks in each sentence instead, or all its words if it has fewer.
        """
        if not 0 < share < 1:
            raise OptionError(f"the share of masked words is {share}: it must lie between 0 and 1")
        grammar, random = generative(grammar), np.random.default_rng(seed)
        kept = tuple(tuple(sentence) for sentence in sentences if len(sentence))
        if not kept:
            raise OptionError("there are no sentences to mask words of: give at least one")
        masks = tuple(_masks(len(sentence), share, count, random) for sentence in kept)
        tags = _tags(grammar, kept, masks, device, progress)
        table, optimum, entropies = grammar.lexical_table, [], []
        words = [grammar.number_of(s[i], i) for s, places in zip(kept, masks, strict=True) for i in places]
        for rows in np.array_split(np.arange(len(words)), max(1, len(words) // 1024)):
            posterior = tags[rows] @ table
            with np.errstate(divide="ignore"):
                optimum.append(-np.log(posterior[np.arange(len(rows)), np.array(words)[rows]]))
            entropies.append(_entropy(posterior))
        return cls(grammar, kept, masks, tags, np.concatenate(optimum), np.concatenate(entropies))

    def measure(self, module: Any, tokenizer: Any) -> "MaskedLoss":
        """The losses of a masked language model at the masks, beside those of the exact posterior."""
        ids = word_ids(self.grammar, tokenizer)
        table, counts = self.grammar.lexical_table, [len(places) for places in self.masks]
        first, losses, excess = np.append(0, np.cumsum(counts)), np.zeros(sum(counts)), np.zeros(sum(counts))
        for numbers in batches(self.sentences, lambda n: n * n):
            batch = [int(i) for i in numbers]
            logs = masked_log_probs(
                module, tokenizer, [self.sentences[i] for i in batch], [self.masks[i] for i in batch], self.grammar, ids
            )
            rows = np.concatenate([np.arange(first[i], first[i + 1]) for i in batch])
            posterior = self.tags[rows] @ table
            words = [self.grammar.number_of(self.sentences[i][p], p) for i in batch for p in self.masks[i]]
            losses[rows] = -logs[np.arange(len(rows)), words]
            excess[rows] = -(posterior * logs).sum(1) - _entropy(posterior)
        sentence = np.repeat(np.arange(len(counts)), counts)
        positions = np.array([p for places in self.masks for p in places])
        return MaskedLoss(sentence, positions, np.repeat(counts, counts), losses, self.optimum, excess)


@dataclass(frozen=True, eq=False)
class MaskedLoss:
    """A model's loss at each of M masks, in nats, and the least loss there can be.

    Attributes:
        sentence: number of the mask's sentence; `position` of the word in it, from 0; `masks` in that sentence.
        loss: the model's cross-entropy for the word that is there; `optimum`: the exact posterior's.
        excess: divergence KL(posterior || model) at each mask: what the model loses beyond the optimum, on average.
    """

    sentence: Int64[np.ndarray, " M"]
    position: Int64[np.ndarray, " M"]
    masks: Int64[np.ndarray, " M"]
    loss: Float64[np.ndarray, " M"]
    optimum: Float64[np.ndarray, " M"]
    excess: Float64[np.ndarray, " M"]

    def __repr__(self) -> str:
        sentences = len(np.unique(self.sentence))
        return f"<MaskedLoss: {self.excess.mean():.4g} nats of excess over {number_of(len(self.loss), 'masked word')} in {number_of(sentences, 'sentence')}>"

    def to_json(self, seed: int = 0) -> dict[str, Any]:
        """Means, 95% intervals over sentences, and the excess by position (from 1) and by number of masks."""
        return {
            "masks": len(self.loss),
            "sentences": len(np.unique(self.sentence)),
            "loss": float(self.loss.mean()),
            "optimum": float(self.optimum.mean()),
            "excess": self._mean(np.ones(len(self.loss), bool), seed),
            "by_position": [
                {"position": int(place) + 1, **self._mean(self.position == place, seed)}
                for place in np.unique(self.position)
            ],
            "by_masks": [
                {"masks": number, **self._mean(np.minimum(self.masks, _MOST_MASKS) == number, seed)}
                for number in range(1, _MOST_MASKS + 1)
                if (np.minimum(self.masks, _MOST_MASKS) == number).any()
            ],
        }

    def _mean(self, chosen: np.ndarray, seed: int) -> dict[str, Any]:
        """Mean excess of some masks, with a bootstrap interval over their sentences."""
        _, sentence = np.unique(self.sentence[chosen], return_inverse=True)
        sums, counts = np.bincount(sentence, self.excess[chosen]), np.bincount(sentence)
        random, means = np.random.default_rng(seed), []
        for _ in range(_RESAMPLES // 100):
            drawn = random.integers(len(sums), size=(100, len(sums)))
            means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
        low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
        value = float(sums.sum() / counts.sum())
        return {"value": value, "low": float(low), "high": float(high), "count": int(chosen.sum())}


def generative(grammar: Grammar) -> Grammar:
    """The grammar without its smoothed lexicon, which scores words but can't draw any: whose sentences `sample` draws."""
    return grammar if grammar.lexicon is None else grammar.replaced(lexicon=None)


def word_ids(grammar: Grammar, tokenizer: Any) -> Int64[np.ndarray, " V"]:
    """The token of each of the grammar's words.

    Raises GrammarError for words that aren't one token of their own: the model wasn't trained on this grammar's words.
    """
    if tokenizer.mask_token_id is None:
        raise GrammarError("the tokenizer has no mask token: give a masked language model")
    tokens = tokenizer(list(grammar.words), add_special_tokens=False)["input_ids"]
    seen, bad = set[int](), []
    for word, ids in zip(grammar.words, tokens, strict=True):
        if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and word != tokenizer.unk_token) or ids[0] in seen:
            bad.append(word)
        else:
            seen.add(ids[0])
    if bad:
        more = others(bad[1:], "other isn't either", "others aren't either")
        raise GrammarError(
            f"the word {bad[0]!r} of the grammar isn't a token of the model's own{more}: give the grammar that the model was trained on"
        )
    return np.array([ids[0] for ids in tokens], np.int64)


def masked_log_probs(
    module: Any,
    tokenizer: Any,
    sentences: Sequence[Sequence[str]],
    masks: Sequence[Sequence[int]],
    grammar: Grammar,
    ids: Int64[np.ndarray, " V"],
) -> Float64[np.ndarray, "M V"]:
    """The model's log probability of each of the grammar's words at each mask, sentences in turn."""
    rows = [ids[[grammar.number_of(w, i) for i, w in enumerate(sentence)]] for sentence in sentences]
    width = max(map(len, rows)) + 2
    begin, end = tokenizer("")["input_ids"]  # what it puts around a sentence
    inputs = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    where = torch.zeros_like(inputs, dtype=torch.bool)
    for number, (row, masked) in enumerate(zip(rows, masks, strict=True)):
        row = row.copy()
        row[list(masked)] = tokenizer.mask_token_id
        inputs[number, : len(row) + 2] = torch.tensor([begin, *row, end])
        where[number, torch.tensor(masked, dtype=torch.long) + 1] = True
    inputs = inputs.to(module.device)
    with torch.no_grad():
        logits = module(input_ids=inputs, attention_mask=(inputs != tokenizer.pad_token_id).long()).logits
        logs = torch.log_softmax(logits[where.to(logits.device)].double(), -1)
    return logs.cpu().numpy()[:, ids]


def _masks(length: int, share: float, count: int | None, random: np.random.Generator) -> tuple[int, ...]:
    if count is not None:
        return tuple(sorted(random.choice(length, min(count, length), replace=False).tolist()))
    chosen = np.flatnonzero(random.random(length) < share)
    return tuple(chosen.tolist()) if len(chosen) else (int(random.integers(length)),)


def _tags(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    masks: Sequence[Sequence[int]],
    device: Device | None,
    progress: Progress,
) -> Float64[np.ndarray, "M T"]:
    """Posteriors of the tags at the masks, as `masked_posteriors` gives them, many sentences at once."""
    tags: list[np.ndarray] = [np.zeros(0)] * len(sentences)
    for done, chart, numbers in masked_charts(grammar, sentences, masks, device):
        posteriors = chart.tag_posteriors.cpu().double().numpy()
        for row, i in enumerate(numbers):
            tags[i] = posteriors[row, list(masks[i])]
        progress(done, len(sentences), "exact posteriors of masked words")
    return np.concatenate(tags)


def masked_charts(
    grammar: Grammar, sentences: Sequence[Sequence[str]], masks: Sequence[Sequence[int]], device: Device | None
) -> Iterator[tuple[int, Chart, list[int]]]:
    """Charts of sentences in batches, every tag possible at the masks: how many are done, the chart, and whose it is."""
    engine, done = pick_engine(grammar), 0
    for numbers in batches(sentences, lambda n: chart_numbers(grammar, n)):
        batch = [int(i) for i in numbers]
        scores = []
        for i in batch:
            scores.append(grammar.emissions(sentences[i]))
            scores[-1][list(masks[i])] = 1.0  # a tag has some word with certainty
        words = tuple(tuple(sentences[i]) for i in batch)
        done += len(batch)
        yield done, Chart(grammar, words, tuple(scores), engine, device, "float64", 1), batch


def _entropy(rows: Float64[np.ndarray, "M V"]) -> Float64[np.ndarray, " M"]:
    logs = np.log(rows, out=np.zeros_like(rows), where=rows > 0)
    return -(rows * logs).sum(1)
