"""Calibration: the report's own instruments held to a compiled grammar, of which each number in each layer is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from pcfg.compiled.model import InsideOutsideTransformer
from pcfg.grammars.grammar import Grammar
from probes.activations import Activations
from probes.dataset import Dataset
from probes.linear import Scale
from probes.probed_model import ProbedModel, pad
from surgery.progress import Progress, silent

FOUND = 0.999  # R squared from which a linear probe has found what lies there
_MOST_WORDS, _FEWEST_TRAIN, _FEWEST_TEST = 6, 50, 20
_PENALTY = 1e-6  # against columns that are copies of others only: more would hide what is there in few sentences
_SPANNED = 1e-4  # of a state's length: what of it may lie outside of the states that a probe was trained on
_SENTENCES, _HEADS = 8, 8  # of the ablations


@dataclass(frozen=True)
class WidthCheck:
    """Linear probes of inside scores over the first words of sentences, from the state of the last of those words.

    Attributes:
        words: in the span; `complete` is the layer after which its scores are right.
        r2: of each probed layer, R squared on test sentences; the lowest over nonterminals. None where the training sentences'
            states determine too few of the test sentences' for a probe to be asked.
    """

    words: int
    complete: int
    r2: tuple[float | None, ...]


@dataclass(frozen=True)
class HeadCheck:
    """A right child's head taken out of every inside layer.

    Attributes:
        symbol: the right child.
        needing: labelled spans of test sentences that have a score, and no tree without such a right child.
        zeroed: of those, how many have the score 0 now; `others`: how many of the rest.
        random_zeroed: of the needing spans, how many another head, drawn at random, sets to 0.
    """

    symbol: str
    needing: int
    zeroed: int
    others: int
    random_zeroed: int


@dataclass(frozen=True)
class Calibration:
    """What is found where it is known what is there.

    Attributes:
        layers: that were probed; `widths` and `heads` are what was found.
    """

    layers: tuple[int, ...]
    widths: tuple[WidthCheck, ...]
    heads: tuple[HeadCheck, ...]

    def after(self) -> float | None:
        """The lowest R squared at layers that have completed the width; None where no probe could be asked."""
        return min(self._asked(complete=True), default=None)

    def before(self) -> float | None:
        """The highest R squared at layers that haven't; None where there are none, or no probe could be asked."""
        return max(self._asked(complete=False), default=None)

    def usual_before(self) -> float | None:
        """The median R squared at layers that haven't."""
        asked = self._asked(complete=False)
        return float(np.median(asked)) if asked else None

    def holds(self) -> bool:
        """Whether linear probes find what is there, as far as they could be asked, and heads zero the spans that need them
        and no others.

        What comes before isn't asked: where sentences leave little open, earlier layers determine what later ones hold.
        """
        found = self.after()
        heads = all(head.zeroed == head.needing and not head.others for head in self.heads)
        return heads and (found is None or found >= FOUND)

    def _asked(self, complete: bool) -> list[float]:
        """R squared at layers that have completed a width, or haven't."""
        return [
            r2
            for check in self.widths
            for layer, r2 in zip(self.layers, check.r2, strict=True)
            if r2 is not None and (layer >= check.complete) == complete
        ]


def calibrate(
    model: ProbedModel, dataset: Dataset, states: Activations, layers: Sequence[int], *, progress: Progress = silent
) -> Calibration | None:
    """Check linear probes and head ablations on a compiled model; None for any other, or of another grammar than the data's."""
    module, grammar = model.module, dataset.grammar
    if not isinstance(module, InsideOutsideTransformer) or grammar is None or not _same(model, grammar):
        return None
    widths = []
    for number, words in enumerate(range(2, min(_MOST_WORDS, module.slots.length) + 1)):
        progress(number, _MOST_WORDS, "calibration")
        check = _width(model, grammar, dataset, states, layers, words)
        if check is not None:
            widths.append(check)
    return Calibration(tuple(layers), tuple(widths), _heads(model, grammar, dataset))


def _same(model: ProbedModel, grammar: Grammar) -> bool:
    """Whether the model's rules and words' probabilities are the grammar's."""
    module = model.module
    if (tuple(grammar.nonterminals), tuple(grammar.preterminals)) != (
        module.slots.nonterminals,
        module.slots.preterminals,
    ):
        return False
    rules = torch.zeros(module.rules.shape, dtype=torch.float64)
    columns = (torch.from_numpy(np.asarray(c, np.int64)) for c in (grammar.parents, grammar.left, grammar.right))
    rules[tuple(columns)] = torch.from_numpy(grammar.rule_probs)
    weights, scales = (some.detach().cpu().double() for some in (module.words.weight, module.scales))
    ids = model.tokenizer.convert_tokens_to_ids(list(grammar.words))
    words = (weights * torch.exp(-scales)[:, None])[ids]
    return torch.allclose(module.rules.detach().cpu().double(), rules, atol=1e-6) and torch.allclose(
        words, torch.from_numpy(grammar.lexical_table.T), rtol=1e-4, atol=1e-6
    )


def _width(
    model: ProbedModel, grammar: Grammar, dataset: Dataset, states: Activations, layers: Sequence[int], words: int
) -> WidthCheck | None:
    """Of sentences with so many words or more; None where those are too few."""
    train, test = (some[dataset.lengths[some] >= words] for some in (dataset.train, dataset.test))
    if len(train) < _FEWEST_TRAIN or len(test) < _FEWEST_TEST:
        return None
    scores = inside_scores(grammar, _word_scores(model, dataset, np.concatenate([train, test]), words))
    wanted = scores[:, 0, words - 1, : len(grammar.nonterminals)]
    split = (wanted[: len(train)], wanted[len(train) :])
    varied = (split[0].std(0) > 0) & (split[1].std(0) > 0)
    if not varied.any():
        return None
    rows = [dataset.bounds[some] + words - 1 for some in (train, test)]
    r2 = tuple(_r2(states.layer(layer), rows, [some[:, varied] for some in split]) for layer in layers)
    return WidthCheck(words, words - 1, r2)


def _r2(features: np.ndarray, rows: list[np.ndarray], wanted: list[np.ndarray]) -> float | None:
    """R squared on the second rows by ridge regression on the first; the lowest over columns of what is wanted there.

    Of test states that lie in the span of the training states only, as any probe guesses elsewhere; None for too few.
    """
    scale = Scale.fit(features, rows[0])
    kept = np.isfinite(scale.spread)
    if not kept.any():
        return 0.0
    train, test = (scale(features[some])[:, kept].astype(np.float64) for some in rows)
    mean, spread = train.mean(0), wanted[0].std(0)
    train, test = train - mean, test - mean
    variances, axes = np.linalg.eigh(train.T @ train)
    shrunk = axes / (np.maximum(variances, 0) + _PENALTY)
    beyond = test - (test @ shrunk * np.maximum(variances, 0)) @ axes.T
    there = np.linalg.norm(beyond, axis=1) <= _SPANNED * np.linalg.norm(test, axis=1)
    varied = wanted[1][there].std(0) > 0 if there.any() else np.zeros(len(spread), bool)
    if there.sum() < _FEWEST_TEST or not varied.any():
        return None
    targets = [(some[:, varied] - wanted[0].mean(0)[varied]) / spread[varied] for some in (wanted[0], wanted[1][there])]
    missed = ((test[there] @ (shrunk @ (axes.T @ (train.T @ targets[0]))) - targets[1]) ** 2).sum(0)
    return float((1 - missed / ((targets[1] - targets[1].mean(0)) ** 2).sum(0)).min())


def _word_scores(
    model: ProbedModel, dataset: Dataset, numbers: Int64[np.ndarray, " some"], words: int
) -> Float64[np.ndarray, "some words P"]:
    """P(word | tag) of the first words of sentences, each times its scale in the model."""
    assert dataset.grammar is not None
    table, found = dataset.grammar.lexical_table, []
    scales = model.module.scales.detach().cpu().double().numpy()
    for sentence, encoded in zip(
        (dataset.sentences[i][:words] for i in numbers),
        model.encode([dataset.sentences[i][:words] for i in numbers]),
        strict=True,
    ):
        ids = [token for token, word in zip(encoded.ids, encoded.words, strict=True) if word >= 0]
        columns = [dataset.grammar.number_of(word, place) for place, word in enumerate(sentence)]
        found.append(np.pad(table[:, columns].T * np.exp(scales[ids])[:, None], ((0, words - len(sentence)), (0, 0))))
    return np.stack(found)


def inside_scores(
    grammar: Grammar, word_scores: Float64[np.ndarray, "B n P"], without: int | None = None
) -> Float64[np.ndarray, "B n n S"]:
    """Inside scores of symbols over words i to j, by the textbook's loops; [sentence, i, j, symbol].

    Args:
        without: a symbol; rules that have it on the right are left out.
    """
    count, n, _ = word_scores.shape
    inner = len(grammar.nonterminals)
    kept = np.ones(len(grammar.parents), bool) if without is None else grammar.right != without
    parents, left, right = (column[kept] for column in (grammar.parents, grammar.left, grammar.right))
    to_parents = np.zeros((len(parents), inner))
    to_parents[np.arange(len(parents)), parents] = grammar.rule_probs[kept]
    found = np.zeros((count, n, n, inner + word_scores.shape[2]))
    found[:, np.arange(n), np.arange(n), inner:] = word_scores
    for width in range(2, n + 1):
        for i in range(n - width + 1):
            j = i + width - 1
            products = sum(found[:, i, k][:, left] * found[:, k + 1, j][:, right] for k in range(i, j))
            found[:, i, j, :inner] = products @ to_parents
    return found


def _heads(model: ProbedModel, grammar: Grammar, dataset: Dataset) -> tuple[HeadCheck, ...]:
    """The right children that most spans of some test sentences need."""
    module, inner = model.module, len(grammar.nonterminals)
    numbers = dataset.test[:_SENTENCES]
    words = int(dataset.lengths[numbers].max())
    scores = _word_scores(model, dataset, numbers, words)
    there = inside_scores(grammar, scores)[..., :inner] > 0
    needing = {
        int(symbol): there & (inside_scores(grammar, scores, int(symbol))[..., :inner] == 0)
        for symbol in np.unique(grammar.right)
    }
    chosen = sorted(needing, key=lambda symbol: -int(needing[symbol].sum()))[:_HEADS]
    ids, mask = pad(model, model.encode([dataset.sentences[i] for i in numbers]))
    random, found = np.random.default_rng(0), []
    for symbol in chosen:
        gone = there & ~_without(module, ids, mask, symbol, words)
        other = int(random.choice([s for s in needing if s != symbol] or [symbol]))
        by_other = there & ~_without(module, ids, mask, other, words)
        own = needing[symbol]
        found.append(
            HeadCheck(
                module.slots.symbols[symbol],
                *(int(some.sum()) for some in (own, gone & own, gone & ~own, by_other & own)),
            )
        )
    return tuple(found)


@torch.no_grad()
def _without(
    module: InsideOutsideTransformer, ids: torch.Tensor, mask: torch.Tensor, symbol: int, words: int
) -> Bool[np.ndarray, "B n n N"]:
    """Which spans have an inside score where the symbol's head is out of every inside layer."""
    slots = module.slots
    heads = torch.ones(2 * (slots.length - 1), 2 * len(slots.symbols), dtype=module.rules.dtype, device=ids.device)
    heads[: slots.length - 1, symbol] = 0
    out = module(ids, mask, head_mask=heads, output_hidden_states=True)
    state = out.hidden_states[slots.length - 1][:, 1 : 1 + words, slots.spans("inside")]  # after <s>
    spans = state.unflatten(2, (len(slots.nonterminals), slots.length)) != 0  # [B, j, N, i]
    return spans[..., :words].permute(0, 3, 1, 2).cpu().numpy()
