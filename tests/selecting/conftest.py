"""Tiny models, rows for them, and the plain loop that captured gradients are held to."""

import numpy as np
import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.tasks.objectives import pick_objective
from surgery.tasks.rows import read_row

NOUNS, GOOD, BAD = ("film", "story", "book", "food"), ("great", "good", "wonderful"), ("terrible", "bad", "boring")


def raw_rows(count, seed=0, source="reviews"):
    """Reviews, labelled."""
    random = np.random.default_rng(seed)
    for number in range(count):
        words, label = ((GOOD, "positive"), (BAD, "negative"))[number % 2]
        more = " and the plot was okay" * int(random.integers(3))
        yield {
            "text": f"the {random.choice(NOUNS)} was {random.choice(words)}{more} {number % 7} .",
            "label": label,
            "source": source,
        }


def opened(folder, loss="answer", dtype=None, device="cpu"):
    """A model and its objective."""
    model = load_model(Checkpoint(folder), device=device, dtype=dtype)
    return model, pick_objective(model, loss, 48, ("negative", "positive"))


def encoded(objective, count, seed=0):
    return [objective.encode(read_row(raw, "here")) for raw in raw_rows(count, seed)]


def shaken(adapter, seed=0):
    """Give an adapter's B other values than zero, so that A has gradients."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.weights.values():
            weight += 0.3 * torch.randn(weight.shape, generator=draw).to(weight.device)


def looped(model, objective, rows, adapter):
    """Each row's gradients by autograd, a row at a time."""
    weights = adapter.weights
    found = {name: [] for name in adapter.layers}
    for weight in weights.values():
        weight.requires_grad_(True)
    for row in rows:
        got = torch.autograd.grad(objective.losses(model, [row]).sum(), list(weights.values()))
        for name, gradient in zip(found, got, strict=True):
            found[name].append(gradient.flatten().cpu())
    for weight in weights.values():
        weight.requires_grad_(False)
    return {name: torch.stack(each) for name, each in found.items()}


@pytest.fixture
def raws():
    return raw_rows
