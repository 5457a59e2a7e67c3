"""Grammars without what no tree over words holds."""

import math
from collections import defaultdict
from typing import Any

import numpy as np

from pcfg.grammars.arrays import GrammarArrays
from pcfg.grammars.binarization import Origin
from pcfg.grammars.rules import Children, Rule, Word


def pruned_rules(origin: Origin, whole: GrammarArrays) -> list[Rule]:
    """Rules of any shape without those that no tree over words holds; see `Grammar.pruned`.

    Args:
        origin: the rules; `whole`: their binary form with the symbols that stand in unary chains only.
    """
    rules, start, ends = origin.rules, origin.shape.start, _ending(origin, whole)
    if start not in ends:  # it stands over the grammar's roots
        ends[start] = math.fsum(p * ends[str(children[0])] for parent, children, p in rules if parent == start)

    def weight(children: Children) -> float:
        return math.prod((ends[child] for child in children if not isinstance(child, Word)), start=1.0)

    of_parent: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        if rule.probability and weight(rule.children):
            of_parent[rule.parent].append(rule)
    seen, todo = {start}, [start]
    while todo:
        below = {child for rule in of_parent[todo.pop()] for child in rule.children if isinstance(child, str)}
        todo += below - seen
        seen |= below
    rules = [rule for rule in rules if rule.parent in seen and rule.probability and weight(rule.children)]
    if all(ends[symbol] > 1 - 1e-12 for symbol in seen):
        return rules  # all trees end: no probability changes by a bit
    rules = [rule._replace(probability=rule.probability * weight(rule.children)) for rule in rules]
    sums: dict[str, float] = defaultdict(float)
    for rule in rules:
        sums[rule.parent] += rule.probability
    return [rule._replace(probability=rule.probability / sums[rule.parent]) for rule in rules]


def _ending(origin: Origin, whole: GrammarArrays) -> dict[str, float]:
    """The probability that a derivation from each symbol of the rules comes to an end."""
    shape, ends = origin.shape, dict.fromkeys(origin.shape.symbols, 0.0)
    for name, p in zip(whole.symbols, whole.branching.ending() * whole.branching.generating(), strict=True):
        symbol, half = shape.half_of[name]
        ends[shape.symbols[symbol]] += float(origin.shares[symbol, half] * p)
    return ends


def pruned_arrays(grammar: GrammarArrays) -> dict[str, Any]:
    """Keywords for `of_arrays` of a binary grammar without what no tree over words holds; see `Grammar.pruned`.

    Symbols keep their names, and the rules that it was made from go.
    """
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
    return {
        "nonterminals": (name for name, kept in zip(grammar.nonterminals, keep[:n], strict=True) if kept),
        "preterminals": (name for name, kept in zip(grammar.preterminals, keep[n:], strict=True) if kept),
        "words": (grammar.words[i] for i in used),
        "start": start / (start.sum() if (ends[keep] < 1).any() else 1.0),
        "parents": numbers[parents],
        "left": numbers[left],
        "right": numbers[right],
        "rule_probs": probs / np.bincount(parents, probs)[parents] if (ends[keep] < 1).any() else probs,
        "tags": numbers[n:][grammar.tags[spelled]] - keep[:n].sum(),
        "tokens": words,
        "word_probs": grammar.word_probs[spelled],
        "lexicon": grammar.lexicon,
        "transformed": grammar.transformed,
    }
