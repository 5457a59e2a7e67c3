"""Weights kept on the way of a training: at which steps, in the state of a run, and as model folders of their own."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pcfg.errors import OptionError
from pcfg.grammars.grammar import GRAMMAR_FILE, Grammar
from surgery.files import replace_bytes
from surgery.resuming import damaged

KEPT = "checkpoints"  # in a model's folder: one folder a step
_STEP = "step-"
_FIRST = 0.01  # of the way


def steps_to_keep(steps: int, keep: int) -> list[int]:
    """Numbers of steps that grow by a constant factor from a hundredth of the way to the end, the end left out.

    Raises OptionError for fewer than 0, and for as many as there are steps or more.
    """
    if not 0 <= keep < steps:
        raise OptionError(f"`keep` is {keep}, and training makes {steps} steps: keep from 0 to {steps - 1} of them")
    grown = np.geomspace(max(1.0, _FIRST * steps), steps, keep + 1)[:-1].round().astype(int).tolist()
    for place in range(1, keep):
        grown[place] = max(grown[place], grown[place - 1] + 1)
    return [min(step, steps - keep + place) for place, step in enumerate(grown)]


def weights_of(module: Any) -> dict[str, Tensor]:
    """A copy of a model's weights on the CPU, tied ones once."""
    return {name: parameter.detach().cpu().clone() for name, parameter in module.named_parameters()}


def with_weights(module: Any, weights: Mapping[str, Tensor]) -> Any:
    """A copy of a model that has other weights."""
    copy = deepcopy(module)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(weights[name])
    return copy.eval()


def write_weights(folder: Path, step: int, weights: Mapping[str, Tensor]) -> None:
    """Write weights into the state of a run."""
    replace_bytes(folder / f"{_STEP}{step}.safetensors", save(dict(weights)))


def resumed_weights(folder: Path, steps: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """What `write_weights` left in the state of a run. Raises StateError where it is damaged or gone."""
    kept = {}
    for step in steps:
        file = folder / f"{_STEP}{step}.safetensors"
        try:
            kept[step] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise damaged(file, error) from None
    return kept


def save_kept(
    folder: Path, module: Any, tokenizer: Any, grammar: Grammar, kept: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Write kept weights as model folders, `checkpoints/step-<number>`."""
    for step, weights in kept.items():
        target = folder / KEPT / f"{_STEP}{step}"
        with_weights(module, weights).save_pretrained(target)
        tokenizer.save_pretrained(target)
        grammar.save(target / GRAMMAR_FILE)


def kept_folders(folder: str | Path) -> dict[int, Path]:
    """The checkpoints on the way that a model's folder holds, by their steps, the first one first."""
    found = {}
    for path in (Path(folder).expanduser() / KEPT).glob(f"{_STEP}*"):
        number = path.name.removeprefix(_STEP)
        if number.isdecimal() and path.is_dir():
            found[int(number)] = path
    return dict(sorted(found.items()))


def load_kept(folder: Path) -> dict[int, dict[str, Tensor]]:
    """The weights that `save_kept` wrote, by step."""
    from transformers import RobertaForMaskedLM

    def weights(path: Path) -> dict[str, Tensor]:
        return weights_of(
            RobertaForMaskedLM.from_pretrained(path, local_files_only=True, weights_only=True, trust_remote_code=False)
        )

    return {step: weights(path) for step, path in kept_folders(folder).items()}
