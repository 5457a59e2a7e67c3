"""F1 on NLTK's Penn sample as Markdown: NLTK_DATA=../shared/nltk_data python -m tests.benchmarks.treebank [--tuning].

Trains on the first 3,414 trees and measures on the last 500, those of 40 words or fewer, words as input, a sentence without
a parse scoring 0 (EVALB's own figure leaves it out). With --tuning it trains on 3,014 and measures on trees 3,015-3,414: v, h,
tag annotation, smoothing, the signatures' endings and the cost of a label were chosen there and there alone.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.evalb import left_branching, random_branching, right_branching, score_labelled, score_unlabelled
from pcfg.treebanks.nltk_sample import nltk_treebank
from pcfg.treebanks.transforms import undo
from pcfg.treebanks.trees import Tree

COST = 0.4
SETTINGS = [  # v, h, tags annotated, lexicon smoothed
    *((1, 0, False, False), (1, 1, False, False), (2, 1, False, False), (2, 2, False, False)),
    *((1, 1, False, True), (2, 1, False, True), (1, 0, True, True), (1, 1, True, True)),
    *((2, 0, True, True), (2, 1, True, True), (2, 2, True, True), (2, math.inf, True, True)),
]


def timed(parse: Callable[[list[str]], Tree | None], gold: Sequence[Tree]) -> tuple[list[Tree | None], float]:
    """Every sentence's parse, and milliseconds of this thread's CPU a sentence."""
    sentences = [tree.words() for tree in gold]
    parse(sentences[0])  # compiles
    begun = time.thread_time()
    return [parse(words) for words in sentences], 1e3 * (time.thread_time() - begun) / len(sentences)


def row(train: list[Tree], gold: list[Tree], v: int, h: int | float, tags: bool, smooth: bool) -> str:
    """A line of the table."""
    grammar = Grammar.from_trees(train, v=v, h=h, annotate_tags=tags, smooth_lexicon=smooth)

    def best(words: list[str]) -> Tree | None:
        tree = inside_outside(grammar, [words]).best_trees()[0]
        return tree and undo(tree)

    def least_risk(words: list[str]) -> Tree | None:
        return inside_outside(grammar, [words]).mbr_trees(COST)[0]

    cells = [f"{v}", f"{h:g}", "yes" if tags else "no", "yes" if smooth else "no"]
    cells += [f"{len(grammar.start):,}", f"{len(grammar.parents):,}"]
    for parse in (best, least_risk):
        parses, taken = timed(parse, gold)
        labelled, unlabelled = score_labelled(gold, parses), score_unlabelled(gold, parses)
        assert labelled.valid is not None
        cells += [f"{100 * labelled.f1:.1f}", f"{100 * labelled.valid.f1:.1f}", f"{100 * unlabelled.f1:.1f}"]
        cells += [f"{100 * labelled.complete_match:.1f}", f"{taken:.1f}"]
    cells.append(f"{100 * labelled.unparsed / labelled.sentences:.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The table, then the baselines, then what the numbers are."""
    bank = nltk_treebank()
    first, last = (3014, 3414) if "--tuning" in sys.argv else (3414, 3914)
    train, every = clean_trees(bank[:first]), clean_trees(bank[first:last], collapse=False)
    gold = [tree for tree in every if len(tree.words()) <= 40]
    scores = "labelled | EVALB's own | unlabelled | complete | ms"
    print(
        f"| v | h | parents on tags | smoothed lexicon | symbols | rules | Viterbi: {scores} | minimum risk: {scores} "
        "| no parse % |\n|" + "---|" * 17
    )
    for setting in SETTINGS:
        print(row(train, gold, *setting), flush=True)
    random = np.random.default_rng(0)
    for name, branch in (
        ("right-branching", right_branching),
        ("left-branching", left_branching),
        ("random splits", lambda words: random_branching(words, random)),
    ):
        parses = [branch(tree.words()) for tree in gold]
        ours, theirs = (f"{100 * score_unlabelled(gold, parses, kim=kim).f1:.1f}" for kim in (False, True))
        print(f"| {name} | | | | | | | | {ours} (Kim et al.: {theirs}) |" + " |" * 8)
    print(f"\n{len(gold)} sentences; minimum risk with a cost of {COST} a label; ms a sentence, on one thread.")
    print(f"Labelled: {score_labelled(gold, gold).convention}.\nUnlabelled: {score_unlabelled(gold, gold).convention}.")


if __name__ == "__main__":
    main()
