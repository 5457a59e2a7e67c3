"""What an evaluation measured: items with values and transcripts, and means and paired differences over them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from surgery.errors import EvaluationError
from surgery.evaluating.statistics import Difference, Score, difference, score


@dataclass(frozen=True)
class Item:
    """One question and how it went.

    Attributes:
        cluster: items of one cluster belong together: intervals are over clusters.
        values: by metric; None where the model or the grader gave nothing that can be used.
        labels: what the item is about, for breakdowns.
        transcript: who said what, in order.
        points: rubric points by their names; None where they are missing.
        note: why values are missing.
    """

    name: str
    cluster: str
    values: dict[str, float | None]
    labels: dict[str, str] = field(default_factory=dict)
    transcript: list[tuple[str, str]] = field(default_factory=list)
    points: dict[str, float | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric that items have values of.

    Attributes:
        about: what it is, in a sentence.
        chance: what guessing gives, where that is known.
        scale: what values are multiplied by to be shown.
    """

    name: str
    about: str
    chance: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Facts:
    """A table of what else was found, such as how far graders agree."""

    caption: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Measured:
    """What was measured of one model, and of another on the same items where it is held against one.

    Attributes:
        kind: formal, skillmix, tutor or regrade.
        metrics: the first is the one that counts.
        items: in an order that is the same for all models.
        remarks: what a reader must know before trusting the figures.
        settings: all options that decide items and grading.
        usage: calls, tokens and what is missing, by model.
        origin: provenance: versions, call, inputs.
        base: what it is held against. `floor`: noise floors of that: the base again, or damaged, by what it is.
        facts: what else was found. `links`: other reports on this model, by what they are.
    """

    kind: str
    model: str
    metrics: tuple[Metric, ...]
    items: tuple[Item, ...]
    remarks: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    base: "Measured | None" = None
    floor: "Mapping[str, Measured]" = field(default_factory=dict)
    facts: tuple[Facts, ...] = ()
    links: dict[str, str] = field(default_factory=dict)

    def score(self, metric: str, items: Sequence[Item] | None = None) -> Score:
        """Mean of a metric over all items that have it, or over some of them."""
        chosen = [item for item in (self.items if items is None else items) if metric in item.values]
        return score([item.values[metric] for item in chosen], [item.cluster for item in chosen])

    def by(self, label: str) -> dict[str, list[Item]]:
        """Items by what they have for a label; an item that lists several, apart by commas, is in each."""
        groups: dict[str, list[Item]] = {}
        for item in self.items:
            for value in filter(None, item.labels.get(label, "").split(", ")):
                groups.setdefault(value, []).append(item)
        return dict(sorted(groups.items()))

    def difference(self, metric: str, other: "Measured | None" = None) -> Difference:
        """Paired difference of a metric: this model less `other`, by default its base."""
        other = other or self.base
        if other is None:
            raise EvaluationError(f"{self.model} isn't held against another model: give `against`")
        pairs = [pair for pair in zip(self.items, other.items, strict=True) if metric in pair[0].values]
        after, before = ([pair[side].values.get(metric) for pair in pairs] for side in (0, 1))
        return difference(after, before, [item.cluster for item, _ in pairs])

    def floor_difference(self, name: str, metric: str) -> Difference:
        """Paired difference of a metric between a noise floor and the base."""
        assert self.base is not None
        return self.floor[name].difference(metric, self.base)


def interval(found: Score, scale: float = 1.0, *, sign: bool = False) -> str:
    """A mean and its interval for people: `.68 [.62, .74]`."""
    if found.value is None:
        return "missing"
    value = short(found.value * scale, sign=sign)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{short(found.low * scale, sign=sign)}, {short(found.high * scale, sign=sign)}]"


def short(value: float, *, sign: bool = False) -> str:
    """A number for people, in three digits."""
    digits = 3 if abs(value) < 10 else 1
    return f"{value:{'+' if sign else ''}.{digits}f}"
