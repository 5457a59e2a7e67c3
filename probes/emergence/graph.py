"""SkillGraph: which skills occur in which texts, and how a set of failed texts weighs on the skills."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from probes.errors import ProbeOptionError


@dataclass(frozen=True, eq=False)
class SkillGraph:
    """A bipartite graph of texts and skills.

    Attributes:
        edges: sparse matrix [texts, skills] (scipy's CSR): how often a text draws a skill, as a rule 0 or 1.
    """

    edges: Any

    def __post_init__(self) -> None:
        if self.edges.nnz == 0 or not self.degrees.all():
            raise ProbeOptionError("every skill of the graph must occur in a text: leave out those that don't")

    @classmethod
    def of_draws(cls, draws: Int64[np.ndarray, "texts k"], skills: int) -> "SkillGraph":
        """The graph of texts that draw k skills each, by number; skills that no text draws are left out."""
        from scipy.sparse import csr_array

        texts, k = draws.shape
        rows = np.repeat(np.arange(texts), k)
        counts = csr_array((np.ones(texts * k), (rows, draws.ravel())), shape=(texts, skills))
        return cls(counts[:, np.flatnonzero(counts.sum(0))])

    @property
    def texts(self) -> int:
        """Number of texts."""
        return self.edges.shape[0]

    @property
    def skills(self) -> int:
        """Number of skills."""
        return self.edges.shape[1]

    @cached_property
    def degrees(self) -> Float64[np.ndarray, " skills"]:
        """Number of edges of each skill."""
        return np.asarray(self.edges.sum(0), np.float64)

    @cached_property
    def drawn(self) -> Int64[np.ndarray, " texts"]:
        """Number of edges of each text."""
        return np.asarray(self.edges.sum(1)).astype(np.int64)

    @property
    def k(self) -> float:
        """Mean number of edges of a text."""
        return float(self.degrees.sum()) / self.texts

    def shares(self, failures: Float64[np.ndarray, " texts"]) -> Float64[np.ndarray, " skills"]:
        """Share of each skill's edges that lie in failed texts; a text may fail in part."""
        return (self.edges.T @ failures) / self.degrees

    def worst_skills(self, values: Float64[np.ndarray, " skills"], alpha: float) -> Float64[np.ndarray, " skills"]:
        """The skills with the highest values that hold a share alpha of all edges, 1 each; one at the edge in part."""
        order = np.argsort(-values, kind="stable")
        taken = np.minimum(np.cumsum(self.degrees[order]), alpha * self.degrees.sum())
        chosen = np.zeros(self.skills)
        chosen[order] = np.diff(taken, prepend=0.0) / self.degrees[order]
        return chosen

    def worst_texts(self, skills: Float64[np.ndarray, " skills"], theta: float) -> Float64[np.ndarray, " texts"]:
        """The share theta of the texts with the most edges to these skills, 1 each; one at the edge in part."""
        order = np.argsort(-(self.edges @ skills), kind="stable")
        taken = np.minimum(np.arange(1.0, self.texts + 1), theta * self.texts)
        chosen = np.zeros(self.texts)
        chosen[order] = np.diff(taken, prepend=0.0)
        return chosen

    def beta(self, failures: Float64[np.ndarray, " texts"], alpha: float) -> float:
        """How much more the worst skills are failed than texts are: their mean share in failed texts, over that of texts.

        The worst skills are those with the highest shares that hold a share alpha of the edges. No less than the theory's
        beta, which asks for the least share among them.
        """
        theta = float(failures.mean())
        if not theta > 0:
            return 1.0
        shares = self.shares(failures)
        worst = self.worst_skills(shares, alpha)
        return float((worst * shares) @ self.degrees) / (alpha * float(self.degrees.sum()) * theta)
