"""Probes: what the layers of a language model hold of the parse. Measures a checkpoint, changes nothing.

from probes import ProbeReport, probe_spans, probe_trees
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.experiment import probe_spans, probe_trees
    from probes.probed_model import ProbedModel
    from probes.report import ProbeReport

# Loaded on first use: torch and scikit-learn take seconds.
_HOMES = {
    "ProbeReport": "probes.report",
    "ProbedModel": "probes.probed_model",
    "probe_spans": "probes.experiment",
    "probe_trees": "probes.experiment",
}

__all__ = ["ProbeReport", "ProbedModel", "probe_spans", "probe_trees"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'probes' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
