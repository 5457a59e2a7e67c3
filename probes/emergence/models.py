"""The models to measure: folders, hub ids, models in memory, and the checkpoints on the way that training kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pcfg.devices import Device, working_device
from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
from pcfg.learning.kept_weights import kept_folders
from probes.emergence.divergences import MaskedLanguageModel
from probes.errors import ProbeModelError, ProbeOptionError
from probes.loading import load_module, load_tokenizer
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.tasks.readout import position_limit

Model = str | Path | Checkpoint | MaskedLanguageModel


@dataclass(frozen=True)
class Loaded:
    """A model with what a report says of it.

    Attributes:
        step: of training, for a checkpoint on the way.
        grammar: fingerprint of the grammar that lies beside it; None where there is none.
    """

    name: str
    step: int | None
    module: Any
    tokenizer: Any
    grammar: str | None

    @property
    def most_words(self) -> int:
        """Words of a sentence that fit into the position table."""
        return (position_limit(self.module) or 1 << 30) - 2


def load_models(models: Model | Sequence[Model], training: bool | None, device: Device | None) -> list[Loaded]:
    """Load models; before a single one, its checkpoints on the way.

    Args:
        training: whether to take those: True raises where there are none, None takes what there is.

    Raises:
        ProbeOptionError: no models, or no checkpoints. ProbeModelError: not a masked language model.
    """
    given: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    if not given:
        raise ProbeOptionError("there is no model to measure: name one or more in `models`")
    before = list(_on_the_way(given[0], device)) if len(given) == 1 and training is not False else []
    if training and not before:
        what = "several models are named" if len(given) > 1 else f"{given[0]} holds none"
        raise ProbeOptionError(
            f"`training` asks for checkpoints on the way, and {what}: train with surgery pcfg pretrain --keep 8, or name the checkpoints one by one"
        )
    return before + [_load(model, number, device) for number, model in enumerate(given, 1)]


def _on_the_way(model: Model, device: Device | None) -> Iterator[Loaded]:
    if isinstance(model, str | Path):
        for step, path in kept_folders(model).items():
            yield replace(_load(path, 0, device), name=f"step {step:,}", step=step)
    elif not isinstance(model, Checkpoint):
        for step in getattr(model, "kept", ()):
            whole = _load(model, 1, device)
            yield replace(whole, name=f"step {step:,}", step=step, module=model.at(step))  # type: ignore[attr-defined]


def _load(model: Model, number: int, device: Device | None) -> Loaded:
    if not isinstance(model, str | Path | Checkpoint):
        own, name = getattr(model, "grammar", None), getattr(model, "name", f"model {number}")
        beside = own.fingerprint if isinstance(own, Grammar) else None
        return Loaded(str(name), None, model.module, model.tokenizer, beside)
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
    tokenizer = load_tokenizer(checkpoint)
    module, head, causal = load_module(checkpoint, None, working_device(device))
    if causal or not head:
        what = "predicts next words" if causal else "has no trained head for masked words"
        raise ProbeModelError(f"{checkpoint} {what}: name a masked language model, as surgery pcfg pretrain makes")
    file = Path(checkpoint.folder) / GRAMMAR_FILE
    return Loaded(str(checkpoint), None, module, tokenizer, Grammar.load(file).fingerprint if file.exists() else None)
