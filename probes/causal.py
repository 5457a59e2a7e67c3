"""Causal check: what masked prediction loses without the directions that a probe reads; and attention within constituents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from probes.alignment import Encoded
from probes.intervals import bootstrap, ratio
from probes.linear import PairRegression
from probes.probed_model import ProbedModel, pad
from surgery.progress import Progress, silent

if TYPE_CHECKING:
    from pcfg.learning.excess_loss import MaskedSet
    from pcfg.treebanks.trees import Tree

_RANK, _RANDOM = 8, 5
_MOST_STATES, _FLAT = 20_000, 1e-6


@dataclass(frozen=True)
class Removal:
    """Loss of masked prediction, in nats a mask, when directions are removed from the states after a layer.

    Attributes:
        rank: directions removed.
        intact: excess loss of the model as it is; `probed`: without the probe's directions; `random`: without random ones
            of equal rank, a number for each draw.
        low, high: 95% interval over sentences of how much more the probe's directions cost than random ones.
        more: that difference.
    """

    layer: int
    rank: int
    intact: float
    probed: float
    random: tuple[float, ...]
    more: float
    low: float
    high: float


@dataclass(frozen=True)
class Head:
    """Share of a head's attention that stays within the constituent around a word.

    Attributes:
        within: share of a word's attention to other words that goes to the smallest constituent around it.
        chance: the same for all spans of that length that hold the word, of which the constituent is one.
        more, low, high: their difference, with a 95% interval over sentences.
    """

    block: int
    head: int
    within: float
    chance: float
    more: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Whitening:
    """Coordinates in which the states vary equally in every direction, so that removing any takes away the same share of variance.

    Attributes:
        mean: of the states; `root` and `inverse`: the square root of their covariance, and its inverse.
    """

    mean: Float64[np.ndarray, " width"]
    root: Float64[np.ndarray, "width width"]
    inverse: Float64[np.ndarray, "width width"]

    @classmethod
    def of(cls, states: np.ndarray) -> "Whitening":
        """Fit to states of words [words, width]; directions that hardly vary are left alone."""
        some = np.asarray(states[:: max(1, len(states) // _MOST_STATES)], np.float64)
        mean = some.mean(0)
        values, vectors = np.linalg.eigh(np.cov(some - mean, rowvar=False))
        kept = values > _FLAT * values.max()
        size = np.sqrt(np.where(kept, values, 1.0))
        root = (vectors * np.where(kept, size, 0.0)) @ vectors.T
        inverse = (vectors * np.where(kept, 1 / size, 0.0)) @ vectors.T
        return cls(mean, root, inverse)

    def removal(self, basis: Float64[np.ndarray, "width rank"]) -> Callable[[Tensor], Tensor]:
        """Return the function that removes from states what they hold along orthonormal directions of the whitened space."""
        taken = torch.from_numpy(self.inverse @ basis @ basis.T @ self.root)
        center = torch.from_numpy(self.mean)

        def change(states: Tensor) -> Tensor:
            return states - (states - center.to(states)) @ taken.to(states)

        return change


def probed_directions(probe: PairRegression, space: Whitening) -> Float64[np.ndarray, "width rank"]:
    """Orthonormal basis, in whitened space, of the directions with the largest weights of a linear span probe."""
    weights = np.concatenate([probe.left, probe.right], 1) / probe.scale.spread[:, None].astype(np.float64)
    left, _, _ = np.linalg.svd(space.root @ weights, full_matrices=False)
    return left[:, : rank_for(len(weights))]


def rank_for(width: int) -> int:
    """Number of directions to remove: 8, or an eighth of the width where that is fewer."""
    return max(1, min(_RANK, width // 8))


def random_directions(width: int, rank: int, seed: int) -> Float64[np.ndarray, "width rank"]:
    """Orthonormal basis of a random subspace."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, rank)))
    return basis


def remove_directions(
    model: ProbedModel, masked: "MaskedSet", layer: int, probe: PairRegression, states: np.ndarray, *, seed: int
) -> Removal:
    """Measure the excess loss without a probe's directions, and without random ones (Elazar et al. 2021, amnesic probing).

    Both kinds of directions are taken in the whitened space of `states` [words, width].
    """
    space = Whitening.of(states)
    basis = probed_directions(probe, space)
    bases = [basis, *(random_directions(len(basis), basis.shape[1], seed + draw) for draw in range(_RANDOM))]
    losses = []
    for some in bases:
        with model.changed({layer: space.removal(some)}):
            losses.append(masked.measure(model.module, model.tokenizer))
    intact = masked.measure(model.module, model.tokenizer)
    sentences = len(masked.sentences)
    more = losses[0].excess - np.mean([loss.excess for loss in losses[1:]], 0)
    sums = [np.bincount(intact.sentence, values, sentences) for values in (more, np.ones(len(more)))]
    value, low, high, _ = bootstrap(np.stack(sums, 1)[None], ratio, seed)
    excesses = [float(loss.excess.mean()) for loss in losses]
    rank = basis.shape[1]
    return Removal(layer, rank, float(intact.excess.mean()), excesses[0], tuple(excesses[1:]), value, low, high)


def score_heads(
    model: ProbedModel, trees: "Sequence[Tree]", *, seed: int, progress: Progress = silent
) -> tuple[Head, ...]:
    """Measure every head's attention within constituents, block by block."""
    sentences = [tree.words() for tree in trees]
    encoded = model.encode(sentences)
    sums = np.zeros((len(trees), model.layers, model.heads, 3))  # within, chance, words
    order = np.argsort([-len(code.ids) for code in encoded], kind="stable")
    done = 0
    for batch in np.array_split(order, -(-len(order) // 16)):
        ids, mask = pad(model, [encoded[i] for i in batch])
        patterns = [pattern.float().cpu().numpy() for pattern in model.attention(ids, mask)]
        for row, i in enumerate(batch):
            smallest = smallest_spans(trees[i])
            for block, pattern in enumerate(patterns):
                between = word_attention(pattern[row], encoded[i], len(sentences[i]))
                sums[i, block] = _shares(between, smallest)
        done += len(batch)
        progress(done, len(order), "attention heads")
    attention_heads = []
    for block in range(model.layers):
        for head in range(model.heads):
            own = sums[:, block, head]
            stats = np.stack([own[:, 0] - own[:, 1], own[:, 2]], 1)[None]
            more, low, high, _ = bootstrap(stats, ratio, seed)
            within, chance = (float(own[:, k].sum() / own[:, 2].sum()) for k in (0, 1))
            attention_heads.append(Head(block, head, within, chance, more, low, high))
    return tuple(attention_heads)


def smallest_spans(tree: "Tree") -> Int64[np.ndarray, "words 2"]:
    """Find the smallest constituent of two words or more around each word; -1 where that is the whole sentence."""
    n = len(tree.words())
    smallest = np.full((n, 2), -1, np.int64)
    for _, start, end in sorted(tree.spans(), key=lambda span: span[1] - span[2]):  # largest first
        if 1 < end - start < n:
            smallest[start:end] = (start, end)
    return smallest


def word_attention(
    pattern: Float32[np.ndarray, "heads tokens tokens"], encoded: Encoded, n: int
) -> Float64[np.ndarray, "heads n n"]:
    """Attention from word to word: the sum over tokens of the word attended to, the mean over tokens of the word that attends."""
    owners = np.array(encoded.words)
    members = np.zeros((n, len(owners)))
    members[owners[owners >= 0], np.flatnonzero(owners >= 0)] = 1.0
    own = pattern[:, : len(owners), : len(owners)].astype(np.float64)
    return (members / members.sum(1, keepdims=True)) @ own @ members.T


def _shares(between: Float64[np.ndarray, "heads n n"], smallest: Int64[np.ndarray, "words 2"]) -> np.ndarray:
    """Sums over words of the share within the constituent, and within spans of its length; and how many words."""
    heads, n, _ = between.shape
    others = between * (1 - np.eye(n))
    # before[:, i, j]: share of word i's attention to other words that goes to words 0..j-1.
    total = np.maximum(others.sum(2, keepdims=True), 1e-12)
    before = np.concatenate([np.zeros((heads, n, 1)), np.cumsum(others / total, 2)], 2)
    shares = np.zeros((heads, 3))
    for word, (start, end) in enumerate(smallest.tolist()):
        if start < 0:
            continue
        width = end - start
        starts = np.arange(max(0, word - width + 1), min(word, n - width) + 1)
        shares[:, 0] += before[:, word, end] - before[:, word, start]
        shares[:, 1] += (before[:, word, starts + width] - before[:, word, starts]).mean(1)
        shares[:, 2] += 1
    return shares
