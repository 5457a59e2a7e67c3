"""Batches, examples and autograd's gradients that TinT is held against."""

import torch
import torch.nn.functional as F

from surgery.tasks.examples import Example

TRAIN, TOKENS = 12, 20


def tokens(model, rows=1, count=TOKENS, seed=0):
    return torch.randint(model.config.vocab_size, (rows, count), generator=torch.Generator().manual_seed(seed))


def prefix_mask(rows=1, count=TOKENS, train=TRAIN):
    return (torch.arange(count) < train).expand(rows, count).clone()


def summed_loss(model, ids):
    logits = model(ids[None]).logits[0]
    return F.cross_entropy(logits[:-1], ids[1:], reduction="sum")


def gradients(model, loss, simulation):
    """Autograd's, cut into the simulation's tensors: [(layer, name, gradient)]."""
    model.zero_grad()
    loss.backward()
    named = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for layer, sites in enumerate(simulation.auxiliary.sites):
        for name, site in sites.items():
            gradient = named[site.parameter].grad
            found.append((layer, name, torch.zeros_like(named[site.parameter]) if gradient is None else gradient))
            found[-1] = (layer, name, site.view(found[-1][2]).clone())
    return found


def relative(ours, wanted):
    return float((ours - wanted).norm() / wanted.norm())


ROWS = [
    Example(f"{a} {b} film", "", label)
    for label, words in (("positive", ("great", "good", "wonderful")), ("negative", ("bad", "awful", "boring")))
    for a in words
    for b in ("really", "so", "very", "quite")
]
