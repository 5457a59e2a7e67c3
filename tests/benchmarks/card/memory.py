"""What is told before work of the memory it takes, against torch's peak on a card: within 15% either way."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pcfg import Grammar
from pcfg.learning.pretraining import PretrainRecipe, pretrain
from pcfg.learning.pretraining_memory import pretrain_need
from surgery import Recipe, graft, tune
from surgery.grafting.memory_need import graft_need
from surgery.memory import Need, size
from surgery.tuning.memory_need import tune_need
from tests.benchmarks.card.graft import checkpoints, task
from tests.benchmarks.card.measure import Line, peak_bytes

MOST = 0.15
SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def lines() -> Iterator[Line]:
    """A LLaMA of 0.3 billion weights in bfloat16, tuned and grafted, and a RoBERTa of 6 x 6 x 192 pretrained."""
    with tempfile.TemporaryDirectory() as scratch:
        base, tuned = checkpoints(Path(scratch), SIZES)
        rows, recipe = task(), Recipe(steps=5)
        yield _line(
            "tune", tune_need(base, rows, recipe, device="cuda"), lambda: tune(base, rows, recipe, device="cuda")
        )
        how: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "weights": 20_000}
        yield _line("graft", graft_need(base, rows, **how), lambda: graft(base, tuned, rows, **how))
    grammar = Grammar.random(20, 45, words=500, seed=0, temperature=2.0)
    pretraining = PretrainRecipe(sentences=20_000, max_length=20, batch_size=256, evaluation=50)
    need = pretrain_need(grammar, pretraining, device="cuda")
    yield _line("pretrain 6 x 6 x 192", need, lambda: pretrain(grammar, pretraining, device="cuda"))


def _line(name: str, need: Need, run: Callable[[], Any]) -> Line:
    measured = peak_bytes(run)
    ratio = min(need.total, measured) / max(need.total, measured, 1)
    parts = ", ".join(f"{part} {size(count)}" for part, count in need.parts.items())
    return Line(f"memory told: {name}", size(need.total), size(measured), ratio, 1 - MOST, need.note or parts)
