"""Rule probabilities fitted to sentences by expectation-maximisation."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from jaxtyping import Float64, Integer

from pcfg.devices import Device
from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.binarization import Origin
from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
from pcfg.inference.chart import inside_outside
from pcfg.sentences import check_words
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, load_json
from surgery.progress import Progress
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result

# Called after each round with its number from 1, the new grammar, and the log-likelihood that the round began with.
OnRound = Callable[[int, Grammar, float], None]

_FIT = "fit.json"
_BATCH, _BATCH_BYTES = 64, 64 << 20
# Below this a symbol's expected count has lost bits; it keeps its probabilities.
_LEAST_COUNT = 1e-200
# Shares below this become 0: no likelihood in float64 shows the loss, and charts of such numbers underflow, and are slow.
_LEAST_SHARE = 1e-30


@dataclass(frozen=True, eq=False)
class Fitted(Result):
    """A grammar fitted to sentences, and how it came there.

    Attributes:
        grammar: after the last round.
        log_likelihoods: of the text (natural logarithm, summed over its sentences) before each round and after the last.
        left_out: numbers (from 0) of the sentences that have no parse under the grammar that was given.
        words: number of words of the sentences that have one.
    """

    grammar: Grammar
    log_likelihoods: Float64[np.ndarray, " likelihoods"]
    left_out: tuple[int, ...]
    words: int

    @property
    def rounds(self) -> int:
        """How many rounds were run."""
        return len(self.log_likelihoods) - 1

    @property
    def summary(self) -> list[str]:
        """How many rounds, and what they did for the likelihood of a word."""
        first, last = self.log_likelihoods[[0, -1]] / max(1, self.words)
        lines = [
            f"{number_of(self.rounds, 'round')} of expectation-maximisation took the log-likelihood of a word from {first:.4f} to {last:.4f} nats."
        ]
        return (
            [*lines, f"Left out, without a parse: {number_of(len(self.left_out), 'sentence')}."]
            if self.left_out
            else lines
        )

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row for each number of rounds done, from none on."""
        rows = [[done, value, value / max(1, self.words)] for done, value in enumerate(self.log_likelihoods.tolist())]
        return ["rounds", "log-likelihood, nats", "a word"], rows

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """A folder with the grammar and what the rounds gave; it appears whole or not at all."""
        with new_folder(Path(folder), overwrite=overwrite, replaces=_FIT) as staged:
            self.grammar.save(staged / GRAMMAR_FILE)
            content = {"log_likelihoods": self.log_likelihoods.tolist(), "left_out": self.left_out, "words": self.words}
            replace_json(staged / _FIT, {"schema": 1, **content})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Fitted":
        """What `save` wrote. Raises GrammarError, naming the file, for anything else."""
        file = Path(folder) / _FIT
        try:
            content = load_json(file, _FitFile)
        except (OSError, JsonError) as error:
            raise GrammarError(f"{file} can't be read ({error}): name a folder that Fitted.save wrote") from None
        grammar = Grammar.load(Path(folder) / GRAMMAR_FILE)
        return cls(grammar, np.array(content.log_likelihoods), tuple(content.left_out), content.words)


class _FitFile(msgspec.Struct):
    schema: Literal[1]
    log_likelihoods: list[float]
    left_out: list[int]
    words: int


@dataclass(frozen=True, eq=False)
class Counts:
    """Expected uses of roots, binary and lexical rules in some sentences, and the sentences' log-likelihood."""

    start: Float64[np.ndarray, " S"]
    rules: Float64[np.ndarray, " R"]
    words: Float64[np.ndarray, " L"]
    log_likelihood: float
    left_out: tuple[int, ...]

    def __repr__(self) -> str:
        return (
            f"<Counts: log-likelihood {self.log_likelihood:.4f}, {number_of(len(self.left_out), 'sentence')} left out>"
        )

    def by_nonterminal(self, grammar: Grammar) -> Float64[np.ndarray, " N"]:
        """Expected number of nodes of each nonterminal."""
        return np.bincount(grammar.parents, self.rules, len(grammar.nonterminals))


def fit(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    rounds: int,
    *,
    smoothing: float = 0.0,
    engine: str = "auto",
    device: Device | None = None,
    workers: int = 1,
    tolerance: float | None = None,
    on_round: OnRound | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Expectation-maximisation: each round sets probabilities to relative expected counts (Lari & Young 1990).

    No round lowers the likelihood. A rule whose share of its parent's uses falls below 1e-30 gets probability 0. Rounds depend on the grammar alone, so going on from a saved one is as if nothing
    had come between. Symbols that no parse uses keep their probabilities, and what has probability 0 keeps that. With a
    smoothed lexicon, roots and binary rules are fitted, words stay; "likelihood" is then the lexicon's score.

    Args:
        smoothing: added to the expected count of each root and rule of positive probability (a Dirichlet prior of
            1 + smoothing): the log-likelihood plus smoothing times the sum of their log probabilities never falls.
        engine, device, workers: as for `inside_outside`; always float64.
        tolerance: stop when a round has raised the log-likelihood by less than this a word.

    Raises:
        OptionError: an option out of its range.
        GrammarError: an unknown word, with its place, or a text of which no sentence has a parse.
    """
    _check_options(rounds, smoothing, tolerance)
    check_sentences(grammar, sentences)
    grammar = _normalised(grammar)
    likelihoods, left_out, words = list[float](), tuple[int, ...](), 0
    for number in range(rounds + 1):
        line = f"log-likelihood {likelihoods[-1]:,.4f}" if likelihoods else "expected counts"

        def tell(done: int, number: int = number, line: str = line) -> None:
            if progress is not None:
                progress(number * len(sentences) + done, (rounds + 1) * len(sentences), f"round {number}: {line}")

        counts = expected_counts(grammar, sentences, engine=engine, device=device, workers=workers, on_batch=tell)
        if not likelihoods:
            left_out = counts.left_out
            words = sum(map(len, sentences)) - sum(len(sentences[i]) for i in left_out)
            if len(left_out) == len(sentences):
                raise GrammarError("no sentence has a parse, so there is nothing to count: start from another grammar")
        likelihoods.append(counts.log_likelihood)
        close = tolerance is not None and number and likelihoods[-1] - likelihoods[-2] < tolerance * words
        if number == rounds or close:
            break
        grammar = maximised(grammar, counts, smoothing)
        if on_round is not None:
            on_round(number + 1, grammar, likelihoods[-1])
    if progress is not None:
        progress(1, 1, f"{len(likelihoods) - 1} rounds: log-likelihood {likelihoods[-1]:,.4f}")
    return Fitted(grammar, np.array(likelihoods), left_out, words)


def _normalised(grammar: Grammar) -> Grammar:
    """The grammar with sums of exactly 1, not just within the tolerance: else the first round could lower the likelihood."""
    if grammar.origin is not None:
        origin = grammar.origin
        sums = np.bincount(origin.parents, origin.probs)
        if np.abs(sums - 1).max() < 1e-12:
            return grammar
        return _of_origin(grammar, replace(origin, probs=origin.probs / sums[origin.parents]))
    start = float(grammar.start.sum())
    rules = np.bincount(grammar.parents, grammar.rule_probs, len(grammar.nonterminals))
    words = np.bincount(grammar.tags, grammar.word_probs, len(grammar.preterminals))
    if max(abs(start - 1), *(np.abs(sums - 1).max(initial=0.0) for sums in (rules, words))) < 1e-12:
        return grammar
    return grammar.replaced(
        start=grammar.start / start,
        rule_probs=grammar.rule_probs / rules[grammar.parents],
        word_probs=grammar.word_probs / words[grammar.tags],
    )


def expected_counts(
    grammar: Grammar,
    sentences: Sequence[Sequence[str]],
    *,
    engine: str = "auto",
    device: Device | None = None,
    workers: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> Counts:
    """Expected uses of everything in the parses of the sentences; those without a parse are left out.

    Args:
        on_batch: called with the number of sentences done.
    """
    start, rules, words = (np.zeros(len(x)) for x in (grammar.start, grammar.rule_probs, grammar.word_probs))
    log_z, done = np.full(len(sentences), -math.inf), 0
    for batch in _batches(sentences, len(grammar.start)):
        chart = inside_outside(grammar, [sentences[i] for i in batch], engine=engine, device=device, workers=workers)
        log_z[batch] = chart.log_z.cpu().double().numpy()
        start += chart.start_counts()
        rules += chart.rule_counts()
        if grammar.lexicon is None:
            words += chart.word_counts()
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    parsed = log_z > -math.inf
    return Counts(start, rules, words, math.fsum(log_z[parsed]), tuple(np.flatnonzero(~parsed).tolist()))


def maximised(grammar: Grammar, counts: Counts, smoothing: float = 0.0) -> Grammar:
    """The grammar of relative counts; smoothing as for `fit`.

    Of the rules that it was made from, where they are known: what a binary grammar has of them more than once is one.
    """
    if grammar.origin is not None and grammar.places is not None:
        origin = grammar.origin
        uses = grammar.places.rule_counts(origin, counts)
        return _of_origin(grammar, replace(origin, probs=_relative(uses, origin.probs, origin.parents, smoothing)))
    one = np.zeros(len(grammar.start), np.int32)
    changes = {
        "start": _relative(counts.start, grammar.start, one, smoothing),
        "rule_probs": _relative(counts.rules, grammar.rule_probs, grammar.parents, smoothing),
    }
    if grammar.lexicon is None:
        changes["word_probs"] = _relative(counts.words, grammar.word_probs, grammar.tags, smoothing)
    return grammar.replaced(**changes)


def _of_origin(grammar: Grammar, origin: Origin) -> Grammar:
    """The grammar with other probabilities of the rules that it was made from."""
    places = grammar.places
    made = grammar.replaced(**places.arrays(origin, grammar), origin=origin)  # type: ignore[union-attr]
    made.__dict__["places"] = places  # they are the same, and take a while
    return made


def _relative(
    counts: Float64[np.ndarray, " K"],
    old: Float64[np.ndarray, " K"],
    groups: Integer[np.ndarray, " K"],
    smoothing: float,
) -> Float64[np.ndarray, " K"]:
    """Counts over their group's sum; the old probabilities where a group has no counts."""
    counts = counts + smoothing * (old > 0)
    totals = np.bincount(groups, counts)[groups]
    shares = counts / np.where(totals > _LEAST_COUNT, totals, 1.0)
    return np.where(totals > _LEAST_COUNT, np.where(shares < _LEAST_SHARE, 0.0, shares), old)


def _batches(sentences: Sequence[Sequence[str]], symbols: int) -> Iterator[list[int]]:
    """Batches of sentences' numbers, of about the same length, longest first: what takes too much memory fails at once."""
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    while order:
        longest = max(1, len(sentences[order[0]]))
        size = max(1, min(_BATCH, _BATCH_BYTES // (32 * symbols * longest * (longest + 1))))
        yield order[:size]
        order = order[size:]


def _check_options(rounds: int, smoothing: float, tolerance: float | None) -> None:
    if rounds < 1:
        raise OptionError(f"{rounds} rounds were asked for: ask for 1 or more")
    if tolerance is not None and not tolerance >= 0:
        raise OptionError(f"the tolerance is {tolerance}: it must be 0 or more")
    check_smoothing(smoothing)


def check_smoothing(smoothing: float) -> None:
    """Raise OptionError for what can't be added to counts."""
    if not 0 <= smoothing < math.inf:
        raise OptionError(f"the smoothing is {smoothing}: it must be 0 or more, and finite")


def check_sentences(grammar: Grammar, sentences: Sequence[Sequence[str]]) -> None:
    """Raise for no sentences and for an unknown word, before hours are spent on the sentences before it."""
    if not len(sentences):
        raise OptionError("there are no sentences to count in: give at least one")
    check_words(grammar, sentences, "the sentences", unit="sentence")
