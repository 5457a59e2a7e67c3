"""Every tree of a small grammar over a sentence, by plain recursion: what exact inference is held to."""

import math
from collections import Counter, defaultdict

import numpy as np

from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Word
from pcfg.treebanks.trees import Tree


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


def rule_trees(rules, start, sentence, steps=6):
    """Every tree of rules of any shape over the words, best first: tree, probability, uses of each (parent, children).

    Unary rules follow each other `steps` times at most. A word beside others stands under a symbol /word of its own.
    """
    own = defaultdict(list)
    for rule in rules:
        if rule.probability:
            own[rule.parent].append(rule)

    def one(child, i, j, left):
        """Trees of a symbol, or a word beside others."""
        if not isinstance(child, Word):
            return over(child, i, j, left)
        return [(Tree(f"/{child.text}", (child.text,)), 1.0, Counter())] if sentence[i:j] == [child.text] else []

    def several(children, i, j):
        if not children:
            return [((), 1.0, Counter())] if i == j else []
        return [
            ((tree, *trees), p * q, used + more)
            for m in range(i + 1, j - len(children) + 2)
            for tree, p, used in one(children[0], i, m, steps)
            for trees, q, more in several(children[1:], m, j)
        ]

    def over(symbol, i, j, left):
        found = []
        for parent, children, p in own[symbol]:
            use = Counter([(parent, children)])
            if len(children) > 1:
                below = several(children, i, j)
            elif isinstance(children[0], Word):
                below = [((children[0].text,), 1.0, Counter())] if sentence[i:j] == [children[0].text] else []
            else:
                below = [((tree,), q, used) for tree, q, used in (over(children[0], i, j, left - 1) if left else [])]
            found += [(Tree(parent, trees), p * q, use + used) for trees, q, used in below]
        return found

    return sorted(over(start, 0, len(sentence), steps), key=lambda found: -found[1])
