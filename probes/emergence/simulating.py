"""simulate(): a finite graph of texts and skills, and sets of failed texts on it, random and adversarial; Simulation."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from msgspec import convert

from probes.emergence.adversary import worst_case
from probes.emergence.figures import draw_simulation
from probes.emergence.graph import SkillGraph
from probes.emergence.report import FILE, read_report
from probes.emergence.theory import check_shares, exact_bound, theorem_bound
from probes.errors import ProbeError, ProbeOptionError, probe_errors
from surgery.files import new_folder, replace_json
from surgery.progress import Progress, silent
from surgery.reporting.page import Figure, Page, Table, Text
from surgery.reporting.results import Result

FORMAT = "surgery emergence simulate 1"
_ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5)
_MOST_EDGES, _MOST_SETS = 20_000_000, 10_000


@dataclass(frozen=True)
class SimulatedPoint:
    """Beta on a drawn graph, by how the failed texts were chosen, for one alpha.

    Attributes:
        random: of texts drawn at random, a mean over sets. `fixed`: of the worst texts for a set of skills drawn before
            (a mean over sets). `adversary`: of the worst texts found when the set of skills is chosen too.
        most: no choice has more. `exact`: what `fixed` is in the limit of many texts. `theorem`: the paper's bound, in the
            same limit; `finite`: with the number of sets of skills counted, so that it holds for this graph too.
    """

    alpha: float
    random: float
    fixed: float
    adversary: float
    most: float
    exact: float
    theorem: float | None
    finite: float | None


@dataclass(frozen=True)
class Simulation(Result):
    """Random and adversarial failures on a random graph.

    Attributes:
        skills, texts, k, theta, zipf, sets, seed: what was asked for.
        points: for the alpha asked for, which is the first, and for those of the figure.
    """

    skills: int
    texts: int
    k: int
    theta: float
    zipf: float
    sets: int
    seed: int
    points: tuple[SimulatedPoint, ...]

    @property
    def summary(self) -> list[str]:
        """What random and adversarial sets do, and whether the theorem holds."""
        first = self.points[0]
        bound = "no bound" if first.theorem is None else f"{first.theorem:.3f}"
        lines = [
            f"The worst texts found fail the worst share {first.alpha:g} of skills {first.adversary:.3f} times as often as texts fail; the theorem says {bound}, and exact for skills chosen beforehand is {first.exact:.3f} (simulated {first.fixed:.3f}).",
            f"Random texts of the same number: {first.random:.3f}, which would verify any bound.",
        ]
        broken = [p.alpha for p in self.points if p.finite is not None and p.adversary > p.finite]
        if broken:
            lines.append(f"The theorem's bound is exceeded for alpha {', '.join(f'{a:g}' for a in broken)}.")
        return lines

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row an alpha."""
        columns = ["alpha", "random", "fixed", "adversary", "no more than", "exact", "theorem", "finite theorem"]
        return columns, [
            [p.alpha, p.random, p.fixed, p.adversary, p.most, p.exact, p.theorem, p.finite] for p in self.points
        ]

    @probe_errors()
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, `simulation.png`, `README.md` and `index.html`; the folder appears whole or not at all."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / FILE, {"format": FORMAT, **asdict(self)})
            points = sorted(self.points, key=lambda point: point.alpha)
            self._page(draw_simulation(points, staged / "simulation.png")).write(staged)
        return Path(folder)

    def _page(self, drawn: Figure) -> Page:
        legend = {
            "random": f"failed texts drawn at random: the mean of {self.sets} sets. Above 1 only as the worst skills are chosen afterwards.",
            "fixed": f"the worst texts for skills that were chosen before: the mean of {self.sets} sets of skills.",
            "adversary": "the worst texts found when the skills are chosen too.",
            "no more than": "no choice of texts has more, on this graph.",
            "exact": "what fixed is in the limit of many texts.",
            "theorem": "the paper's bound, in the same limit; empty where it has none.",
            "finite theorem": "with the number of sets of skills counted, as a finite graph asks for.",
        }
        asked = f"{self.texts:,} texts draw {self.k} of {self.skills:,} skills each, the r-th most common with probability proportional to r^-{self.zipf:g}; a share {self.theta:g} of texts fails."
        table = Table("Beta by the share of skills.", *self.table(), legend, folded=False)
        return Page("Simulated failures", self.summary, [Text(asked), drawn, table])

    @classmethod
    def load(cls, folder: str | Path) -> "Simulation":
        """Read what `save` wrote; raise ProbeError, naming the file, for anything else."""
        content = read_report(folder, FORMAT)
        try:
            found = convert(content, cls)
            if not found.summary:
                raise ValueError("no points")
            return found
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            raise ProbeError(f"{Path(folder) / FILE} is damaged ({error}): write it again") from None


@probe_errors()
def simulate(
    skills: int = 1000,
    texts: int = 20_000,
    k: int = 8,
    *,
    theta: float = 0.05,
    alpha: float = 0.2,
    zipf: float = 0.0,
    sets: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> Simulation:
    """Draw a graph of texts and skills, and fail texts at random and by an adversary.

    Args:
        skills: how many there are; the r-th most common is drawn with probability proportional to r to the power of -`zipf`.
        k: skills that each text draws, independently.
        theta: share of texts that fail. `alpha`: share of skills (as they are drawn) that may be worse than the bound.
        sets: of random texts, and of skills drawn beforehand, to take means over.

    Raises:
        ProbeOptionError: shares outside (0, 1), numbers below 1, or a graph too large.
    """
    check_shares(theta=theta, alpha=alpha)
    for name, value, least in (("skills", skills, 2), ("texts", texts, 10), ("k", k, 1), ("sets", sets, 1)):
        if value < least:
            raise ProbeOptionError(f"`{name}` must be {least} or more, not {value}")
    for name, value, most in (("skills", skills, _MOST_EDGES), ("sets", sets, _MOST_SETS)):
        if value > most:
            raise ProbeOptionError(f"`{name}` is {value:,}: give at most {most:,}")
    if not 0 <= zipf < math.inf:
        raise ProbeOptionError(f"`zipf` must be 0 or more, not {zipf:g}")
    if texts * k > _MOST_EDGES:
        raise ProbeOptionError(f"`texts` times `k` is {texts * k:,}: give at most {_MOST_EDGES:,}")
    graph = draw_graph(skills, texts, k, zipf, seed)
    alphas = [alpha, *(other for other in _ALPHAS if other != alpha)]
    points = [_point(graph, k, theta, share, sets, seed, progress) for share in alphas]
    return Simulation(skills, texts, k, theta, zipf, sets, seed, tuple(points))


def draw_graph(skills: int, texts: int, k: int, zipf: float, seed: int) -> SkillGraph:
    """Texts that draw k skills each, independently; skills that none draws are left out."""
    weights = np.arange(1, skills + 1) ** -float(zipf)
    draws = np.random.default_rng(seed).choice(skills, size=(texts, k), p=weights / weights.sum())
    return SkillGraph.of_draws(draws, skills)


def _point(
    graph: SkillGraph, k: int, theta: float, alpha: float, sets: int, seed: int, progress: Progress
) -> SimulatedPoint:
    worst = worst_case(graph, theta, alpha, seed=seed, progress=progress)
    random = np.random.default_rng(seed)
    fixed = []
    for _ in range(sets):
        chosen = graph.worst_skills(random.random(graph.skills), alpha)
        fixed.append(_beta_of(graph, graph.worst_texts(chosen, theta), chosen))
    drawn = [graph.beta(_random_texts(graph, theta, random), alpha) for _ in range(sets)]
    return SimulatedPoint(
        alpha=alpha,
        random=float(np.mean(drawn)),
        fixed=float(np.mean(fixed)),
        adversary=worst.low,
        most=worst.high,
        exact=exact_bound(k, theta, alpha),
        theorem=theorem_bound(k, theta, alpha),
        finite=theorem_bound(k, theta, alpha, skills_per_text=graph.skills / graph.texts),
    )


def _beta_of(
    graph: SkillGraph, failures: Float64[np.ndarray, " texts"], skills: Float64[np.ndarray, " skills"]
) -> float:
    """Beta of skills that were chosen before."""
    return float(failures @ (graph.edges @ skills)) / float(skills @ graph.degrees) / float(failures.mean())


def _random_texts(graph: SkillGraph, theta: float, random: np.random.Generator) -> Float64[np.ndarray, " texts"]:
    order = random.permutation(graph.texts)
    failures = np.zeros(graph.texts)
    failures[order] = np.clip(theta * graph.texts - np.arange(graph.texts), 0, 1)
    return failures
