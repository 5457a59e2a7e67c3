"""A transformer that fine-tunes a smaller one while it reads: the whole of it in Python, on a model made on the spot.

python examples/tint.py [OUTPUT]        # under a minute; OUTPUT is a folder that isn't there yet
"""

import sys
from pathlib import Path

import torch

from surgery.tint import TinT, count, run_text, verify
from surgery.tint.example import docstrings, train_small

output = Path(sys.argv[1] if len(sys.argv) > 1 else "tint-example")
text = docstrings(150_000)
cut = int(0.9 * len(text))
model, tokenizer = train_small(text[:cut], width=48, layers=2, vocabulary=512, window=64, steps=100, batch=4)
held = torch.tensor(tokenizer(text[cut:])["input_ids"])

# How big is the transformer that simulates it? And OPT-125M's, without building or fetching either.
for size in (count(model), count("opt-125m")):
    print(f"{size.shape.weights:,} weights, simulated by {size.total:,}")

# One forward pass: learn from the first 48 tokens, then read the rest with the updated weights.
ids = held[None, :64]
mask = torch.arange(64)[None] < 48
fast = TinT.build(model, mode="paper", scale=100.0)
out = fast(ids, train_mask=mask, lr=1e-3)
print(f"loss on the 47 training pairs {float(out.update.losses[0, 0]):.1f}; logits {list(out.logits.shape)}")

# The same, done by the weight matrices of an actual transformer over prefixes and tokens.
whole = TinT.build(model, mode="paper", scale=100.0, materialise=True)
difference = (whole(ids, train_mask=mask, lr=1e-3).logits - out.logits).abs().max()
print(
    f"the transformer itself: {sum(p.numel() for p in whole.transformer.parameters()):,} weights; {'agrees' if difference < 1e-3 else 'differs'}"
)

checked = verify(model, ids, sweep=False)
for line in checked.summary:
    print(line)
run = run_text(model, held, shares=(0.5,), window=64, windows=24, dev_windows=8, batch_size=8)
print(run.markdown())
checked.save(output / "verification")
run.save(output / "run")
