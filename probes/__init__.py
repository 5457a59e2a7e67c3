"""Probes: what the layers of a language model hold of the parse, and which rules it knows. Measures a checkpoint, changes nothing.

from probes import CompetenceReport, ProbeReport, measure_competence, probe_spans, probe_trees
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.emergence.measuring import measure_competence
    from probes.emergence.report import CompetenceReport
    from probes.experiment import probe_spans, probe_trees
    from probes.probed_model import ProbedModel
    from probes.report import ProbeReport

# Loaded on first use: torch and scikit-learn take seconds.
_HOMES = {
    "CompetenceReport": "probes.emergence.report",
    "ProbeReport": "probes.report",
    "ProbedModel": "probes.probed_model",
    "measure_competence": "probes.emergence.measuring",
    "probe_spans": "probes.experiment",
    "probe_trees": "probes.experiment",
}

__all__ = [
    "CompetenceReport",
    "ProbeReport",
    "ProbedModel",
    "measure_competence",
    "probe_spans",
    "probe_trees",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
