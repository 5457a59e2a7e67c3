"""Structure of a checkpoint: what its architecture says of its tensors, read from the model's module tree, built without weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from surgery.checkpoints.folder import ModelFolder
from surgery.checkpoints.refusals import check_plain, check_weight, code_of_its_own, without_tensor
from surgery.errors import CheckpointError, OptionError

Kind = Literal["masked", "causal", "classifier", "encoder"]

# Older checkpoints call a LayerNorm's parameters gamma and beta; the library renames them on loading, and so do we.
_OLD_NORM = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Structure:
    """Relation of a checkpoint's tensors to the model that the transformers library builds from them.

    Attributes:
        model_class: the transformers class, such as `BertForMaskedLM`.
        kind: what the model is, which picks the readout.
        parameters: checkpoint tensor name -> parameter name in the model.
        blocks: tensors of the repeated blocks, sorted.
        tied: groups of model parameters that are one tensor.
        vocabulary: parameters with a row a token: embeddings and what scores tokens.
        prefix: what the body's parameter names begin with in a model with a head, such as `bert.`; else empty.
    """

    model_class: type
    kind: Kind
    parameters: dict[str, str]
    blocks: tuple[str, ...]
    tied: tuple[tuple[str, ...], ...]
    vocabulary: frozenset[str]
    prefix: str

    @classmethod
    def of(cls, checkpoint: ModelFolder) -> "Structure":
        """Build the model on the meta device (shapes, no weights) and read it."""
        check_plain(checkpoint)
        if checkpoint.config.get("is_encoder_decoder"):
            raise CheckpointError(
                f"{checkpoint} is an encoder-decoder, which no readout fits: use an encoder or a decoder"
            )
        model_class = _model_class(checkpoint)
        model = skeleton(checkpoint, model_class)
        parameters = _match(checkpoint, model)
        in_blocks = block_parameters(model)
        groups: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        return cls(
            model_class=model_class,
            kind=_kind(model_class.__name__, checkpoint.config),
            parameters=parameters,
            blocks=tuple(sorted(tensor for tensor, name in parameters.items() if name in in_blocks)),
            tied=tuple(tuple(group) for group in groups.values() if len(group) > 1),
            vocabulary=frozenset(name for key in _vocabulary(model) for name in groups[key]),
            prefix=_body(model)[0],
        )

    @property
    def body(self) -> tuple[str, ...]:
        """Tensors of the model without its head; one that is tied to the body belongs to it."""
        return tuple(
            tensor
            for tensor, name in self.parameters.items()
            if any(mate.startswith(self.prefix) for mate in self.mates(name))
        )

    def mates(self, parameter: str) -> tuple[str, ...]:
        """The parameter and those tied to it."""
        return next((group for group in self.tied if parameter in group), (parameter,))

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
    prefix, root = _body(model)
    stacks = list(_outermost_lists(root, prefix))
    lengths = {len(stack) for _, stack in stacks if _is_composite(stack)}
    names: set[str] = set()
    for name, stack in stacks:
        if len(stack) not in lengths:
            continue
        for inner_name, module in stack.named_modules(prefix=name):
            if not isinstance(module, nn.Embedding):
                names |= {f"{inner_name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)}
    return names


def _body(model: nn.Module) -> tuple[str, nn.Module]:
    """What the names of the body's parameters begin with, and the body: the model itself when it has no head."""
    name = getattr(model, "base_model_prefix", "")
    body = getattr(model, name, None) if name else None
    return (f"{name}.", body) if isinstance(body, nn.Module) else ("", model)


def _vocabulary(model: Any) -> set[int]:
    """Identities of the parameters with a row a token."""
    numbers = set()
    for get in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, get)()
        except (AttributeError, NotImplementedError):  # some models have none, and say so this way
            continue
        if isinstance(module, nn.Module):
            numbers |= {id(parameter) for parameter in module.parameters()}
    return numbers


def _outermost_lists(module: nn.Module, prefix: str) -> list[tuple[str, nn.ModuleList]]:
    lists = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            lists.append((prefix + name, child))
        else:
            lists += _outermost_lists(child, f"{prefix}{name}.")
    return lists


def _is_composite(stack: nn.ModuleList) -> bool:
    return (
        len(stack) > 0 and any(True for _ in stack[0].children()) and any(p.dim() >= 2 for p in stack[0].parameters())
    )


def body_tensors(checkpoint: ModelFolder, like: ModelFolder) -> dict[str, str]:
    """A checkpoint's tensors that belong to the body of another one's model -> the parameter's name there.

    Raises CheckpointError for a parameter of the blocks without a tensor.
    """
    model = skeleton(like, _model_class(like))
    matched = {tensor: name for tensor, name in _names(checkpoint, model).items() if name.startswith(_body(model)[0])}
    _check_blocks(checkpoint, model, matched)
    return matched


def _names(checkpoint: ModelFolder, model: nn.Module) -> dict[str, str]:
    """Tensor name -> parameter name, by name alone; tensors that are no parameters are left out."""
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    matched: dict[str, str] = {}
    for tensor in checkpoint.entries:
        stem, _, leaf = tensor.rpartition(".")
        modern = f"{stem}.{_OLD_NORM[leaf]}" if leaf in _OLD_NORM and stem else tensor
        for name in (tensor, modern, prefix + modern, modern.removeprefix(prefix)):
            if name in known:
                matched[tensor] = name
                break
    return matched


def _match(checkpoint: ModelFolder, model: nn.Module) -> dict[str, str]:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    matched = _names(checkpoint, model)
    for tensor, name in matched.items():
        check_weight(checkpoint, tensor)
        if shapes[name] != (held := checkpoint.entries[tensor].shape):
            raise CheckpointError(
                f"{checkpoint}: tensor {tensor} has shape {held}, but its config.json asks for {shapes[name]}"
            )
    _check_blocks(checkpoint, model, matched)
    return matched


def _check_blocks(checkpoint: ModelFolder, model: nn.Module, matched: Mapping[str, str]) -> None:
    missing = {name for name in block_parameters(model) if name not in matched.values()}
    if missing:
        # What lies in the parameter's place tells why: other tensors of the same block.
        block = re.match(r".*?\.\d+\.", min(missing).removeprefix(_body(model)[0]))
        place = block[0] if block else ""
        instead = sorted(tensor for tensor in checkpoint.entries if tensor not in matched and place in tensor)
        raise CheckpointError(without_tensor(checkpoint, type(model).__name__, min(missing), instead))


def skeleton(checkpoint: ModelFolder, model_class: type) -> nn.Module:
    """The model on the meta device: shapes and no weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # anything a config can provoke in a model's constructor
        if "auto_map" in checkpoint.config:
            raise CheckpointError(code_of_its_own(checkpoint, model_class.__name__)) from error
        raise CheckpointError(
            f"{checkpoint}: transformers can't build a {model_class.__name__} from its config.json ({error})"
        ) from error


def _model_class(checkpoint: ModelFolder) -> Any:
    import transformers

    named = checkpoint.config.get("architectures") or []
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise CheckpointError(
            f'{checkpoint}: config.json must name one architecture, not {named}: add "architectures": ["{_bare(checkpoint)}"] or the like '
            "in a copy of the folder; as a base it may also get the tuned one's (surgery graft --head tuned)"
        )
    kind = getattr(transformers, named[0], None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        if "auto_map" in checkpoint.config:
            raise CheckpointError(code_of_its_own(checkpoint, named[0]))
        raise CheckpointError(
            f"{checkpoint}: the transformers library installed here has no {named[0]}: upgrade it, or name another checkpoint"
        )
    return kind


def _bare(checkpoint: ModelFolder) -> str:
    """The class of a checkpoint's kind without a head, such as `BertModel`."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = MODEL_MAPPING_NAMES.get(str(checkpoint.config.get("model_type")), "BertModel")
    return names if isinstance(names, str) else names[0]


def _kind(class_name: str, config: Mapping[str, Any]) -> Kind:
    from transformers.models.auto import modeling_auto as auto

    if class_name == "XLNetLMHeadModel":
        raise CheckpointError(
            "an XLNetLMHeadModel sees the very token it is to predict unless it is told not to, so no readout fits it: use XLNetForSequenceClassification"
        )
    if class_name == "XLMWithLMHeadModel":  # one class for both; the table of causal models lists it
        return "causal" if config.get("causal") else "masked"
    names = {
        "classifier": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "encoder": auto.MODEL_MAPPING_NAMES,
    }
    for kind, table in names.items():
        listed = [name for entry in table.values() for name in ([entry] if isinstance(entry, str) else entry)]
        if class_name in listed:
            return kind  # type: ignore[return-value]
    raise CheckpointError(
        f"a {class_name} is no masked or causal language model, classifier or bare encoder, so no readout fits it"
    )
