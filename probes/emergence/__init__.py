"""Emergence: which rules and pairs of rules a model knows, and what the theory of skills says of it.

from probes.emergence import curves, measure_competence, simulate
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from probes.emergence.adversary import WorstCase, worst_case
    from probes.emergence.bound_curves import Curves, curves
    from probes.emergence.grammars import independent_skills, tangled_skills, without_rule
    from probes.emergence.graph import SkillGraph
    from probes.emergence.measuring import measure_competence
    from probes.emergence.report import CompetenceReport
    from probes.emergence.simulating import Simulation, simulate
    from probes.emergence.theory import exact_bound, most_failures, theorem_bound

_HOMES = {
    "CompetenceReport": "probes.emergence.report",
    "Curves": "probes.emergence.bound_curves",
    "Simulation": "probes.emergence.simulating",
    "SkillGraph": "probes.emergence.graph",
    "WorstCase": "probes.emergence.adversary",
    "curves": "probes.emergence.bound_curves",
    "exact_bound": "probes.emergence.theory",
    "independent_skills": "probes.emergence.grammars",
    "measure_competence": "probes.emergence.measuring",
    "most_failures": "probes.emergence.theory",
    "simulate": "probes.emergence.simulating",
    "tangled_skills": "probes.emergence.grammars",
    "theorem_bound": "probes.emergence.theory",
    "without_rule": "probes.emergence.grammars",
    "worst_case": "probes.emergence.adversary",
}

__all__ = [
    "CompetenceReport",
    "Curves",
    "Simulation",
    "SkillGraph",
    "WorstCase",
    "curves",
    "exact_bound",
    "independent_skills",
    "measure_competence",
    "most_failures",
    "simulate",
    "tangled_skills",
    "theorem_bound",
    "without_rule",
    "worst_case",
]


__getattr__, __dir__ = face(__name__, _HOMES)
