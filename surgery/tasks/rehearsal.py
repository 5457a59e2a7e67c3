"""Rehearsals: a checkpoint's model without its weights, over which a command's own steps run so that a meter sees their memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import Model, load_tokenizer
from surgery.checkpoints.sharding import whole_at_once
from surgery.checkpoints.structure import skeleton
from surgery.memory import Meter, Need
from surgery.quiet import quiet
from surgery.tasks.readout import Encoded, HeadReadout, PhraseReadout, Readout, WordReadout, token_limit
from surgery.tasks.task import Task


@contextmanager
def rehearsed(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, *, tokenized: bool = True
) -> Iterator[tuple[Model, Meter]]:
    """The model as `load_model` gives it, of tensors without content on `device`, and a meter that counts them already.

    Reads the config, the files' headers and the tokenizer; no weights. What runs inside takes milliseconds a layer.
    """
    from torch._subclasses import FakeTensorMode

    with quiet():
        tokenizer = load_tokenizer(checkpoint) if tokenized else None
        module: Any = skeleton(checkpoint, checkpoint.structure.model_class).to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = module.to_empty(device=device)
        module.tie_weights()  # which putting each tensor elsewhere has undone
        module = module.eval().requires_grad_(False)
        named = dict(module.named_parameters(remove_duplicate=False))
        parameters = {tensor: named[name] for tensor, name in checkpoint.structure.parameters.items()}
        model = Model(module, tokenizer, checkpoint, device, parameters)
        model.__dict__["padding_matters"] = False  # which takes numbers to find out; pieces of a batch take less anyway
        with Meter(device, [*module.parameters(), *module.buffers()]) as meter:
            yield model, meter


def rehearsed_readout(model: Model, task: Task) -> Readout:
    """The readout that `pick_readout` picks, untried; phrase embeddings are zeros."""
    if model.kind == "classifier":
        return HeadReadout.of(model, task)
    if model.kind != "encoder":
        return WordReadout.of(model, task)
    anchors = torch.zeros(len(task.labels), model.module.config.get_text_config().hidden_size)
    phrases = tuple(task.phrases[label] for label in task.labels)
    return PhraseReadout(model.tokenizer, anchors, phrases, token_limit(model, task))


def longest(rows: Sequence[Encoded], count: int) -> list[Encoded]:
    """That many rows as long as the longest, the batch that takes most."""
    return [max(rows, key=lambda row: len(row.ids))] * min(count, len(rows))


_OF_ALL = ("weights", "the base's copy", "optimizer", "gradients", "the best so far")


def split(
    need: Need, checkpoint: Checkpoint, processes: int, dtype: torch.dtype = torch.float32, *, gradients: int
) -> Need:
    """The need of one of several processes that share a model: its rows of all tensors, and what is whole for a while.

    `gradients`: bytes of those of all tensors, which are there together when a backward pass ends.
    """
    if processes == 1:
        return need
    parts = {**need.parts, "gradients": gradients}
    parts = {name: -(-count // processes) if name in _OF_ALL else count for name, count in parts.items()}
    return replace(need, parts={**parts, "whole tensors": dtype.itemsize * whole_at_once(checkpoint)})


def read_one(model: Model) -> None:
    """What reading the largest tensor to the device and looking for NaN in it takes, beside the model."""
    largest = max(model.parameters, key=lambda name: model.checkpoint.entries[name].size)
    entry = model.checkpoint.entries[largest]
    bool(torch.isfinite(torch.empty(entry.shape, dtype=entry.dtype, device=model.device)).all())


def weight_bytes(checkpoint: Checkpoint, names: Sequence[str], item: int) -> int:
    """Bytes of some tensors at so many bytes a number."""
    return item * sum(checkpoint.entries[name].size for name in names)


def model_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of the model in memory, tied weights once."""
    module = skeleton(checkpoint, checkpoint.structure.model_class)
    return dtype.itemsize * sum(parameter.numel() for parameter in module.parameters())


def most_activations(checkpoint: Checkpoint, rows: int, tokens: int) -> int:
    """Bytes that activations and what is computed beside them never exceed, from the sizes of the matrices alone.

    Each matrix's inputs and outputs four times over in float32, and scores between all tokens of heads 16 wide: queries,
    keys, values and outputs are an eighth of the sides each at most.
    """
    matrices: list[tuple[int, ...]] = [
        checkpoint.entries[name].shape
        for name in checkpoint.structure.parameters
        if len(checkpoint.entries[name].shape) > 1
    ]
    sides = sum(shape[0] + shape[1] for shape in matrices)
    return rows * tokens * sides * (16 + tokens // 8)


def files_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of its files of weights."""
    return sum(file.stat().st_size for file in checkpoint.files)
