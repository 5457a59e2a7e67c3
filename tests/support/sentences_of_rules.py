"""Sentences of rules of any shape by summing weights of word lists, and small grammars to hold them to."""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from pcfg.grammars.rules import Rule, Word

ROOTS = {"S": 0.75, "N": 0.25}
BINARY = {("S", "N", "VP"): 0.5, ("S", "S", "VP"): 0.5, ("VP", "V", "N"): 1.0}
LEXICAL = {("N", "dogs"): 0.25, ("N", "cats"): 0.75, ("V", "see"): 1.0}
JOHN = """
S -> NP VP [1.0]
NP -> Det N [0.5] | NP PP [0.25] | 'John' [0.1] | 'I' [0.15]
Det -> 'the' [0.8] | 'my' [0.2]
N -> 'man' [0.5] | 'telescope' [0.5]
VP -> VP PP [0.1] | V NP [0.7] | V [0.2]
V -> 'ate' [0.35] | 'saw' [0.65]
PP -> P NP [1.0]
P -> 'with' [0.61] | 'under' [0.39]
"""


def same(one, other):
    return (one.roots, one.binary, one.lexical) == (other.roots, other.binary, other.lexical)


def sentences(rules, roots, longest):
    """{sentence: probability} of all sentences up to a length, of rules of any shape, by summing weights of word lists.

    A round applies every rule once, so that weights[A][words] is the sum over trees of one level more.
    """
    weights, change = {rule.parent: {} for rule in rules}, 1.0
    while change > 1e-16:
        new = {parent: defaultdict(float) for parent in weights}
        for rule in rules:
            found = {(): rule.probability}
            for waiting, child in zip(range(len(rule.children) - 1, -1, -1), rule.children, strict=True):
                own = {(child.text,): 1.0} if isinstance(child, Word) else weights[child]
                pairs = itertools.product(found.items(), own.items())
                found = {a + b: 0.0 for a, b in itertools.product(found, own) if len(a + b) + waiting <= longest}
                for (a, p), (b, q) in pairs:
                    if a + b in found:
                        found[a + b] += p * q
            for words, p in found.items():
                new[rule.parent][words] += p
        change = max(
            abs(p - weights[a].get(words, 0.0)) for a, own in new.items() for words, p in [((), 0), *own.items()]
        )
        weights = new
    total = defaultdict(float)
    for root, p in roots.items():
        for words, weight in weights[root].items():
            total[words] += p * weight
    return dict(total)


def rules_of(grammar):
    rules = [Rule(a, (b, c), p) for (a, b, c), p in grammar.binary.items()]
    return rules + [Rule(t, (Word(w),), p) for (t, w), p in grammar.lexical.items()]


def assert_same_sentences(grammar, rules, start, longest=4):
    mine = sentences(rules_of(grammar), grammar.roots, longest)
    theirs = sentences(rules, {start: 1.0}, longest)
    assert {words for words, p in mine.items() if p} == {words for words, p in theirs.items() if p}
    for words, p in theirs.items():
        assert mine.get(words, 0.0) == pytest.approx(p, abs=1e-12)


class Lexicon:
    """Every tag fits every word alike."""

    def scores(self, sentence):
        return np.ones((len(sentence), 2))
