"""Sentences and their trees drawn from a grammar: fast, the same for the same seed, with length limits done right."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int32, Int64

from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.sampling.kernels import build_aliases, draw_by_length, draw_freely, fill_lengths, rules_by_length
from pcfg.sampling.samples import Samples

METHODS = ("auto", "rejection", "exact")
# Share of free draws within the limit below which conditioning on lengths is faster than throwing away.
_SCARCE = 0.2
_MOST_DRAWS = 1e10  # of which all but a few are thrown away
_MOST_BYTES = 2 << 30  # for the tables of exact conditioning
_BLOCK = 1 << 16  # sentences drawn between two looks at the room that is left


def sample(
    grammar: Grammar,
    count: int,
    *,
    seed: int,
    max_length: int | None = None,
    method: str = "auto",
    first: int = 0,
) -> Samples:
    """Draw sentences with their trees.

    With a limit, they follow the grammar's distribution given that a sentence has at most so many words, by one of two
    methods: "rejection" throws free draws above the limit away; "exact" draws a length first and conditions every
    choice on it, which costs tables of (binary rules) x (limit) numbers. "auto" takes the second where fewer than a
    fifth of the free draws are within the limit. The result says which was taken.

    Sentence i depends on the seed and i only, so shards drawn apart are those of one large draw.

    Args:
        first: number of the first sentence: `sample(g, 10, seed=0, first=90)` gives the last 10 of `sample(g, 100, seed=0)`.

    Raises GrammarError where no limit is given and the expected length is infinite, and where no sentence is within it.
    """
    if count < 0 or first < 0:
        raise OptionError(f"{min(count, first)} sentences can't be drawn: count and first must be 0 or more")
    if method not in METHODS:
        raise OptionError(f"{method} isn't a method of sampling: name one of {', '.join(METHODS)}")
    if max_length is None:
        if method != "auto":
            raise OptionError(f"{method} sampling needs a max_length")
        grammar.check_proper()
        return _sample_freely(grammar, count, seed, first, None, 1.0)
    lengths = inside_lengths(grammar, max_length)
    acceptance = float((grammar.start @ lengths).sum())
    if not acceptance:
        raise GrammarError(f"the grammar has no sentence of {max_length} words or fewer: allow longer ones")
    if method == "rejection" and count > _MOST_DRAWS * acceptance:
        raise GrammarError(
            f"{acceptance:.2g} of free draws have {max_length} words or fewer, so throwing the others away would take for "
            "ever: use method='exact', or allow longer sentences"
        )
    if method == "rejection" or (method == "auto" and acceptance >= _SCARCE):
        return _sample_freely(grammar, count, seed, first, max_length, acceptance)
    return _sample_by_length(grammar, count, seed, first, lengths, acceptance)


def length_distribution(grammar: Grammar, max_length: int) -> Float64[np.ndarray, " lengths"]:
    """The probability that a sentence has 0, 1, ... max_length words; what is missing from 1 is that it has more."""
    return grammar.start @ inside_lengths(grammar, max_length)


def inside_lengths(grammar: Grammar, max_length: int) -> Float64[np.ndarray, "S lengths"]:
    """The probability that each symbol derives 0, 1, ... max_length words.

    One pass over lengths; products for a pair of children are shared by all rules over it: O(pairs L^2 + R L).
    """
    if max_length < 1:
        raise OptionError(f"a limit of {max_length} words leaves no sentence: allow 1 or more")
    pairs, number = _pairs(grammar)
    lengths = np.zeros((len(grammar.symbols), max_length + 1))
    lengths[len(grammar.nonterminals) :, 1] = 1.0
    fill_lengths(grammar.parents, grammar.rule_probs, pairs, number, lengths)
    return lengths


def _pairs(grammar: Grammar) -> tuple[Int32[np.ndarray, "pairs 2"], Int64[np.ndarray, " R"]]:
    """The different pairs of children, and the number of each rule's pair."""
    symbols = len(grammar.symbols)
    codes, number = np.unique(grammar.left.astype(np.int64) * symbols + grammar.right, return_inverse=True)
    return np.stack([codes // symbols, codes % symbols], 1).astype(np.int32), number.astype(np.int64)


def _sample_freely(
    grammar: Grammar, count: int, seed: int, first: int, limit: int | None, acceptance: float
) -> Samples:
    tables = (*_alternatives(grammar), grammar.left, grammar.right, grammar.tokens, _cumulative(grammar.start))
    most = np.iinfo(np.int32).max // 4 if limit is None else limit
    guess = grammar.expected_length if limit is None else float(limit)

    def draw(begin: int, words: np.ndarray, steps: np.ndarray, offsets: np.ndarray) -> int:
        return draw_freely(*tables, np.uint64(seed % 2**64), first + begin, most, words, steps, offsets)

    numbers = np.arange(first, first + count)
    return Samples(
        grammar, *_fill(draw, count, guess), "free" if limit is None else "rejection", acceptance, seed, numbers
    )


def _sample_by_length(
    grammar: Grammar,
    count: int,
    seed: int,
    first: int,
    lengths: Float64[np.ndarray, "S lengths"],
    acceptance: float,
) -> Samples:
    need = 8 * len(grammar.rule_probs) * lengths.shape[1]
    if need > _MOST_BYTES:
        raise GrammarError(
            f"conditioning {len(grammar.rule_probs):,} rules on up to {lengths.shape[1] - 1:,} words takes "
            f"{need / 2**30:.1f} GiB: give a lower limit, or method='rejection' ({acceptance:.2g} of the draws are kept)"
        )
    pairs, number = _pairs(grammar)
    bounds = np.searchsorted(grammar.parents, np.arange(len(grammar.nonterminals) + 1))
    rules = rules_by_length(bounds, grammar.rule_probs, pairs, number, lengths)
    roots = _cumulative((grammar.start[:, None] * lengths).ravel())
    tables = (rules, bounds, roots, lengths, grammar.left, grammar.right, *_alternatives(grammar), grammar.tokens)

    def draw(begin: int, words: np.ndarray, steps: np.ndarray, offsets: np.ndarray) -> int:
        return draw_by_length(*tables, np.uint64(seed % 2**64), first + begin, words, steps, offsets)

    numbers = np.arange(first, first + count)
    return Samples(grammar, *_fill(draw, count, float(lengths.shape[1])), "exact", acceptance, seed, numbers)


def _fill(draw: Callable[..., int], count: int, guess: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw blocks of sentences, each into room that doubles until the next sentence fits."""
    words: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    offsets = [np.zeros(1, np.int64)]
    done, room = 0, int(min(count, _BLOCK) * min(guess, 64.0)) + 64
    while done < count:
        block = (
            np.empty(room, np.int32),
            np.empty(2 * room, np.int32),
            np.zeros(min(count - done, _BLOCK) + 1, np.int64),
        )
        drawn = draw(done, *block)
        if not drawn:
            room *= 2
            continue
        ends = block[2][1 : drawn + 1]
        words.append(block[0][: ends[-1]].copy())
        steps.append(block[1][: 2 * ends[-1] - drawn].copy())
        offsets.append(ends + offsets[-1][-1])
        done += drawn
    empty = [np.empty(0, np.int32)]
    return np.concatenate(words or empty), np.concatenate(offsets), np.concatenate(steps or empty)


def _alternatives(grammar: Grammar) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walker's alias tables over all rules, binary ones first: where each symbol's begin, thresholds, aliases."""
    n, binary = len(grammar.nonterminals), len(grammar.rule_probs)
    heads = np.append(grammar.parents, grammar.tags + n)
    bounds = np.searchsorted(heads, np.arange(len(grammar.symbols) + 1))
    threshold = np.append(grammar.rule_probs, grammar.word_probs)
    alias = np.arange(binary + len(grammar.word_probs), dtype=np.int32)
    build_aliases(bounds, threshold, alias)
    return bounds, threshold, alias


def _cumulative(weights: Float64[np.ndarray, " K"]) -> Float64[np.ndarray, " K"]:
    sums = np.cumsum(weights)
    return sums / sums[-1]
