"""Masked words: the exact posterior of each word given all others, and of several masked words together.

What the others say of a masked word is the outside score of each tag there. It is wanted for every tag, also those that
can't stand over the word that is there, and a chart of the sentence doesn't hold those. So all sentences with just one
word masked are parsed at once, by a grammar of twice the symbols: A and A', which has the masked word somewhere below,
with A' -> B' C and A' -> B C' for A -> B C, root A', and words under T' that all score 1. Its trees with the mask at
word i weigh what the trees of the other words weigh, so its tag posteriors at word i are the tags' outside scores there
up to a factor. One pass costs two to four charts of the sentence, with either engine and whatever its length; a chart
for each masked word would cost as many as it has words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from pcfg.devices import Device
from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.engines import pick_engine
from pcfg.inference.posteriors import Posteriors
from surgery.reporting.results import Shown

_MOST_CHARTS, _MOST_ENTRIES = 20_000, 50_000_000
_BATCH_BYTES = 64 << 20
# A chart is exact relative to the sum over all places of the mask; a place with less than this share has a chart of its own.
_FAINT = 1e-6


def word_posteriors(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    *,
    engine: str = "auto",
    device: Device | None = None,
    workers: int = 1,
) -> list[Float64[np.ndarray, "_ V"]]:
    """P(word i = w | all other words) for each sentence, each i and each of `grammar.words`: rows sum to 1.

    A row is 0 where no word would give a parse. With a smoothed lexicon, it scores the words that are seen, and the
    grammar's lexical rules say what may stand at the mask: signatures stand for the words that they fit.

    Raises GrammarError for an unknown word, as it says something of all the others: use `masked_posteriors` to mask it.
    """
    table = _lexical(grammar)
    return [tags @ table for tags in tag_posteriors(grammar, sentences, engine=engine, device=device, workers=workers)]


def masked_log_prob(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    *,
    engine: str = "auto",
    device: Device | None = None,
    workers: int = 1,
) -> list[Float64[np.ndarray, " _"]]:
    """Log P(word i | all other words) of the words that are there (their sum is the pseudo-log-likelihood of a sentence).

    -inf where the word can't stand there, NaN where none can.
    """
    table = _lexical(grammar).T
    log_probs = []
    for sentence, tags in zip(
        sentences, tag_posteriors(grammar, sentences, engine=engine, device=device, workers=workers), strict=True
    ):
        numbers = [grammar.number_of(word, position) for position, word in enumerate(sentence)]
        with np.errstate(divide="ignore"):
            logs = np.log((tags * table[numbers]).sum(1))
        log_probs.append(np.where(tags.any(1), logs, np.nan))
    return log_probs


def tag_posteriors(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    *,
    engine: str = "auto",
    device: Device | None = None,
    workers: int = 1,
) -> list[Float64[np.ndarray, "_ T"]]:
    """P(tag of word i = t | all other words), the word itself masked; rows of 0 where no word would give a parse."""
    doubled, tags = _doubled(grammar), len(grammar.preterminals)
    engine = pick_engine(doubled, engine)
    scores = [grammar.emissions(sentence) for sentence in sentences]
    posterior_of: list[Float64[np.ndarray, "_ T"]] = [np.zeros(rows.shape) for rows in scores]
    order = sorted(range(len(scores)), key=lambda i: -len(scores[i]))
    order = [i for i in order if len(scores[i])]
    while order:
        longest = len(scores[order[0]])
        size = max(1, _BATCH_BYTES // (32 * len(doubled.start) * longest * (longest + 1)))
        batch, order = order[:size], order[size:]
        rows = tuple(np.concatenate([scores[i], np.ones_like(scores[i])], 1) for i in batch)
        chart = Posteriors(doubled, tuple(tuple(sentences[i]) for i in batch), rows, engine, device, "float64", workers)
        posteriors = chart.tag_posteriors[:, :, tags:].cpu().double().numpy()
        for i, posterior in zip(batch, posteriors, strict=True):
            posterior_of[i] = _each_sum_one(grammar, sentences[i], posterior[: len(scores[i])], engine, device)
    return posterior_of


def _each_sum_one(
    grammar: Grammar, sentence: Sequence[str], joint: Float64[np.ndarray, "n T"], engine: str, device: Device | None
) -> Float64[np.ndarray, "n T"]:
    """From posteriors of place and tag to those of the tag at each place."""
    shares = joint.sum(1)
    tags = joint / np.where(shares > 0, shares, 1.0)[:, None]
    for place in np.flatnonzero(shares < _FAINT).tolist():
        tags[place] = masked_posteriors(grammar, sentence, [place], engine=engine, device=device).tags[0]
    return tags


@dataclass(frozen=True, eq=False)
class MaskedWords(Shown):
    """Posteriors of the masked words of one sentence.

    Attributes:
        grammar: whose preterminals (T) and words (V) the axes are.
        positions: of the masks, from 0.
        log_z: log probability of the other words in their places, whatever the masked ones are; -inf if nothing fits.
        tags: posterior of each preterminal at each mask.
        joint_tags: posterior of the tags at all masks together, an axis of T for each; None if it wasn't asked for.
    """

    grammar: Grammar
    positions: tuple[int, ...]
    log_z: float
    tags: Float64[np.ndarray, "k T"]
    joint_tags: Float64[np.ndarray, "..."] | None

    @property
    def summary(self) -> list[str]:
        """Log Z of the other words, and the likeliest word at each mask."""
        best = [f"{row[1]} ({row[2]:.2g}) at {row[0]}" for row in self._likeliest(1)]
        return [f"log Z {self.log_z:.6g}; likeliest {', '.join(best) or 'is nothing: no words fit'}."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The ten likeliest words at each mask: position, word and probability."""
        return ["position", "word", "probability"], self._likeliest(10)

    def _likeliest(self, count: int) -> list[list[Any]]:
        """Rows of the likeliest words that are possible."""
        return [
            [position, self.grammar.words[word], float(posterior[word])]
            for position, posterior in zip(self.positions, self.words, strict=True)
            for word in np.argsort(-posterior, kind="stable")[:count]
            if posterior[word] > 0
        ]

    @property
    def words(self) -> Float64[np.ndarray, "k V"]:
        """Posterior of each word at each mask."""
        return self.tags @ _lexical(self.grammar)

    @property
    def joint_words(self) -> Float64[np.ndarray, "..."]:
        """Posterior of the words at all masks together, an axis of V for each."""
        if self.joint_tags is None:
            raise OptionError("the joint posterior wasn't computed: call masked_posteriors with joint=True")
        entries = len(self.grammar.words) ** len(self.positions)
        if entries > _MOST_ENTRIES:
            raise OptionError(
                f"the joint posterior of words would hold {entries:,} numbers: mask fewer, or use joint_tags"
            )
        joint, table = self.joint_tags, _lexical(self.grammar)
        for _ in self.positions:  # takes the first axis of tags and puts one of words last
            joint = np.tensordot(joint, table, (0, 0))
        return joint


def masked_posteriors(
    grammar: Grammar,
    sentence: Sequence[str],
    positions: Sequence[int],
    *,
    joint: bool = False,
    engine: str = "auto",
    device: Device | None = None,
) -> MaskedWords:
    """Posteriors of the words at `positions` given all words elsewhere; what stands at the positions doesn't matter.

    Args:
        joint: also the posterior of all masked words together: a chart for each combination of tags that is possible at
            the masks but for the widest, so T to the power of the number of masks less one at most.

    Raises:
        OptionError: positions that aren't in the sentence or come twice, or too many combinations.
        GrammarError: an unknown word elsewhere.
    """
    positions = tuple(positions)
    if not positions or len(set(positions)) < len(positions) or not all(0 <= p < len(sentence) for p in positions):
        raise OptionError(f"the masks {list(positions)} must be different positions from 0 to {len(sentence) - 1}")
    engine = pick_engine(grammar, engine)
    scores = _others(grammar, sentence, positions)
    chart = Posteriors(grammar, (tuple(sentence),), (scores,), engine, device, "float64", 1)
    tags = chart.tag_posteriors[0].cpu().double().numpy()[list(positions)]
    log_z = float(chart.log_z[0])
    together = None
    if joint:
        together = _joint_tags(chart, positions, tags) if log_z > -math.inf else np.zeros((tags.shape[1],) * len(tags))
    return MaskedWords(grammar, positions, log_z, tags, together)


def _joint_tags(
    chart: Posteriors, positions: tuple[int, ...], tags: Float64[np.ndarray, "k T"]
) -> Float64[np.ndarray, "..."]:
    """Posterior of the tags at all masks: one mask is left to the chart, combinations at the others are tried."""
    _, count = tags.shape
    if count ** len(positions) > _MOST_ENTRIES:
        raise OptionError(f"the joint posterior would hold {count ** len(positions):,} numbers: mask fewer words")
    free = int(np.argmax((tags > 0).sum(1)))
    tried = [mask for mask in range(len(positions)) if mask != free]
    combinations = _product([np.flatnonzero(tags[mask]) for mask in tried])
    if len(combinations) > _MOST_CHARTS:
        raise OptionError(f"the joint posterior would take {len(combinations):,} charts: mask fewer words")
    joint = np.zeros((count,) * len(positions))
    by_mask = np.moveaxis(joint, free, -1)
    sentence, scores = chart.sentences[0], chart.emissions[0]
    size = max(1, _BATCH_BYTES // (32 * len(chart.grammar.start) * len(sentence) * (len(sentence) + 1)))
    for first in range(0, len(combinations), size):
        some = combinations[first : first + size]
        variants = np.repeat(scores[None], len(some), 0)
        for mask, chosen in zip(tried, some.T, strict=True):
            variants[:, positions[mask]] = np.eye(count)[chosen]
        charts = Posteriors(
            chart.grammar, (sentence,) * len(some), tuple(variants), chart.engine, chart.device, "float64", 1
        )
        weights = np.exp(charts.log_z.cpu().double().numpy() - float(chart.log_z[0]))
        by_mask[tuple(some.T)] = weights[:, None] * charts.tag_posteriors[:, positions[free]].cpu().double().numpy()
    return joint


def _product(choices: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, "combinations k"]:
    """Every combination of one of each; one empty combination of none."""
    if math.prod(map(len, choices)) > _MOST_CHARTS:
        raise OptionError(f"the joint posterior would take {math.prod(map(len, choices)):,} charts: mask fewer words")
    if not choices:
        return np.zeros((1, 0), np.int64)
    return np.stack([axis.ravel() for axis in np.meshgrid(*choices, indexing="ij")], 1)


def _others(grammar: Grammar, sentence: Sequence[str], positions: tuple[int, ...]) -> Float64[np.ndarray, "n T"]:
    """Scores of the words, 1 for every tag at the masks: a tag has some word with certainty."""
    known = grammar.words[0] if grammar.lexicon is None else grammar.lexicon.forms[0]
    scores = grammar.emissions([known if i in positions else word for i, word in enumerate(sentence)])
    scores[list(positions)] = 1.0
    return scores


def _lexical(grammar: Grammar) -> Float64[np.ndarray, "T V"]:
    """P(word | tag)."""
    entries = len(grammar.preterminals) * len(grammar.words)
    if entries > _MOST_ENTRIES:
        raise GrammarError(f"the table of words by tag would hold {entries:,} numbers: use fewer words or tags")
    return grammar.lexical_table


def _doubled(grammar: Grammar) -> Grammar:
    """Scores of trees with exactly one masked word: symbols A, then A', then T, then T'."""
    inner, tags = len(grammar.nonterminals), len(grammar.preterminals)
    plain = np.append(np.arange(inner), 2 * inner + np.arange(tags)).astype(np.int32)
    marked = np.append(inner + np.arange(inner), 2 * inner + tags + np.arange(tags)).astype(np.int32)
    parents, left, right = grammar.parents, grammar.left, grammar.right
    start = np.zeros(2 * len(plain))
    start[marked] = grammar.start
    columns = {
        "nonterminals": (*grammar.nonterminals, *(f"{name}'" for name in grammar.nonterminals)),
        "preterminals": (*grammar.preterminals, *(f"{name}'" for name in grammar.preterminals)),
        "start": start,
        "parents": np.concatenate([plain[parents], marked[parents], marked[parents]]),
        "left": np.concatenate([plain[left], marked[left], plain[left]]),
        "right": np.concatenate([plain[right], plain[right], marked[right]]),
        "rule_probs": np.tile(grammar.rule_probs, 3),
    }
    # A chart takes any scores; a Grammar made in the usual way would refuse these, as they aren't probabilities.
    scores = object.__new__(Grammar)
    scores.__dict__.update({field.name: getattr(grammar, field.name) for field in fields(grammar)} | columns)
    return scores
