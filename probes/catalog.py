"""Every probe, in the order of reports: a new one is a file of its own and a line here."""

from probes.depths import DEPTHS
from probes.distances import DISTANCES
from probes.intervals import Measure
from probes.probe import Features, Metric, Probe
from probes.scorer import Scorer
from probes.spans import LINEAR_SPANS, TWO_LAYER_SPANS
from probes.word_posteriors import WORD_POSTERIORS

PROBES: tuple[Probe, ...] = (
    LINEAR_SPANS,
    TWO_LAYER_SPANS,
    DEPTHS,
    DISTANCES,
    WORD_POSTERIORS,
)

METRICS: tuple[tuple[Probe, Metric], ...] = tuple((probe, metric) for probe in PROBES for metric in probe.metrics)


def measure_all(scorer: Scorer, seen: Features) -> list[Measure]:
    """Measure with every probe whose part of the features is there."""
    return [m for probe in PROBES if getattr(seen, probe.sees) is not None for m in probe.measure(scorer, seen)]
