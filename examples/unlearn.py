"""Forget a class, prove it, remember it again: the whole of it in Python, on scikit-learn's digits.

python examples/unlearn.py [OUTPUT]        # some seconds; OUTPUT is a folder that isn't there yet
"""

import sys
from pathlib import Path

from surgery.unlearning import Bottleneck, Eraser, unlearn, verify
from surgery.unlearning.example import digits

output = Path(sys.argv[1] if len(sys.argv) > 1 else "unlearn-example")
(features, labels), test = digits()

bottleneck = Bottleneck.fit_features(features, labels, codebooks=64, keys=256, key_dim=14, seed=0)
edit = unlearn(bottleneck, forget=3, via="activations")
print(f"{edit.masked:,} of {bottleneck.selector.states.size:,} keys masked to forget the {edit.edit['rows']} threes")

report = verify(bottleneck, edit, test, shadows=4, baselines=False)
for name in ("before", "after", "refitted"):
    point = report.content["points"][name]
    print(f"{name:9} forgotten {100 * point['forget_accuracy']:5.1f}%, retained {100 * point['retain_accuracy']:.1f}%")

bottleneck.save(output / "bn")
edit.save(output / "eraser")
forgot = edit.apply(bottleneck)
forgot.save(output / "forgot")
print("answers to five threes:", *forgot.predict(features[labels == 3][:5]))

Eraser.load(output / "eraser").undo(Bottleneck.load(output / "forgot")).save(output / "again")
same = all((output / "again" / file.name).read_bytes() == file.read_bytes() for file in (output / "bn").iterdir())
print(f"taken back, bit for bit: {same}")

# Exact: counted values, keys placed by other rows. Forgetting a row is C decrements.
half = len(labels) // 2
counted = Bottleneck.fit_features(
    features[:half], labels[:half], keys_from=features[half:], values="counts", codebooks=64, keys=256, key_dim=14
)
exact = verify(counted, unlearn(counted, rows=[5, 8, 13], via="counts"), test, shadows=0, baselines=False)
print(f"three rows deleted exactly: {exact.content['exact']}")
