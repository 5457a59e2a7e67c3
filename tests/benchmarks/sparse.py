"""The sparse engine on a grammar from NLTK's treebank sample: ms a sentence by length and by rules, and NLTK's parser.

NLTK_DATA=... OMP_NUM_THREADS=1 python -m tests.benchmarks.sparse [FIGURE.png]

The grammar is read off the trees here, in as few lines as do, so that this file measures the engine and nothing else:
unary chains collapsed, functions and traces dropped, right-binarised with a parent and past siblings, rare words as one.
"""

import math
import re
import sys
import time
from collections import Counter

import nltk
import numpy as np

from pcfg.sparse.engine import SparseRules, inside_outside, viterbi

TRAIN, RARE, LONGEST = 3414, 5, 40
UNKNOWN = "<unk>"


def cleaned(tree):
    """A tree without traces and functions, its unary chains collapsed, as (label, children or word); None if empty."""
    if isinstance(tree[0], str):
        return None if tree.label() == "-NONE-" else (tree.label(), tree[0])
    children = [child for child in map(cleaned, tree) if child]
    if not children:
        return None
    label = re.split("[-=|]", tree.label())[0] or tree.label()
    if len(children) == 1:
        return (f"{label}+{children[0][0]}", children[0][1])
    return (label, children)


def binarised(tree, vertical, horizontal, parent="TOP"):
    """Nested (label, left, right) and (tag, word), labels bearing their parents and the siblings already passed."""
    label, children = tree
    if isinstance(children, str):
        return (label, children)
    name = f"{label}^{parent}" if vertical > 1 else label
    children = [(child[0], binarised(child, vertical, horizontal, label)) for child in children]
    right = children[-1][1]
    for k in range(len(children) - 2, 0, -1):
        past = ",".join(sibling for sibling, _ in children[max(0, k - horizontal) : k])
        right = (f"@{name}|{past}", children[k][1], right)
    return (name, children[0][1], right)


def treebank(vertical=2, horizontal=1):
    """Rules, start, word scores by word, and the test sentences of `LONGEST` words or fewer."""
    trees = [cleaned(tree) for tree in nltk.corpus.treebank.parsed_sents()]
    roots, binary, lexical, seen = Counter(), Counter(), Counter(), Counter()
    trained = [binarised(tree, vertical, horizontal) for tree in trees[:TRAIN] if not isinstance(tree[1], str)]
    for tree in trained:
        seen.update(words(tree))
    for tree in trained:
        roots[tree[0]] += 1
        count(tree, binary, lexical, seen)
    nonterminals, tags = sorted({rule[0] for rule in binary}), sorted({tag for tag, _ in lexical})
    number = {name: k for k, name in enumerate(["N" + n for n in nonterminals] + ["T" + t for t in tags])}
    heads, tagged = Counter(), Counter()
    for rule, times in binary.items():
        heads[rule[0]] += times
    for (tag, _), times in lexical.items():
        tagged[tag] += times
    rules = SparseRules.build(
        len(nonterminals),
        len(tags),
        np.array([number["N" + rule[0]] for rule in binary], np.int32),
        np.array([number[rule[1]] for rule in binary], np.int32),
        np.array([number[rule[2]] for rule in binary], np.int32),
        np.array([times / heads[rule[0]] for rule, times in binary.items()]),
    )
    start = np.zeros(len(number))
    for name, times in roots.items():
        start[number["N" + name]] = times / len(trained)
    scores = {}
    for (tag, word), times in lexical.items():
        scores.setdefault(word, np.zeros(len(tags)))[number["T" + tag] - len(nonterminals)] = times / tagged[tag]
    test = [words(binarised(tree, 1, 0)) for tree in trees[TRAIN:]]
    return rules, start, scores, [sentence for sentence in test if len(sentence) <= LONGEST]


def words(tree):
    """A tree's words."""
    return [tree[1]] if len(tree) == 2 else words(tree[1]) + words(tree[2])


def count(tree, binary, lexical, seen):
    """Add a tree's rules; a child is named with N or T, so that a tag and a nonterminal may share a name."""
    if len(tree) == 2:
        lexical[tree[0], tree[1] if seen[tree[1]] >= RARE else UNKNOWN] += 1
        return
    binary[(tree[0], *(("T" if len(child) == 2 else "N") + child[0] for child in tree[1:]))] += 1
    count(tree[1], binary, lexical, seen)
    count(tree[2], binary, lexical, seen)


def emissions(scores, sentence):
    """Word scores [n, T]."""
    return np.array([scores.get(word, scores[UNKNOWN]) for word in sentence])


def clock(function, sentences):
    """Milliseconds of this thread's CPU a sentence: the better of two rounds, after one that warms up."""
    rounds = []
    for _ in range(3):
        began = time.thread_time()
        for sentence in sentences:
            function(sentence)
        rounds.append(1e3 * (time.thread_time() - began) / len(sentences))
    return min(rounds[1:])


def everything(rules, start, scores):
    """All marginals of a sentence, but for the dense array of labels."""
    chart = inside_outside(rules, start, scores)
    return chart.span_marginals(), chart.rule_counts(), chart.tag_posteriors(), chart.start_counts()


def by_rules():
    """Cost against the number of rules, of grammars of rising order: (rules, Viterbi, marginals)."""
    found = []
    for vertical, horizontal in ((1, 0), (1, 1), (2, 1), (2, 2), (2, 3)):
        rules, start, scores, sentences = treebank(vertical, horizontal)
        given = [emissions(scores, sentence) for sentence in sentences]
        best = clock(lambda x, r=rules, s=start: viterbi(r, s, x), given)
        every = clock(lambda x, r=rules, s=start: everything(r, s, x), given)
        found.append((rules.tables.rules, best, every))
        print(
            f"v={vertical} h={horizontal}: {rules.nonterminals} + {rules.preterminals} symbols, {rules.tables.rules} rules, "
            f"{len(given)} sentences, {sum(map(len, given)) / len(given):.1f} words: "
            f"Viterbi {best:.2f} ms, marginals {every:.2f} ms",
            flush=True,
        )
    return found


def by_length(rules, start, scores, sentences):
    """Cost against the number of words: (words, Viterbi, marginals)."""
    found = []
    for n in (5, 10, 15, 20, 25, 30, 35, 40):
        given = [emissions(scores, sentence) for sentence in sentences if abs(len(sentence) - n) < 2]
        words = sum(map(len, given)) / len(given)
        best, every = (
            clock(f, given) for f in (lambda x: viterbi(rules, start, x), lambda x: everything(rules, start, x))
        )
        found.append((words, best, every))
        print(f"n = {words:.1f} ({len(given)} sentences): Viterbi {best:.2f} ms, marginals {every:.2f} ms", flush=True)
    return found


def draw_costs(path, lengths, sizes):
    """How the cost of a sentence grows with its words and with the rules, each beside a straight power of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    cube = np.array(lengths)[:, 0] ** 3
    left.loglog(np.array(lengths)[:, 0], cube * lengths[3][2] / cube[3], ":", color="0.4", label="words cubed")
    titles = ("words of the sentence (v = 2, h = 1)", "binary rules (sentences of 22.4 words)")
    ticks = (5, 10, 20, 40), (3000, 5000, 10000)
    for axes, rows, title, marks in zip((left, right), (lengths, sizes), titles, ticks, strict=True):
        x, best, every = np.array(rows).T
        axes.loglog(x, every, "s-", color="#b2182b", label="all marginals")
        axes.loglog(x, best, "o--", color="#2166ac", label="most probable tree")
        axes.set_xlabel(title)
        axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    left.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    left.set_ylabel("ms a sentence, one thread")
    left.legend()
    figure.savefig(path, dpi=150)


def against_nltk(rules, start, scores, sentences, lengths=(5, 7, 9)):
    """NLTK's parser on a sentence of each length, with the same grammar and the words of the sentence alone."""
    for n in lengths:
        given = (emissions(scores, sentence) for sentence in sentences if len(sentence) == n)
        given = next(x for x in given if viterbi(rules, start, x)[1] is not None)
        parser = nltk.ViterbiParser(as_nltk(rules, start, given), max_time=None)
        began = time.thread_time()
        tree = next(parser.parse([f"w{i}" for i in range(n)]))
        theirs = 1e3 * (time.thread_time() - began)
        ours = clock(lambda x: viterbi(rules, start, x), [given] * 20)
        same = abs(math.log(tree.prob()) - viterbi(rules, start, given)[0])
        print(
            f"n = {n}: NLTK {theirs:,.0f} ms, ours {ours:.3f} ms: {theirs / ours:,.0f} times; log scores differ by {same:.0e}"
        )


def as_nltk(rules, start, scores):
    """The grammar for NLTK; a CFG of rules with probabilities, since words that aren't there leave sums below 1."""
    names, table = [nltk.Nonterminal(f"X{k}") for k in range(len(start))], rules.tables
    parents = np.repeat(np.arange(len(start)), np.diff(table.parent_start))
    root, rule = nltk.Nonterminal("ROOT"), nltk.grammar.ProbabilisticProduction
    made = [rule(root, [names[k]], prob=start[k]) for k in np.flatnonzero(start)]
    made += [
        rule(names[a], [names[b], names[c]], prob=p)
        for a, b, c, p in zip(parents, table.left, table.right, table.unscaled, strict=True)
    ]
    for i, tag in zip(*np.nonzero(scores), strict=True):
        made.append(rule(names[rules.nonterminals + tag], [f"w{i}"], prob=scores[i, tag]))
    return nltk.grammar.CFG(root, made)


if __name__ == "__main__":
    by_size = by_rules()
    chosen = treebank()
    by_words = by_length(*chosen)
    against_nltk(*chosen)
    if sys.argv[1:]:
        draw_costs(sys.argv[1], by_words, by_size)
