"""Study: what a study has found so far, as a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import SkillError
from surgery.files import new_folder, replace_json
from surgery.grafting.study import figures, measures
from surgery.grafting.study.settings import Settings
from surgery.jsonfile import JsonError, load_json
from surgery.reporting.page import Figure, Page, Part, Table, Text
from surgery.reporting.results import Result
from surgery.tasks.calibration import Reliability, softmax

_FORMAT = "surgery skill study 1"
_LEGEND = {
    "gain": "(graft - base) / (tuned - base), with a 95% bootstrap interval over test examples.",
    "forgotten": "What the accuracy on a task has fallen by since it was learnt, mean of the tasks but the last; for the union, against each skill alone, mean of all tasks.",
    "ECE, scaled": "After division by a temperature that was fitted on held-out training examples of the task tuned on.",
    "least gain": "The gain of the task that gains least, as a share of what tuning on it alone gains.",
}


@dataclass(frozen=True, eq=False)
class Study(Result):
    """What a study has found so far.

    Attributes:
        settings: its options. `done`, `planned`: numbers of stages.
        seeds: of each seed the figures by section (`alone`, `transfer`, `regions`, `in_a_row`, `merged`), as JSON.
        missing: what couldn't be run, and why.
    """

    folder: Path
    settings: Settings
    done: int
    planned: int
    seeds: tuple[Mapping[str, Any], ...]
    missing: tuple[str, ...]
    provenance: Mapping[str, Any]
    diagrams: Mapping[str, Reliability]

    @classmethod
    def of(
        cls, folder: Path, settings: Settings, found: measures.Found, planned: int, origin: Mapping[str, Any]
    ) -> "Study":
        """From what stages left."""
        held = [measures.Seed(found, seed, settings) for seed in range(settings.seeds)]
        sections = tuple(
            {
                "alone": measures.alone(seed),
                "transfer": measures.transfer(seed),
                "regions": measures.regions(seed),
                "in_a_row": measures.in_a_row(seed),
                "merged": measures.merged(seed),
            }
            for seed in held
            if seed.of("base")
        )
        missing = tuple(sorted({content["missing"] for content in found.values() if "missing" in content}))
        return cls(folder, settings, len(found), planned, sections, missing, origin, _diagrams(held[0]))

    @property
    def summary(self) -> list[str]:
        """What the skills recover, what is forgotten, and which way keeps most of all tasks."""
        told = [] if self.done == self.planned else [f"{self.done} of {self.planned} stages are done."]
        if gains := [row["gain"][0] for seed in self.seeds for row in seed["alone"] if row["gain"]]:
            told.append(
                f"Skills of {self.settings.sparsity:g} of the block weights recover {np.mean(gains):.2f} of what tuning gains, mean of {len(gains)}."
            )
        if best := self._best():
            told.append(
                f"In one model without training, {best[0]} keeps most of the task that keeps least: {best[1]:.2f} of its gain."
            )
        lost = {way: value for way, value in self._forgotten().items() if value}
        if lost and len(told) < 3:
            told.append("Forgotten: " + ", ".join(f"{np.mean(v):.3f} ({way})" for way, v in lost.items()) + ".")
        return told or ["Nothing is done yet."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Each task's own skill, one row a seed and task."""
        rows = [
            [
                number,
                row["task"],
                row["base"],
                row["tuned"],
                row["graft"],
                _told(row["gain"]),
                row["moved"],
                row["weights"],
            ]
            for number, seed in enumerate(self.seeds)
            for row in seed["alone"]
        ]
        return ["seed", "task", "base", "tuned", "graft", "gain", "moved", "weights"], rows

    def _forgotten(self) -> dict[str, list[float]]:
        ways: dict[str, list[float]] = {}
        for seed in self.seeds:
            for row in seed["in_a_row"]:
                ways.setdefault(row["way"], []).append(row["forgotten"])
        return ways

    def _best(self) -> tuple[str, float] | None:
        ways: dict[str, list[float]] = {}
        for seed in self.seeds:
            for row in seed["merged"]:
                if row["least"] is not None:
                    ways.setdefault(row["way"], []).append(row["least"])
        means = {way: float(np.mean(values)) for way, values in ways.items()}
        return max(means.items(), key=lambda item: item[1]) if means else None

    # -- files -----------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Write report, page and figures into the study's folder, beside what its stages keep."""
        self.write_report()
        self.page(self._draw(self.folder)).write(self.folder)

    def write_report(self) -> None:
        """Write `report.json` alone."""
        replace_json(self.folder / "report.json", self._content())

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write report, page and figures into a folder of their own."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / "report.json", self._content())
            self.page(self._draw(staged)).write(staged)
        return Path(folder)

    def _content(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "provenance": dict(self.provenance),
            "settings": asdict(self.settings),
            "done": self.done,
            "planned": self.planned,
            "seeds": list(self.seeds),
            "missing": list(self.missing),
            "reliability": {name: asdict(bins) for name, bins in self.diagrams.items()},
        }

    @classmethod
    def load(cls, folder: str | Path) -> "Study":
        """Read a study's report; raises SkillError for anything else."""
        file = Path(folder) / "report.json"
        try:
            content = load_json(file, dict[str, Any])
            if content.get("format") != _FORMAT:
                raise JsonError("another format")
            given = {**content["settings"], "tasks": tuple(content["settings"]["tasks"])}
            diagrams = {
                name: Reliability(**{k: tuple(v) for k, v in b.items()}) for name, b in content["reliability"].items()
            }
            return cls(
                Path(folder),
                Settings(**given),
                content["done"],
                content["planned"],
                tuple(content["seeds"]),
                tuple(content["missing"]),
                content["provenance"],
                diagrams,
            )
        except (OSError, JsonError, KeyError, TypeError) as error:
            raise SkillError(f"{file} is no report of a study ({error}): make it again") from None

    def _draw(self, folder: Path) -> list[Figure]:
        """Draw what there is material for."""
        made = []
        with_regions = [seed["regions"] for seed in self.seeds if seed["regions"]]
        if with_regions:
            gains = np.mean([[[_value(x) for x in row] for row in each["gains"]] for each in with_regions], 0)
            overlaps = np.mean([each["overlaps"] for each in with_regions], 0)
            grids = {"gain of the task": gains, "share of the task's region": overlaps}
            figures.draw_matrices(self.settings.tasks, grids, folder / "regions.png")
            made.append(
                Figure(
                    "regions.png",
                    "Left: what each task (row) gains when only the region of another (column) is put into the base, as a share of what it gains in the model tuned on all tasks. Right: how much of its own region lies in the other's. Alike tasks should stand out in both.",
                    "Heat maps of gains and overlaps by task and region",
                )
            )
        ways = self._gains_by_way()
        if any(bar is not None for bars in ways.values() for bar in bars):
            figures.draw_bars(
                self.settings.tasks, ways, "share of tuning's gain that is kept", folder / "merges.png", 1.0
            )
            made.append(
                Figure(
                    "merges.png",
                    f"All tasks in one model without training: the gain that is left of each, against tuning on it alone (dashed). {self._spread()}",
                    "Bars of gains by task and way of merging",
                )
            )
        if lost := self._forgotten():
            bars = {way: [_over_seeds(values)] for way, values in lost.items()}
            figures.draw_bars(["all seeds"], bars, "accuracy forgotten", folder / "forgotten.png")
            made.append(
                Figure(
                    "forgotten.png",
                    "What the accuracy on earlier tasks has fallen by at the end, by way of learning; bars are means over seeds, lines their range.",
                    "Bars of forgetting by way of learning",
                )
            )
        if self.diagrams:
            figures.draw_reliability(self.diagrams, folder / "reliability.png")
            made.append(
                Figure(
                    "reliability.png",
                    "Accuracy against confidence of the first task with another of the same labels, on its own test examples and on the other's (first seed): on the diagonal confidence can be taken at its word.",
                    "Reliability diagrams in and out of distribution",
                )
            )
        return made

    def _gains_by_way(self) -> dict[str, list[Any]]:
        ways: dict[str, list[Any]] = {}
        for way in dict.fromkeys(row["way"] for seed in self.seeds for row in seed["merged"]):
            rows = [row for seed in self.seeds for row in seed["merged"] if row["way"] == way]
            per_task = [[row["gains"][name] for row in rows if row["gains"][name]] for name in self.settings.tasks]
            ways[way] = [
                None if not each else tuple(each[0]) if len(each) == 1 else _over_seeds([gain[0] for gain in each])
                for each in per_task
            ]
        return ways

    def _spread(self) -> str:
        return "Lines are 95% bootstrap intervals." if len(self.seeds) == 1 else "Lines are ranges over seeds."

    def page(self, drawn: list[Figure]) -> Page:
        """The report for people."""
        parts: list[Part] = [*drawn[:1], Table("Each task's own skill.", *self.table(), _LEGEND)]
        parts += [*drawn[1:], *self._tables()]
        parts += [Text(f"Not run. {line}.") for line in self.missing]
        return Page("Skills of " + ", ".join(self.settings.tasks), self.summary, parts)

    def _tables(self) -> list[Part]:
        names = self.settings.tasks
        order = ", ".join(names)
        calibration = ["accuracy", "ECE", "ECE, scaled", "Brier"]
        tables = [
            Table(
                f"One task after another, in the order {order}: accuracy at the end.",
                ["seed", "way", *names, "mean", "forgotten"],
                self._rows(
                    "in_a_row", lambda row: [row["way"], *_of(row["final"], names), row["mean"], row["forgotten"]]
                ),
                _LEGEND,
            ),
            Table(
                "All tasks in one model without training: gains. What is chosen is chosen on examples that training didn't see.",
                ["seed", "way", "chosen", "weights", *names, "least gain"],
                self._rows(
                    "merged",
                    lambda row: [row["way"], *_chosen(row), *map(_told, _of(row["gains"], names)), row["least"]],
                ),
                _LEGEND,
            ),
            Table(
                "Within and across data sets of the same labels.",
                ["seed", "tuned on", "tested on", "model", *calibration],
                self._rows("transfer", _calibration),
                _LEGEND,
            ),
            Table(
                "The model tuned on all tasks: gains under the union of all regions, and the correlation between gains and "
                "overlaps of different tasks.",
                ["seed", "way", *names, "correlation"],
                [
                    [number, way, *map(_told, _of(gains, names)), found["correlation"]]
                    for number, found in enumerate(seed["regions"] for seed in self.seeds)
                    if found
                    for way, gains in found["union"].items()
                ],
            ),
        ]
        return [table for table in tables if table.rows]

    def _rows(self, section: str, cells: Callable[[Any], list[Any]]) -> list[list[Any]]:
        return [[number, *cells(row)] for number, seed in enumerate(self.seeds) for row in seed[section]]


def _of(table: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [table[name] for name in names]


def _chosen(row: Mapping[str, Any]) -> list[Any]:
    about = [f"{key} {value}" for key, value in row["chosen"].items() if key not in ("weights", "tried")]
    return [", ".join(about), row["chosen"]["weights"]]


def _calibration(row: Mapping[str, Any]) -> list[Any]:
    return [row["from"], row["on"], row["model"], _told(row["accuracy"]), row["ece"], row["ece_scaled"], row["brier"]]


def _diagrams(seed: measures.Seed) -> dict[str, Reliability]:
    """Of the first task whose skill was tried on another: base, tuned and graft, in and out of distribution."""
    for name in seed.names:
        group = list(seed.of("skill", name).get("scores", {}).get("graft", {}))
        if len(group) > 1:
            other = next(each for each in group if each != name)
            found = {}
            for on in (name, other):
                for model in ("tuned", "graft"):
                    logits = seed.logits("skill", name, model, on)
                    assert logits is not None
                    found[f"{model}, tested on {on}"] = Reliability.of(softmax(logits), seed.targets(on))
            return found
    return {}


def _value(gain: Any) -> float:
    return float("nan") if gain is None else gain[0]


def _told(gain: Any) -> str | None:
    return None if gain is None else f"{gain[0]:.3f} [{gain[1]:.3f}, {gain[2]:.3f}]"


def _over_seeds(values: list[float]) -> tuple[float, float, float]:
    return float(np.mean(values)), min(values), max(values)
