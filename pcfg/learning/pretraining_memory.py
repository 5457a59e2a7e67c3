"""What pretraining needs of a device's memory: two of its own steps rehearsed on a batch of the longest sentences."""

from collections.abc import Callable
from typing import Any

import torch

from pcfg.devices import Device, working_device
from pcfg.grammars.grammar import Grammar
from pcfg.inference.engines import chart_numbers
from pcfg.learning.excess_loss import generative
from pcfg.learning.masked_lm import Batch, Batches, Trainer
from pcfg.learning.pretraining_recipe import PretrainRecipe, configured
from pcfg.sampling.sampler import sample
from pcfg.sampling.tokenizer import tokenizer
from pcfg.sentences import MOST_NUMBERS, MOST_SENTENCES
from surgery.memory import Meter, Need, check_before

_LOWER = "lower `batch_size`, `max_length`, `width` or `layers`, or `sentences` for what is drawn"
_DRAWN = 500  # sentences, to know their mean length by


def pretrain_need(
    grammar: Grammar,
    recipe: PretrainRecipe | None = None,
    *,
    config: dict[str, Any] | None = None,
    keep: int = 0,
    seed: int = 0,
    device: Device | None = None,
) -> Need:
    """The memory that `pretrain` with these arguments needs at once; no weights are made and few sentences drawn for it."""
    from torch._subclasses import FakeTensorMode
    from transformers import RobertaForMaskedLM

    recipe, grammar, place = recipe or PretrainRecipe(), generative(grammar), working_device(device)
    words = tokenizer(grammar)
    settings = configured(recipe, config, words)
    drawn = sample(grammar, min(_DRAWN, recipe.sentences), seed=seed, max_length=recipe.max_length)
    count = round(float(drawn.lengths.mean()) * recipe.sentences)
    with torch.device("meta"):
        module: Any = RobertaForMaskedLM(settings)
    weights = 4 * sum(parameter.numel() for parameter in module.parameters())

    def peak() -> int:
        width = int(drawn.lengths.max()) + 2
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = module.to_empty(device=place)
            model.tie_weights()  # which putting each tensor elsewhere has undone
            if place.type == "cuda":  # as in training
                model.set_attn_implementation("eager")
            ids = torch.zeros(recipe.batch_size, width, dtype=torch.long, device=place)
            batch = Batch(ids, ids, torch.zeros(recipe.batch_size, 1, 1, width, device=place))
            row = torch.zeros(width, dtype=torch.long, device=place)
            batches = Batches(row.int(), row, row, [width], [True], recipe.batch_size, recipe.mask, seed, {})
            with Meter(place, [*model.parameters(), *model.buffers()]) as meter:
                trainer = Trainer(model.train(), batches, rate=recipe.rate, warmup=recipe.warmup)
                for _ in range(2):
                    trainer.work(batch)
                return meter.peak

    largest = min(MOST_SENTENCES, recipe.evaluation) * chart_numbers(grammar, int(drawn.lengths.max()))
    # Words and places; where they are drawn, also trees of two rules a word, and numbers.
    each, more = (4, 16) if place.type == "cuda" else (16, 40)
    charts = 8 * min(MOST_NUMBERS, largest)
    known = {"weights": weights, "AdamW": 2 * weights, "gradients": weights}
    files = {"model": weights, "checkpoints on the way": keep * weights, "state to go on from": (3 + keep) * weights}
    files = {name: size for name, size in files.items() if size}
    need = Need.of_peak("pretraining", place, known, peak, _LOWER, files)
    # Charts are made before and after training, when there are no gradients and activations.
    beyond = max(0, charts - weights - need.parts["activations"])
    on_the_way = 0 if place.type == "cuda" else keep * weights  # which are kept on the CPU
    parts = {
        **need.parts,
        "sentences": each * count + more * recipe.sentences,
        "charts beyond those": beyond,
        "checkpoints on the way": on_the_way,
    }
    return Need(need.what, place, {name: size for name, size in parts.items() if size}, _LOWER, need.files, need.note)


def check_memory(settings: Any, recipe: PretrainRecipe, find: Callable[[], Need], place: torch.device) -> None:
    """Refuse what the device's memory can't hold, as `find` says; it isn't asked where a bound from the sizes fits.

    Raises OptionError, with both sizes and what to lower.
    """
    width, inner, words = settings.hidden_size, settings.intermediate_size, settings.vocab_size
    length = recipe.max_length + 8
    weights = settings.num_hidden_layers * width * (4 * width + 2 * inner + 16) + 2 * words * (width + 1)
    layer = 40 * width + 8 * inner + 8 * settings.num_attention_heads * length
    states = recipe.batch_size * length * (settings.num_hidden_layers * layer + 8 * words)
    most = 20 * weights + 4 * states + 56 * recipe.sentences * recipe.max_length + 16 * MOST_NUMBERS
    check_before(most, find, place)
