"""What an architecture says of a checkpoint's tensors, read from the model's module tree, built without weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from surgery.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from surgery.checkpoint import Checkpoint

Kind = Literal["masked", "causal", "classifier", "encoder"]

# Older checkpoints call a LayerNorm's parameters gamma and beta; the library renames them on loading, and so do we.
_OLD_NORM = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Structure:
    """How a checkpoint's tensors relate to the model that the transformers library builds from them.

    Attributes:
        model_class: the transformers class, such as `BertForMaskedLM`.
        kind: what the model is, which picks the readout.
        parameters: checkpoint tensor name -> parameter name in the model.
        blocks: tensors of the repeated blocks, sorted.
        tied: groups of model parameters that are one tensor.
    """

    model_class: type
    kind: Kind
    parameters: dict[str, str]
    blocks: tuple[str, ...]
    tied: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, checkpoint: "Checkpoint") -> "Structure":
        """Build the model on the meta device (shapes, no weights) and read it."""
        if checkpoint.config.get("is_encoder_decoder"):
            raise CheckpointError(
                f"{checkpoint} is an encoder-decoder, which no readout fits: use an encoder or a decoder"
            )
        model_class = _model_class(checkpoint)
        model = _skeleton(checkpoint, model_class)
        parameters = _match(checkpoint, model)
        in_blocks = block_parameters(model)
        groups: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        return cls(
            model_class=model_class,
            kind=_kind(model_class.__name__),
            parameters=parameters,
            blocks=tuple(sorted(tensor for tensor, name in parameters.items() if name in in_blocks)),
            tied=tuple(tuple(group) for group in groups.values() if len(group) > 1),
        )

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> tuple[str, ...]:
        """Tensor names after include and exclude patterns; raises OptionError for a pattern that matches nothing."""
        for pattern in (*include, *exclude):
            if not any(fnmatchcase(name, pattern) for name in self.parameters):
                raise OptionError(
                    f"no tensor matches {pattern!r}: patterns are shell patterns over names such as {min(self.parameters)}"
                )

        def matches(name: str, patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        chosen = [name for name in self.parameters if matches(name, include)] if include else self.blocks
        left = self._once(sorted(name for name in chosen if not matches(name, exclude)))
        if not left:
            raise OptionError("include and exclude patterns together leave no tensor: loosen them")
        return left

    def _once(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of tensors that are tied in the model, the first."""
        group = {name: number for number, tied in enumerate(self.tied) for name in tied}
        seen: set[object] = set()
        kept = []
        for name in names:
            parameter = self.parameters[name]
            key: object = group.get(parameter, parameter)
            if key not in seen:
                seen.add(key)
                kept.append(name)
        return tuple(kept)


def block_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters in a model's repeated blocks.

    The rule: inside the base model (no heads), the outermost `ModuleList`s whose elements are composite modules are
    stacks of blocks, and so are lists of single layers as long as one of those stacks (a few architectures keep their
    norms apart). Embedding tables inside a block, such as T5's relative positions, don't count.
    """
    base_name = getattr(model, "base_model_prefix", "")
    base = getattr(model, base_name, None) if base_name else None
    prefix, root = (f"{base_name}.", base) if isinstance(base, nn.Module) else ("", model)
    stacks = list(_outermost_lists(root, prefix))
    lengths = {len(stack) for _, stack in stacks if _is_composite(stack)}
    found: set[str] = set()
    for name, stack in stacks:
        if len(stack) not in lengths:
            continue
        for inner_name, module in stack.named_modules(prefix=name):
            if not isinstance(module, nn.Embedding):
                found |= {f"{inner_name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)}
    return found


def _outermost_lists(module: nn.Module, prefix: str) -> list[tuple[str, nn.ModuleList]]:
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            found.append((prefix + name, child))
        else:
            found += _outermost_lists(child, f"{prefix}{name}.")
    return found


def _is_composite(stack: nn.ModuleList) -> bool:
    return (
        len(stack) > 0 and any(True for _ in stack[0].children()) and any(p.dim() >= 2 for p in stack[0].parameters())
    )


def _match(checkpoint: "Checkpoint", model: nn.Module) -> dict[str, str]:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    matched: dict[str, str] = {}
    for tensor, entry in checkpoint.entries.items():
        stem, _, leaf = tensor.rpartition(".")
        modern = f"{stem}.{_OLD_NORM[leaf]}" if leaf in _OLD_NORM and stem else tensor
        for name in (tensor, modern, prefix + modern, modern.removeprefix(prefix)):
            if name in shapes:
                if shapes[name] != entry.shape:
                    raise CheckpointError(
                        f"{checkpoint}: tensor {tensor} has shape {entry.shape}, but its config.json asks for {shapes[name]}"
                    )
                matched[tensor] = name
                break
    missing = {name for name in block_parameters(model) if name not in matched.values()}
    if missing:
        raise CheckpointError(
            f"{checkpoint} holds no tensor for the model's parameter {min(missing)}: it isn't a plain {type(model).__name__} checkpoint"
        )
    return matched


def _skeleton(checkpoint: "Checkpoint", model_class: type) -> nn.Module:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # anything a config can provoke in a model's constructor
        raise CheckpointError(
            f"{checkpoint}: transformers can't build a {model_class.__name__} from its config.json ({error})"
        ) from error


def _model_class(checkpoint: "Checkpoint") -> Any:
    import transformers

    named = checkpoint.config.get("architectures") or []
    if len(named) != 1:
        raise CheckpointError(
            f'{checkpoint}: config.json must name one architecture, not {named}: add "architectures": ["BertModel"] or the like'
        )
    found = getattr(transformers, named[0], None)
    if found is None:
        raise CheckpointError(
            f"{checkpoint}: the transformers library installed here has no {named[0]}: upgrade it, or it is a model with code of its own"
        )
    return found


def _kind(class_name: str) -> Kind:
    from transformers.models.auto import modeling_auto as auto

    names = {
        "classifier": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_MAPPING_NAMES,
    }
    for kind, table in names.items():
        if class_name in table.values():
            return kind  # type: ignore[return-value]
    raise CheckpointError(
        f"a {class_name} is no masked or causal language model, classifier or bare encoder, so no readout fits it"
    )
