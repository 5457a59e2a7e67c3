"""Ways to select without gradients: at random, the longest, and by words in common, TF-IDF and BM25 (Robertson & Zaragoza 2009)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surgery.selecting.shards import Store
from surgery.tasks.rows import Row

_K1, _B = 1.5, 0.75


def score_rows(store: Store, rows: Sequence[Row], by: str, seed: int = 0) -> NDArray[np.float64]:
    """A score for each row of the pool: `random`, `length` (tokens), `tfidf` or `bm25` (mean over a subtask's rows, the largest of these)."""
    if by == "random":
        return np.random.default_rng(seed).random(len(store))
    if by == "length":
        return store.about["tokens"].astype(np.float64)
    pool = (_text(row) for row in store.pool.rows(range(len(store))))
    return text_scores(list(pool), [_text(row) for row in rows], [row.subtask for row in rows], by)


def text_scores(pool: Sequence[str], target: Sequence[str], subtasks: Sequence[str], by: str) -> NDArray[np.float64]:
    """Similarity of each of a pool's texts to a target's, by `tfidf` or `bm25`."""
    first, second = _tfidf(pool, target) if by == "tfidf" else _bm25(pool, target)
    names = list(dict.fromkeys(subtasks))
    each = []
    for name in names:
        own = [number for number, subtask in enumerate(subtasks) if subtask == name]
        each.append(np.asarray(first @ np.asarray(second[own].mean(0)).T).ravel())
    return np.max(each, axis=0)


def _text(row: Row) -> str:
    return f"{row.prompt}\n{row.answers}"


def _tfidf(pool: Sequence[str], target: Sequence[str]) -> tuple[Any, Any]:
    """Normalised TF-IDF vectors of pool and target, whose products are cosines."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    return words.fit_transform(pool), words.transform(target)


def _bm25(pool: Sequence[str], target: Sequence[str]) -> tuple[Any, Any]:
    """BM25's weights of the pool's words, and counts of the target's, whose products are its scores."""
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    counts = sparse.csr_matrix(words.fit_transform(pool), dtype=np.float64)
    lengths = np.asarray(counts.sum(1)).ravel()
    having = np.asarray((counts > 0).sum(0)).ravel()
    rarity = np.log(1 + (len(pool) - having + 0.5) / (having + 0.5))
    row = np.repeat(np.arange(len(pool)), np.diff(counts.indptr))
    slack = _K1 * (1 - _B + _B * lengths[row] / max(lengths.mean(), 1.0))
    counts.data = rarity[counts.indices] * counts.data * (_K1 + 1) / (counts.data + slack)
    return counts, words.transform(target)
