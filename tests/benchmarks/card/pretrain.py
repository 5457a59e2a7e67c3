"""Pretraining on a card: steps a second of a model of 6 layers, 6 heads and width 192, batches of 256 sentences of 20 words."""

from collections.abc import Iterator

from pcfg import Grammar
from pcfg.learning.pretraining import PretrainRecipe, pretrain
from tests.benchmarks.card.measure import Line, holds

BEFORE = 26.0  # steps a second of transformers' trainer with its collator, on an H200


def lines() -> Iterator[Line]:
    """A few hundred steps, captures included."""
    grammar = Grammar.random(20, 45, words=500, seed=0, temperature=2.0)
    recipe = PretrainRecipe(sentences=200_000, max_length=20, batch_size=256, evaluation=50)
    found = pretrain(grammar, recipe, device="cuda").report
    pace = found["steps_per_second"]
    yield Line("pretrain 6 x 6 x 192, batch 256", f"{pace:.0f} steps/s", f"{BEFORE:.0f} steps/s", pace / BEFORE, 4.0)
    yield holds("pretrain: steps are captured", found["not_captured"] is None, found["not_captured"] or "")
