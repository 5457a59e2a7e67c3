"""Grammars without what no tree over words holds."""

import numpy as np

from pcfg.grammar import Grammar


def pruned(grammar: Grammar) -> Grammar:
    """`Grammar.pruned`."""
    keep, ends, n = grammar.useful, grammar.branching.ending(), len(grammar.nonterminals)
    if grammar.lexicon is not None:
        keep[n:] = True
    if (ends[keep] > 1 - 1e-12).all():
        ends[keep] = 1.0  # all trees end: no probability changes by a bit
    rules = (grammar.rule_probs > 0) & keep[grammar.parents] & keep[grammar.left] & keep[grammar.right]
    spelled = keep[n:][grammar.tags] & (grammar.word_probs > 0)
    used = np.unique(grammar.tokens[spelled])
    numbers, words = np.cumsum(keep) - 1, np.searchsorted(used, grammar.tokens[spelled])
    parents, left, right = (column[rules] for column in (grammar.parents, grammar.left, grammar.right))
    start, probs = (grammar.start * ends)[keep], grammar.rule_probs[rules] * ends[left] * ends[right]
    return Grammar.of_arrays(
        nonterminals=(name for name, kept in zip(grammar.nonterminals, keep[:n], strict=True) if kept),
        preterminals=(name for name, kept in zip(grammar.preterminals, keep[n:], strict=True) if kept),
        words=(grammar.words[i] for i in used),
        start=start / (start.sum() if (ends[keep] < 1).any() else 1.0),
        parents=numbers[parents],
        left=numbers[left],
        right=numbers[right],
        rule_probs=probs / np.bincount(parents, probs)[parents] if (ends[keep] < 1).any() else probs,
        tags=numbers[n:][grammar.tags[spelled]] - keep[:n].sum(),
        tokens=words,
        word_probs=grammar.word_probs[spelled],
        lexicon=grammar.lexicon,
        transformed=grammar.transformed,
    )
