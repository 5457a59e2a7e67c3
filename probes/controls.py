"""Controls that a probe must beat: features of words and places without any model, and random classes of words for control tasks (Hewitt & Liang 2019)."""

import hashlib
from collections import Counter

import numpy as np
from jaxtyping import Float32, Int8, Int64

from probes.dataset import Dataset

CLASSES = 10  # of words, in control tasks
_MOST_WORDS, _MOST_PLACES = 512, 40


def word_identity(dataset: Dataset) -> Int8[np.ndarray, "words kinds"]:
    """One-hot code of each word; all but the most frequent words of the training sentences share the last column."""
    words = [word for sentence in dataset.sentences for word in sentence]
    counts = Counter(word for i in dataset.train for word in dataset.sentences[i])
    common = sorted(counts, key=lambda word: (-counts[word], word))[: _MOST_WORDS - 1]
    numbers = {word: i for i, word in enumerate(common)}
    return _columns(np.array([numbers.get(word, len(common)) for word in words]), len(common) + 1)


def neighbour_identity(dataset: Dataset) -> Int8[np.ndarray, "words kinds"]:
    """One-hot codes of the words left and right of each word, for words that are masked."""
    own = word_identity(dataset)
    codes = np.zeros((len(own), 2 * own.shape[1] + 2), np.int8)
    edges = np.zeros((len(own), 2), bool)
    edges[dataset.bounds[:-1], 0] = edges[dataset.bounds[1:] - 1, 1] = True
    codes[1:, : own.shape[1]] = own[:-1]
    codes[:-1, own.shape[1] : -2] = own[1:]
    codes[edges[:, 0], : own.shape[1]] = 0
    codes[edges[:, 1], own.shape[1] : -2] = 0
    codes[:, -2:] = edges
    return codes


def positions(dataset: Dataset) -> Int8[np.ndarray, "words places"]:
    """One-hot codes of each word's place, counted from both ends of its sentence; far places share a column."""
    from_start = np.concatenate([np.arange(n) for n in dataset.lengths])
    from_end = np.concatenate([np.arange(n)[::-1] for n in dataset.lengths])
    both = [_columns(np.minimum(places, _MOST_PLACES - 1), _MOST_PLACES) for places in (from_start, from_end)]
    return np.concatenate(both, 1)


def length_only(dataset: Dataset) -> Float32[np.ndarray, "spans outputs"]:
    """Predict each test span by the mean of the training spans of its length."""
    seen, asked = dataset.span_lengths(dataset.train), dataset.span_lengths(dataset.test)
    targets = dataset.targets[dataset.span_rows(dataset.train)]
    most = int(max(seen.max(), asked.max())) + 1
    counts = np.bincount(seen, minlength=most)
    sums = np.stack([np.bincount(seen, column, most) for column in targets.T.astype(np.float64)], 1)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], targets.mean(0))
    return means[asked].astype(np.float32)


def word_classes(dataset: Dataset, seed: int) -> Int64[np.ndarray, " words"]:
    """Draw a class for each different word, the same wherever it stands."""
    known: dict[str, int] = {}
    for sentence in dataset.sentences:
        for word in sentence:
            if word not in known:
                known[word] = int.from_bytes(hashlib.sha256(f"{seed} {word}".encode()).digest()[:8], "big") % CLASSES
    return np.array([known[word] for sentence in dataset.sentences for word in sentence], np.int64)


def _columns(numbers: Int64[np.ndarray, " words"], count: int) -> Int8[np.ndarray, "words kinds"]:
    codes = np.zeros((len(numbers), count), np.int8)
    codes[np.arange(len(numbers)), numbers] = 1
    return codes
