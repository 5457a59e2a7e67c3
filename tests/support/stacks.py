"""Four skills on a tiny BERT, and what a stack of them is to leave in a folder, to the last bit and file."""

import numpy as np
import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.copies import STACK
from surgery.checkpoints.delta import SparseDelta
from surgery.grafting.algebra import merge
from surgery.grafting.stack import Layer, restack
from tests.support.tiny import hashes, raw, weights

NAMES = "abcd"
NAME = "bert.encoder.layer.0.output.dense.weight"  # 16 by 32


def delta_on(folder, changed):
    """The delta that gives some weights of one tensor other values, `{index: value}`."""
    base = Checkpoint(folder)
    index = torch.tensor(sorted(changed), dtype=torch.int64)
    values = torch.tensor([changed[i] for i in sorted(changed)])
    return SparseDelta.from_parts(base, {NAME: (index, values)}, movable=10_000)


def layers_on(folder):
    """Four skills that touch weights 0 to 7 of one tensor, some of them together, two with a file beside the weights."""
    places = {"a": range(4), "b": range(2, 6), "c": (0, 3, 6), "d": (3, 7)}
    return {
        name: Layer(
            name,
            delta_on(folder, {i: 10.0 * NAMES.index(name) + i + 1 for i in places[name]}),
            {f"readout-{name}.safetensors": name.encode()} if name in "ab" else {},
        )
        for name in NAMES
    }


def weights_after(folder, layers, rule="last"):
    """What a stack's files are to say: the base's tensors with the values of the layers, in turn or by a rule."""
    expected = {name: tensor.clone() for name, tensor in weights(folder).items()}
    if rule != "last":
        merge([layer.delta for layer in layers], rule).write_into(expected)
        layers = ()
    for layer in layers:
        index, tuned, _ = layer.delta.part(NAME)
        expected[NAME].view(-1)[index] = tuned
    return {name: raw(tensor) for name, tensor in expected.items()}


def holds(folder, base, layers, rule="last"):
    """Whether a folder holds the base with these layers, to the last bit and file."""
    found = {name: raw(tensor) for name, tensor in weights(folder).items()}
    expected = weights_after(base, layers, rule)
    assert found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in found)
    stacked = {f"{STACK}/{layer.id}.safetensors" for layer in layers} | {f"{STACK}/stack.json"}
    readouts = {name for layer in layers for name in layer.readouts}
    assert hashes(folder).keys() == hashes(base).keys() | readouts | (stacked if len(layers) > 1 else set())
    assert (folder / STACK).exists() == (len(layers) > 1)
    same = {name: digest for name, digest in hashes(base).items() if not name.endswith(".safetensors")}
    assert same.items() <= hashes(folder).items()
    return True


def refused(tree, error, match, *arguments, **options):
    """That a call fails with one sentence and changes nothing anywhere."""
    before = hashes(tree)
    with pytest.raises(error, match=match) as caught:
        restack(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert hashes(tree) == before
