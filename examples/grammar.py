"""A grammar typed in, sampled, parsed, asked what a masked word was, and fitted to text: the whole of it in Python.

python examples/grammar.py [OUTPUT]        # some seconds; OUTPUT is the grammar file to write
"""

import sys
from collections import Counter
from pathlib import Path

from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.inference.masked_words import masked_posteriors
from pcfg.learning.expectation_maximization import fit
from pcfg.sampling.sampler import sample

output = Path(sys.argv[1] if len(sys.argv) > 1 else "example.pcfg.json")

grammar = Grammar.from_text("""
    S -> NP VP [1.0]
    NP -> Det N [0.6] | NP PP [0.2] | 'her' [0.1] | 'stars' [0.1]
    VP -> V NP [0.7] | VP PP [0.3]
    PP -> P NP [1.0]
    Det -> 'the' [0.7] | 'a' [0.3]
    N -> 'man' [0.5] | 'dog' [0.3] | 'telescope' [0.2]
    V -> 'saw' [1.0]
    P -> 'with' [1.0]
""")
print(f"{len(grammar.symbols)} symbols; sentences have {grammar.expected_length:.3f} words on average")

drawn = sample(grammar, 500, seed=0, max_length=12)
print(f"{100 * drawn.acceptance:.1f}% of all sentences have 12 words or fewer; one is: {' '.join(drawn[0])}")

sentence = ["her", "saw", "the", "dog", "with", "stars"]
chart = inside_outside(grammar, [sentence])
print(f"log Z {float(chart.log_z[0]):.4f}, entropy of the trees {chart.entropy()[0]:.4f} nats")
print("likeliest:", grammar.undo(chart.best_trees()[0]))
for start, end in ((1, 4), (2, 6)):
    print(f"{' '.join(sentence[start:end])!r} is a constituent: {float(chart.span_marginals[0, start, end]):.3f}")

posterior = masked_posteriors(grammar, sentence, [3]).words[0]
print(
    "her saw the ___ with stars:", {w: round(float(p), 3) for w, p in zip(grammar.words, posterior, strict=True) if p}
)

rules = grammar.origin.rules
shares = Counter(rule.parent for rule in rules)  # the same rules, all of a symbol alike
even = Grammar.from_rules([rule._replace(probability=1 / shares[rule.parent]) for rule in rules], "S")
fitted = fit(even, list(drawn), rounds=5)
print("log-likelihood by round:", *(f"{value:.2f}" for value in fitted.log_likelihoods))
fitted.grammar.save(output)
