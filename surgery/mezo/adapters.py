"""Low-rank factors beside a model's matrices, by the library `peft`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import Model
from surgery.errors import MissingPackageError, OptionError
from surgery.files import replace_bytes
from surgery.mezo.noise import Noise
from surgery.mezo.weights import LORA_SCALE, LowRankTensor, factors
from surgery.quiet import quiet

_ADAPTER = "default"


def matrices(model: Model, names: Sequence[str]) -> dict[str, bool]:
    """The matrices among some tensors that `peft` puts factors beside, and whether their outputs are columns.

    Raises OptionError where there is none.
    """
    holders = {
        id(part.weight): part
        for part in model.module.modules()
        if isinstance(getattr(part, "weight", None), nn.Parameter)
    }
    found = {}
    for name in names:
        part = holders.get(id(model.parameters[name]))
        columns = type(part).__name__ == "Conv1D"
        if columns or isinstance(part, nn.Linear):
            found[name] = columns
    if not found:
        raise OptionError("`lora` goes beside matrices, and none of the tensors is one: loosen `include` and `exclude`")
    return found


def with_factors(model: Model, columns: dict[str, bool], rank: int, noise: Noise) -> list[LowRankTensor]:
    """Put factors of a rank beside matrices of a model, in float32 whatever the model is; at first they add nothing."""
    peft = _peft()
    wanted = {name: _module_name(model.checkpoint, name) for name in columns}
    before = {name: model.module.get_submodule(module) for name, module in wanted.items()}
    with quiet():  # it asks a model for all of its attributes, deprecated ones too
        peft.inject_adapter_in_model(_config(peft, rank, list(wanted.values()), columns), model.module, _ADAPTER)
    model.module.eval().requires_grad_(False)
    tensors = []
    for number, (name, module) in enumerate(wanted.items()):
        layer: Any = model.module.get_submodule(module)
        assert layer.base_layer is before[name], "peft wraps the very module"
        down, up = layer.lora_A[_ADAPTER].float(), layer.lora_B[_ADAPTER].float()
        shape = model.checkpoint.entries[name].shape
        tensors.append(factors(name, number, shape, rank, noise, columns[name], (down.weight, up.weight)))
    return tensors


def save_adapter(folder: Path, base: Checkpoint, tensors: Sequence[LowRankTensor], rank: int) -> None:
    """Write the factors as `peft` reads them; raises MissingPackageError without it."""
    peft = _peft()
    modules = {tensor.name: _module_name(base, tensor.name) for tensor in tensors}
    config = _config(peft, rank, list(modules.values()), {tensor.name: tensor.transposed for tensor in tensors})
    config.base_model_name_or_path = base.source
    folder.mkdir()
    config.save_pretrained(folder)
    content: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        for letter, part in (("A", tensor.down), ("B", tensor.up)):
            key = f"base_model.model.{modules[tensor.name]}.lora_{letter}.weight"
            content[key] = part.parameter.detach().cpu().contiguous()
    replace_bytes(folder / "adapter_model.safetensors", save(content, metadata={"format": "pt"}))


def _config(peft: Any, rank: int, modules: list[str], columns: dict[str, bool]) -> Any:
    return peft.LoraConfig(
        r=rank,
        lora_alpha=int(LORA_SCALE * rank),
        lora_dropout=0.0,
        target_modules=modules,
        fan_in_fan_out=any(columns.values()),
    )


def _module_name(base: Checkpoint, tensor: str) -> str:
    return base.structure.parameters[tensor].removesuffix(".weight")


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingPackageError("peft", "lora", "`lora`") from None
    return peft
