"""Low-rank adapters beside the matrices of a model's blocks, by the library `peft`, and the files that keep their states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import Model
from surgery.errors import MissingPackageError, OptionError, SelectionError
from surgery.files import replace_bytes, replace_json
from surgery.quiet import quiet

ADAPTER, OPTIMIZER = "adapter_model.safetensors", "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
_NAME = "default"


@dataclass(frozen=True, eq=False)
class Adapter:
    """Adapters in a model.

    Attributes:
        layers: the factors, linear layers without biases, by name: `h.0.attn.c_attn.lora_A`, [rank, in], and `lora_B`, [out, rank].
        config: `peft`'s.
    """

    layers: Mapping[str, nn.Linear]
    config: Any

    @classmethod
    def beside(cls, model: Model, rank: int, alpha: float, targets: Sequence[str] = (), seed: int = 0) -> "Adapter":
        """Put adapters beside the matrices of a model's blocks: A by `peft`'s draw from a seed, B zero.

        Args:
            targets: shell patterns over the names of modules; by default all matrices of the blocks.

        Raises:
            OptionError: no module fits. MissingPackageError: no `peft`.
        """
        peft = _peft()
        parameters = model.checkpoint.structure.parameters
        blocks = {parameters[tensor].rpartition(".")[0] for tensor in model.checkpoint.structure.blocks}
        matrices = [
            name
            for name, module in model.module.named_modules()
            if name in blocks and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
        ]
        chosen = [name for name in matrices if not targets or any(fnmatchcase(name, pattern) for pattern in targets)]
        if not chosen:
            raise OptionError(
                f"`targets` {', '.join(targets) or '(none given)'}: no matrix of the blocks of {model.checkpoint} fits; they are called {', '.join(matrices[:4])} and so on"
            )
        columns = any(type(model.module.get_submodule(name)).__name__ == "Conv1D" for name in chosen)
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=chosen, fan_in_fan_out=columns,
            base_model_name_or_path=model.checkpoint.source,
        )  # fmt: skip
        with quiet(), torch.random.fork_rng():
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model.module, _NAME)
        model.module.eval().requires_grad_(False)
        layers: dict[str, nn.Linear] = {}
        for name in chosen:
            module: Any = model.module.get_submodule(name)
            for letter in "AB":
                layers[f"{name}.lora_{letter}"] = getattr(module, f"lora_{letter}")[_NAME].float()
        return cls(layers, config)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The factors by the names of their parameters."""
        return {f"{name}.weight": layer.weight for name, layer in self.layers.items()}

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.weights.values())

    def save(self, folder: Path, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the factors as `peft` reads them, and Adam's moments by the names of parameters."""
        folder.mkdir(parents=True, exist_ok=True)
        factors = {
            f"base_model.model.{name}": weight.detach().cpu().contiguous() for name, weight in self.weights.items()
        }
        state = {
            f"{name}.{moment}": moments[name][moment].cpu().contiguous() for name in self.weights for moment in MOMENTS
        }
        config = self.config.to_dict() | {"target_modules": sorted(self.config.target_modules)}
        replace_json(folder / "adapter_config.json", {name: _plain(value) for name, value in sorted(config.items())})
        replace_bytes(folder / OPTIMIZER, save(state))
        replace_bytes(folder / ADAPTER, save(factors, metadata={"format": "pt"}))

    def load(self, folder: Path) -> dict[str, dict[str, Tensor]]:
        """Set the factors to a checkpoint's; returns Adam's moments by the names of parameters, on the model's device.

        Raises:
            SelectionError: another adapter's factors or moments, or files that can't be read.
        """
        factors, state = (_read(folder / name) for name in (ADAPTER, OPTIMIZER))
        moments: dict[str, dict[str, Tensor]] = {}
        _check_names(
            folder / ADAPTER, factors, {f"base_model.model.{name}": weight for name, weight in self.weights.items()}
        )
        _check_names(
            folder / OPTIMIZER, state, {f"{n}.{m}": weight for n, weight in self.weights.items() for m in MOMENTS}
        )
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(factors[f"base_model.model.{name}"])
                moments[name] = {moment: state[f"{name}.{moment}"].to(weight.device) for moment in MOMENTS}
        return moments


def _check_names(file: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    if found.keys() != wanted.keys():
        other = min(found.keys() ^ wanted.keys())
        raise SelectionError(
            f"{file} is of another adapter ({other} is in one of the two alone): take the warm-up that was made with this base and these `targets`"
        )
    for name, weight in wanted.items():
        if found[name].shape != weight.shape:
            raise SelectionError(
                f"{file} is of another adapter ({name} has shape {list(found[name].shape)}, not {list(weight.shape)}): take the warm-up that was made with this `rank`"
            )


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise SelectionError(f"{file} can't be read ({error}): warm up again") from None


def _plain(value: Any) -> Any:
    """A field of `peft`'s config as JSON."""
    if isinstance(value, set | tuple):
        return sorted(value) if isinstance(value, set) else list(value)
    return (
        value
        if isinstance(value, str | int | float | bool | list | dict | None)
        else str(getattr(value, "value", value))
    )


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingPackageError("peft", "lora", "selecting by gradients") from None
    return peft


def same_base(folder: Path, noted: str, base: Checkpoint) -> None:
    """Refuse a base whose weights aren't those that something in a folder was made with."""
    if noted != base.fingerprint:
        raise SelectionError(f"{folder} was made with another base than {base}: give that one as `model`")
