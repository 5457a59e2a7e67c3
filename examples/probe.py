"""A model trained on a grammar for some seconds, and what each of its layers knows of the parse: the whole of it in Python.

python examples/probe.py [OUTPUT]        # about a minute; OUTPUT is the folder of the report
"""

import sys
from pathlib import Path

from pcfg import Grammar, sample
from pcfg.learning.pretraining import PretrainRecipe, pretrain
from probes import ProbeReport, probe_spans

output = Path(sys.argv[1] if len(sys.argv) > 1 else "probe-report")

grammar = Grammar.from_text("""
    S -> NP VP [1.0]
    NP -> Det N [0.6] | NP PP [0.2] | 'fish' [0.2]
    VP -> V NP [0.7] | VP PP [0.3]
    PP -> P NP [1.0]
    Det -> 'the' [0.7] | 'that' [0.3]
    N -> 'fish' [0.4] | 'light' [0.4] | 'watch' [0.2]
    V -> 'light' [0.5] | 'watch' [0.5]
    P -> 'like' [0.5] | 'with' [0.5]
""")
recipe = PretrainRecipe(layers=1, heads=2, width=32, sentences=3000, max_length=10, rate=3e-3, evaluation=100)
model = pretrain(grammar, recipe, device="cpu")
model.save(output / "mlm")
excess = model.loss.to_json()["excess"]
print(f"excess loss {excess['value']:.3f} nats [{excess['low']:.3f}, {excess['high']:.3f}] above the exact posterior's")

report = probe_spans(output / "mlm", grammar, sample(grammar, 120, seed=1, max_length=10), seeds=2, device="cpu")
report.save(output / "report")
print(report.text())
share = report.find("span-two-layer", "model", "f1 share", report.best_layer)
assert share is not None
print(f"layer {report.best_layer}: trees of F1 {share.value:.3f} of what the grammar's own reach")
print("not beaten by:", sorted({v.control for v in ProbeReport.load(output / "report").verdicts if not v.beats}))
