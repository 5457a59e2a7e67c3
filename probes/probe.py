"""Probe: the base of every probe, which declares its metrics, controls, columns, legend and label in its own file.

A new probe is one file that makes a `Probe`, and one line in `probes.catalog`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probes.intervals import Measure
from probes.masked_words import MaskedWords
from probes.scorer import Scorer

# The controls that every probe has: other states and features, on which it is trained and scored in the same way.
TRAINED = ("layer 0", "untrained", "word identity", "position")
# Trees that nothing was trained for.
BRANCHING = ("left", "right", "random")
# Sources of numbers that no probe was trained for; `length` says the mean marginal of the spans of a length.
NO_PROBE = ("length", *BRANCHING, "ceiling")


@dataclass(frozen=True)
class Metric:
    """A number that a probe gives for each layer.

    Attributes:
        name: as in `Measure.metric`.
        controls: what it is held against; sources of measures, `layer 0` or `control task`.
        column: its heading in the table by layer; empty where it has no column.
        meaning: a sentence for the table's legend.
        lower_is_better: as for divergences.
        without_probe: whether branching trees and span lengths alone have this number too.
    """

    name: str
    controls: tuple[str, ...] = ()
    column: str = ""
    meaning: str = ""
    lower_is_better: bool = False
    without_probe: bool = True


@dataclass(frozen=True, eq=False)
class Features:
    """What a probe sees: the states after one layer, or the features of a control.

    Attributes:
        source, layer: as in `Measure`.
        words: [words, width], a row for each word of the dataset; None where only masked words are described.
        masks: [masks, width], a row for each of `masked`; None without them.
        masked: the masked words, with their exact posteriors.
    """

    source: str
    layer: int | None
    words: np.ndarray | None = None
    masks: np.ndarray | None = None
    masked: MaskedWords | None = None


@dataclass(frozen=True)
class Probe(ABC):
    """A kind of probe.

    Attributes:
        name: in reports, for good: saved reports are read by it.
        label: in figures.
        style: number of its colour and marker in figures.
        metrics: the numbers that it gives.
        sees: the part of `Features` that it is trained on.
        judged_at_last_layer: whether it is judged at the last layer instead of the best.
    """

    name: str
    label: str
    style: int
    metrics: tuple[Metric, ...]
    sees: Literal["words", "masks"] = "words"
    judged_at_last_layer: bool = False

    @abstractmethod
    def measure(self, scorer: Scorer, seen: Features) -> list[Measure]:
        """Train on the training sentences, once for each of the scorer's seeds, and score on the test sentences."""
