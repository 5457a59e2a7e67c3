"""Compiled transformers of NLTK's treebank sample: exact where one fits, and counted where none does."""

EXACT = """
import numpy as np
from pcfg import Grammar
from pcfg.compiled import compile_transformer
from pcfg.learning.pruning_by_use import prune
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank
from tests.benchmarks.compiled import difference, known

trees = clean_trees(nltk_treebank()[:400])
whole = Grammar.from_trees(trees, v=1, h=0, min_count=5, smooth_lexicon=False, annotate_tags=False)
grammar = prune(whole, 10)
model, random = compile_transformer(grammar, max_length=20), np.random.default_rng(0)
for n in (1, 2, 7, 13, 20):
    sentences = [known(grammar, tree.words()) for tree in trees if len(tree.words()) == n][:2]
    sentences.append(tuple(random.choice(grammar.words, n)))
    print(len(grammar.nonterminals), len(sentences), difference(model, grammar, sentences))
"""

COUNTED = """
import torch
from pcfg import Grammar
from pcfg.compiled import InsideOutsideConfig, InsideOutsideTransformer
from pcfg.compiled.sizes import Sizes
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank

grammar = Grammar.from_trees(clean_trees(nltk_treebank()), smooth_lexicon=False)
sizes = Sizes.of(grammar, 25)
with torch.device("meta"):
    config = InsideOutsideConfig(grammar.nonterminals, grammar.preterminals, max_words=25, vocab_size=len(grammar.words) + 5)
    model = InsideOutsideTransformer(config)
print(sizes.symbols, sizes.stored, sum(p.numel() for p in model.parameters()), sizes.width, model.slots.width, len(model.layers))
"""


def test_a_pruned_treebank_s_posteriors_are_the_chart_s(untyped):
    """Labels, tags and words of treebank sentences and of drawn words; all lengths: `tests.benchmarks.compiled exact`."""
    for line in untyped(EXACT).splitlines():
        symbols, sentences, worst = line.split()
        assert 5 < int(symbols) <= 10 and int(sentences) >= 1 and float(worst) < 1e-10


def test_the_whole_treebank_s_size(untyped):
    """The arithmetic is that of the model on the meta device, for a grammar of more than a thousand symbols."""
    symbols, *counts = map(int, untyped(COUNTED).split())
    assert symbols > 1600
    assert counts[0] == counts[1] > 1e9 and counts[2] == counts[3] and counts[4] == 48
