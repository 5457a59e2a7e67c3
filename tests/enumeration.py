"""Every tree of a small grammar over a sentence, by plain recursion: what exact inference is held to."""

import math
from collections import Counter, defaultdict

import numpy as np

from pcfg.grammar import Grammar
from pcfg.trees import Tree


def all_trees(grammar, sentence):
    """Every tree over the words with its probability, best first."""
    binary, lexical = defaultdict(list), grammar.lexical
    for (parent, left, right), p in grammar.binary.items():
        if p:
            binary[parent].append((left, right, p))

    def over(symbol, i, j):
        found = []
        if j - i == 1 and lexical.get((symbol, sentence[i])):
            found.append((Tree(symbol, (sentence[i],)), lexical[symbol, sentence[i]]))
        for left, right, p in binary[symbol]:
            for m in range(i + 1, j):
                rights = over(right, m, j)
                found += (
                    [(Tree(symbol, (x, y)), p * q * r) for x, q in over(left, i, m) for y, r in rights]
                    if rights
                    else []
                )
        return found

    trees = [(tree, p * q) for root, p in grammar.roots.items() for tree, q in over(root, 0, len(sentence))]
    return sorted(trees, key=lambda found: -found[1])


def used(tree):
    """How often a tree uses each rule: ("root", A), (A, B, C) or (T, word)."""
    counts = Counter([("root", tree.label)])
    for node in tree.nodes():
        counts[node.label, *(child if isinstance(child, str) else child.label for child in node.children)] += 1
    return counts


def log_weight(grammar, tree):
    """Log probability of a tree, rule by rule; -inf where the grammar lacks one."""
    table = {("root", name): p for name, p in grammar.roots.items()} | grammar.binary | grammar.lexical
    return sum(n * math.log(table[rule]) if table.get(rule) else -math.inf for rule, n in used(tree).items())


def sparse_grammar(seed):
    """A random grammar of few rules, some of probability 0, over three words."""
    random = np.random.default_rng(seed)
    inner, tags = int(random.integers(1, 4)), int(random.integers(1, 4))
    full = inner * (inner + tags) ** 2
    made = Grammar.random(inner, tags, 3, seed, rules=int(random.integers(inner, max(inner + 1, full // 2))))
    probs = np.where(random.random(3 * tags) < 0.3, 0.0, made.word_probs)
    probs[::3] += 0.01
    return made.replaced(word_probs=probs / np.bincount(made.tags, probs)[made.tags])


def random_sentence(grammar, seed, n=None):
    """Words drawn evenly: not every sentence has a parse."""
    random = np.random.default_rng(seed)
    return [str(word) for word in random.choice(grammar.words, n or int(random.integers(1, 6)))]
