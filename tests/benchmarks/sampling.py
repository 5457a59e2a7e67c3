"""Sentences a second from a random grammar of 20 + 45 symbols, against a plain loop in Python, in the same run.

python -m tests.benchmarks.sampling
"""

import itertools
import time

import numpy as np

from pcfg.grammars.grammar import Grammar
from pcfg.sampling.sampler import sample

COUNT, PLAIN, LONGEST = 200_000, 2_000, 40


def grammar():
    """Twenty nonterminals, more often over others than chance would have it, so that sentences are as long as real ones."""
    made = Grammar.random(20, 45, 1000, seed=0)
    children = (made.left < 20).astype(float) + (made.right < 20)
    weights = made.rule_probs * np.exp(0.7 * children)
    return made.replaced(rule_probs=weights / np.bincount(made.parents, weights)[made.parents])


def plain_loop(grammar, count):
    """The same by a stack and one draw a node."""
    random, inner = np.random.default_rng(0), len(grammar.nonterminals)
    first = np.searchsorted(grammar.parents, np.arange(inner + 1))
    sums = [np.cumsum(grammar.rule_probs[a:b]) for a, b in itertools.pairwise(first)]
    lexical = np.searchsorted(grammar.tags, np.arange(len(grammar.preterminals) + 1))
    spelled = [np.cumsum(grammar.word_probs[a:b]) for a, b in itertools.pairwise(lexical)]
    roots, sentences = np.cumsum(grammar.start), []
    for _ in range(count):
        stack, words = [int(np.searchsorted(roots, random.random()))], []
        while stack:
            symbol = stack.pop()
            if symbol < inner:
                rule = first[symbol] + np.searchsorted(sums[symbol], random.random())
                stack += [int(grammar.right[rule]), int(grammar.left[rule])]
            else:
                tag = symbol - inner
                words.append(grammar.tokens[lexical[tag] + np.searchsorted(spelled[tag], random.random())])
        sentences.append(words)
    return sentences


def main():
    """Print both rates, free and with a length limit."""
    given = grammar()
    begun = time.perf_counter()
    slow = plain_loop(given, PLAIN)
    rate = PLAIN / (time.perf_counter() - begun)
    print(
        f"{len(given.symbols)} symbols, {given.expected_length:.1f} words a sentence; plain loop {rate:,.0f} a second"
    )
    print(f"mean length of the plain loop's sentences {np.mean([len(words) for words in slow]):.1f}")
    for limit in (None, LONGEST):
        sample(given, 10, seed=0, max_length=limit)  # compiles
        begun = time.perf_counter()
        drawn = sample(given, COUNT, seed=1, max_length=limit)
        ours = COUNT / (time.perf_counter() - begun)
        what = "any length" if limit is None else f"{limit} words or fewer, {drawn.method}"
        print(f"{what}: {ours:,.0f} sentences with trees a second, {ours / rate:,.0f} times the plain loop")


if __name__ == "__main__":
    main()
