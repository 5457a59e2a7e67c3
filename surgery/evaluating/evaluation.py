"""Evaluation: what a model scored on items, beside what it said, and against another model on the same items."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from surgery.errors import EvaluationError
from surgery.evaluating.measured import Facts, Item, Measured, Metric, interval, short
from surgery.evaluating.page import evaluation_page
from surgery.evaluating.plots import draw
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, conform, load_named, parse_json
from surgery.reporting.results import Result

FORMAT = "surgery evaluation 1"


@dataclass(frozen=True)
class Evaluation(Measured, Result):
    """Evaluation of a model: what was measured, shown and kept as every result is."""

    base: "Evaluation | None" = None
    floor: "Mapping[str, Evaluation]" = field(default_factory=dict)

    def against(self, base: "Evaluation", floor: "Mapping[str, Evaluation] | None" = None) -> "Evaluation":
        """This evaluation held against another on the same items.

        Raises:
            EvaluationError: the other's items, or the settings that decide them, differ.
        """
        for other in (base, *(floor or {}).values()):
            if [item.name for item in other.items] != [item.name for item in self.items] or other.kind != self.kind:
                raise EvaluationError(
                    f"{self.model} and {other.model} weren't asked the same items: evaluate both with the same options and seed"
                )
        return replace(self, base=base, floor=dict(floor or {}))

    @property
    def summary(self) -> list[str]:
        """The first metric with its interval, against the base, and what is missing."""
        first = self.metrics[0]
        lines = [f"{self.model}: {first.name} {interval(self.score(first.name), first.scale)}{_chance(first)}."]
        if self.base is not None:
            found = self.difference(first.name)
            verdict = "a difference that is clear" if found.clear else "no clear difference"
            lines.append(
                f"Against {self.base.model} ({interval(self.base.score(first.name), first.scale)}): {interval(found.score, first.scale, sign=True)}, {verdict}."
            )
        own = [item.values[first.name] for item in self.items if first.name in item.values]
        if missing := own.count(None):
            lines.append(
                f"{missing} of {len(own)} items are missing: no answer, or a grading that can't be read. They count as nothing."
            )
        return lines

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Each metric with its interval; beside the base's where there is one."""
        columns = ["metric", "value", "standard error", "low", "high", "chance", "items", "missing"]
        more = ["base", "difference", "difference low", "difference high", "p", "detectable"] if self.base else []
        rows = []
        for metric in self.metrics:
            found, scale = self.score(metric.name), metric.scale
            row: list[Any] = [
                metric.name,
                *_scaled((found.value, found.standard_error, found.low, found.high, metric.chance), scale),
            ]
            row += [found.items, found.missing]
            if self.base:
                gap = self.difference(metric.name)
                row += _scaled(
                    (self.base.score(metric.name).value, gap.score.value, gap.score.low, gap.score.high), scale
                )
                row += [gap.p_value, *_scaled((gap.detectable,), scale)]
            rows.append(row)
        return columns + more, rows

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        scores = {metric.name: asdict(self.score(metric.name)) for metric in self.metrics}
        found: dict[str, Any] = {"format": FORMAT, "kind": self.kind, "model": self.model, "scores": scores}
        if self.base is not None:
            found["differences"] = {metric.name: asdict(self.difference(metric.name)) for metric in self.metrics}
        found |= {"remarks": list(self.remarks), "settings": self.settings, "usage": self.usage, "links": self.links}
        found["facts"] = [asdict(fact) for fact in self.facts]
        found |= {
            "metrics": [asdict(metric) for metric in self.metrics],
            "items": [asdict(item) for item in self.items],
        }
        found |= {
            "base": self.base and self.base.content(),
            "floor": {name: each.content() for name, each in self.floor.items()},
        }
        return {**found, "origin": self.origin}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder: `report.json`, and the page `index.html` and `README.md` with figures."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / "report.json", self.content())
            evaluation_page(self, self.summary, self.table(), draw(self, staged)).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote; raises EvaluationError, naming the file, for anything else."""
        path = Path(folder).expanduser() / "report.json"
        try:
            content = load_named(path, FORMAT)
            return cls._of(content)
        except (OSError, JsonError, TypeError, KeyError) as error:
            raise EvaluationError(
                f"{path} can't be read as an evaluation ({error}): name a folder that `surgery eval` wrote"
            ) from None

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "Evaluation":
        conform(content, _Content)
        if not content["metrics"]:
            raise JsonError("it has no metrics")
        return cls(
            kind=content["kind"],
            model=content["model"],
            metrics=parse_json(json.dumps(content["metrics"]), tuple[Metric, ...]),
            items=parse_json(json.dumps(content["items"]), tuple[Item, ...]),
            remarks=tuple(content["remarks"]),
            settings=content["settings"],
            usage=content["usage"],
            origin=content["origin"],
            base=content["base"] and cls._of(content["base"]),
            floor={name: cls._of(each) for name, each in content["floor"].items()},
            facts=parse_json(json.dumps(content["facts"]), tuple[Facts, ...]),
            links=content["links"],
        )


class _Content(TypedDict):
    """What `Evaluation` reads of its report."""

    kind: str
    model: str
    metrics: list[dict[str, Any]]
    items: list[dict[str, Any]]
    remarks: list[str]
    settings: dict[str, Any]
    usage: dict[str, Any]
    origin: dict[str, Any]
    base: dict[str, Any] | None
    floor: dict[str, dict[str, Any]]
    facts: list[dict[str, Any]]
    links: dict[str, str]


def _chance(metric: Metric) -> str:
    return "" if metric.chance is None else f" (chance {short(metric.chance * metric.scale)})"


def _scaled(values: Sequence[float | None], scale: float) -> list[float | None]:
    return [None if value is None else value * scale for value in values]
