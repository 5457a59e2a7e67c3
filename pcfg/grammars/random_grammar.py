"""Random grammars of given sizes, for tests and benchmarks."""

from typing import Any

import numpy as np
from jaxtyping import Float64

from pcfg.errors import OptionError


def random_arrays(
    nonterminals: int, preterminals: int, words: int, seed: int, temperature: float, rules: int | None
) -> dict[str, Any]:
    """Keywords for `Grammar.of_arrays`: see `Grammar.random`."""
    symbols = nonterminals + preterminals
    if min(nonterminals, preterminals, words) < 1:
        raise OptionError("a random grammar needs at least one nonterminal, one preterminal and one word")
    if rules is not None and not nonterminals <= rules <= nonterminals * symbols**2:
        raise OptionError(
            f"{rules:,} binary rules were asked for: {nonterminals:,} nonterminals and {preterminals:,} preterminals "
            f"can have {nonterminals:,} to {nonterminals * symbols**2:,}"
        )
    random = np.random.default_rng(seed)
    chosen = np.arange(nonterminals * symbols**2)
    if rules is not None:
        pairs = nonterminals + random.integers(preterminals, size=(nonterminals, 2))
        first = np.arange(nonterminals) * symbols**2 + pairs[:, 0] * symbols + pairs[:, 1]
        others = np.setdiff1d(chosen, first)
        chosen = np.append(first, random.choice(others, rules - nonterminals, replace=False))
        chosen.sort()
    parents, tags = chosen // symbols**2, np.repeat(np.arange(preterminals), words)
    start = _softmax(random.normal(0, temperature, symbols), (np.arange(symbols) >= nonterminals).astype(int))
    return {
        "nonterminals": [f"N{i}" for i in range(nonterminals)],
        "preterminals": [f"T{i}" for i in range(preterminals)],
        "words": [f"w{i}" for i in range(words)],
        "start": np.append(0.9 * start[:nonterminals], 0.1 * start[nonterminals:]),
        "parents": parents,
        "left": chosen // symbols % symbols,
        "right": chosen % symbols,
        "rule_probs": _softmax(random.normal(0, temperature, len(chosen)), parents),
        "tags": tags,
        "tokens": np.tile(np.arange(words), preterminals),
        "word_probs": _softmax(random.normal(0, temperature, len(tags)), tags),
    }


def _softmax(scores: Float64[np.ndarray, " K"], groups: np.ndarray) -> Float64[np.ndarray, " K"]:
    """Softmax within each group of entries."""
    highest = np.full(groups.max() + 1, -np.inf)
    np.maximum.at(highest, groups, scores)
    weights = np.exp(scores - highest[groups])
    return weights / np.bincount(groups, weights)[groups]
