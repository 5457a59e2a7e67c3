"""Report: what `verify` measured, as fields to read, tables, JSON, figures and pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import BottleneckError
from surgery.files import new_folder
from surgery.jsonfile import conform
from surgery.reporting.page import Figure, Heading, Page, Part, Table, Text, render
from surgery.reporting.results import Result
from surgery.unlearning.evaluation.attacks import ATTACKS
from surgery.unlearning.schema import VerifyReport
from surgery.unlearning.storage import read_json, take_checksum, write_table

_SHOWN = ("before", "after", "refitted")
_FORMAT = "surgery unlearning report 1"


@dataclass(frozen=True, eq=False)
class Report(Result):
    """What is gone, what stayed, and what an attacker can tell.

    Attributes:
        content: everything, as it is saved. `content["points"]` has one entry for each of before, after, refitted and
            the baselines: `forget_accuracy`, `retain_accuracy`, `per_class`, `abstained`, `membership`.
    """

    content: Mapping[str, Any]

    @property
    def forget_accuracy(self) -> float:
        """Accuracy on what was forgotten, after the edit: test rows of the classes, or the very rows for single rows."""
        return self.after["forget_accuracy"]

    @property
    def retain_accuracy(self) -> float:
        """Accuracy on all other test rows, after the edit."""
        return self.after["retain_accuracy"]

    @property
    def before(self) -> Mapping[str, Any] | None:
        """Figures before the edits; None when no eraser could tell them."""
        return self.content["points"].get("before")

    @property
    def after(self) -> Mapping[str, Any]:
        """Figures after the edits."""
        return self.content["points"]["after"]

    @property
    def refitted(self) -> Mapping[str, Any]:
        """Figures of the bottleneck whose values never saw the forgotten rows: what the others are compared with."""
        return self.content["points"]["refitted"]

    @property
    def remarks(self) -> list[str]:
        """What must be said with the figures, one sentence each."""
        return self.content["remarks"]

    @property
    def forgotten(self) -> str:
        """What the edits forgot, in one line."""
        return str(self.content.get("forgotten", "nothing"))

    @property
    def summary(self) -> list[str]:
        """What is gone, what stayed, and what an attacker can tell: a sentence each."""
        return [self._gone(), self._stayed(), self._told()]

    def _gone(self) -> str:
        now, usual = self.after["forget_accuracy"], self.refitted["forget_accuracy"]
        if now is None:
            return f"Forgotten: {self.forgotten}; no test row tells how well."
        then = None if self.before is None else self.before["forget_accuracy"]
        start = "" if then is None else f", where it was {_percent(then)}% before"
        fair = "" if usual is None else f" and is {_percent(usual)}% in a bottleneck refitted without the rows"
        return f"Forgotten: {self.forgotten}; accuracy on what was forgotten is {_percent(now)}%{start}{fair}."

    def _stayed(self) -> str:
        now, usual = self.after["retain_accuracy"], self.refitted["retain_accuracy"]
        if now is None or usual is None:
            return "No test row is of what was retained."
        return f"On all else accuracy is {_percent(now)}%; refitted it is {_percent(usual)}%."

    def _told(self) -> str:
        areas, usual = self.after.get("membership", {}), self.refitted.get("membership", {})
        attacks = [attack for attack in ATTACKS if attack.key in areas and attack.key in usual]
        if not attacks:
            return "What an attacker can tell wasn't measured."
        told = [f"{_two(areas[a.key]['auc'])} by {a.name} (refitted: {_two(usual[a.key]['auc'])})" for a in attacks]
        return f"Membership attacks tell the forgotten rows from strangers with an area under the ROC curve of {' and '.join(told)}; .5 is guessing."

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row a bottleneck: accuracies as shares, areas under the ROC curve with 95% intervals, rows to learn again, seconds."""
        attacks = [a for a in ATTACKS if any(a.key in p.get("membership", {}) for p in self.content["points"].values())]
        columns = ["bottleneck", "forgotten", "retained"]
        columns += [f"AUC, {attack.name}{end}" for attack in attacks for end in ("", ", low", ", high")]
        rows = []
        for name, point in self.content["points"].items():
            areas = [point.get("membership", {}).get(attack.key, {}) for attack in attacks]
            measured = [area.get(key) for area in areas for key in ("auc", "low", "high")]
            again = point.get("relearn", {}).get("examples")
            rows.append(
                [name, point["forget_accuracy"], point["retain_accuracy"], *measured, again, point.get("seconds")]
            )
        return [*columns, "relearn", "seconds"], rows

    @property
    def columns(self) -> list[str]:
        """Of `rows`; `caption` says what they mean."""
        return list(_legend())

    @property
    def caption(self) -> str:
        """Of `rows`."""
        *some, last = [attack.name for attack in ATTACKS]
        return (
            f"Accuracy in %; membership attacks by {', '.join(some)} and {last} as areas under the ROC curve with 95% intervals; "
            "forgotten rows to learn again until half of the accuracy is back."
        )

    @property
    def rows(self) -> list[list[str]]:
        """The table as people read it: accuracies in percent, areas with 95% intervals in brackets."""
        reference = self.refitted["retain_accuracy"]
        rows = []
        for name, point in self.content["points"].items():
            areas, kept = point.get("membership", {}), point["retain_accuracy"]
            compared = name != "refitted" and kept is not None and reference is not None
            rows.append(
                [
                    name,
                    _percent(point["forget_accuracy"]),
                    _percent(kept),
                    f"{100 * (kept - reference):+.1f}" if compared else "",
                    *(_area(areas.get(attack.key)) for attack in ATTACKS),
                    _relearn(point),
                    "" if point.get("seconds") is None else f"{point['seconds']:.3f}",
                ]
            )
        return rows

    def shown(self) -> tuple[list[str], list[list[str]]]:
        """`columns` and `rows` without the columns that hold nothing."""
        rows = self.rows
        used = [n for n in range(len(self.columns)) if n < 3 or any(row[n] for row in rows)]
        return [self.columns[n] for n in used], [[row[n] for n in used] for row in rows]

    def class_table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the accuracies of each class before, after and refitted, and of how many test rows they are."""
        points = {name: self.content["points"][name] for name in _SHOWN if name in self.content["points"]}
        classes = self.content["classes"]
        gone = {str(name) for edit in self.content["history"] for name in edit["forget"]}
        counts = self.content.get("class_rows") or [None] * len(classes)  # earlier reports don't tell
        rows = [
            [
                f"{name} (forgotten)" if name in gone else name,
                "" if count is None else f"{count:,}",
                *(_percent(point["per_class"][name]) for point in points.values()),
            ]
            for name, count in zip(classes, counts, strict=True)
        ]
        return ["class", "test rows", *points], rows

    def page(self, figures: list[Figure] | None = None) -> Page:
        """The report as a page: the answer, figures, tables with what their columns mean, and what must be said with them."""
        parts: list[Part] = [*(figures or ()), Heading("What was measured"), self._table()]
        parts += [Heading("What to know with these figures"), *map(Text, self.remarks)]
        per_class = "Test accuracy of each class (%), forgotten ones marked."
        parts += [Heading("Class by class"), Table(per_class, *self.class_table())]
        return Page(f"Forgotten: {self.forgotten}", self.summary, parts)

    def markdown(self) -> str:
        """The page as Markdown, without figures."""
        return self.page().markdown()

    def _table(self) -> Table:
        return Table(
            "Before and after forgetting, beside what it is to be compared with.", *self.shown(), legend=_legend()
        )

    def _repr_html_(self) -> str:
        return render([*map(Text, self.summary), self._table()])

    def save(self, folder: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write `report.json`, figures, and two pages of the same content: `index.html` to open, `README.md` for a repository."""
        from surgery.unlearning.evaluation.figures import draw

        with new_folder(Path(folder), overwrite=overwrite) as staged:
            write_table(staged / "report.json", {"format": _FORMAT, **self.content})
            self.page(draw(self.content, staged) if figures else None).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Report":
        """Read a saved report; raises BottleneckError for anything else."""
        path = Path(folder) / "report.json"
        content = read_json(path)
        if content.get("format") != _FORMAT:
            raise BottleneckError(f"{path} isn't a {_FORMAT}'s: name a folder that `surgery bottleneck verify` wrote")
        take_checksum(path, content)
        del content["format"]
        made = cls(content)
        try:
            conform(content, VerifyReport)
            made.markdown()  # figures of some may lack what others' refer to
        except (KeyError, TypeError, ValueError) as error:
            raise BottleneckError(f"{path} is damaged ({error!r}): make or fetch it again") from None
        return made


def _legend() -> dict[str, str]:
    """What the columns of the printed table mean."""
    return {
        "bottleneck": "before the edits; after them; refitted: the same keys, with values fitted without the forgotten rows, "
        "which all others are to be compared with; then other methods, from the same start.",
        "forgotten": "accuracy on test rows of the forgotten classes (of single rows: on these very rows), in %; it ought to be "
        "as low as refitted's, and no lower.",
        "retained": "accuracy on all other test rows, in %.",
        "vs refit": "retained, less that of refitted, in points.",
        **{
            f"AUC, {attack.name}": f"an attacker's score: {attack.legend[:1].lower()}{attack.legend[1:].rstrip('.')}. How often a forgotten "
            "row has the higher score than a row of the same classes that was never trained on (the area under the ROC curve): "
            "1 tells all of them apart, .5 is guessing; in brackets the 95% interval."
            for attack in ATTACKS
        },
        "relearn": "forgotten rows to learn again until half of the accuracy before is back.",
        "sec": "seconds that the edit, the refit or the other method took.",
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _two(area: float) -> str:
    return f"{area:.2f}".removeprefix("0")


def _area(area: Mapping[str, float] | None) -> str:
    return "" if area is None else f"{_two(area['auc'])} ({_two(area['low'])}-{_two(area['high'])})"


def _relearn(point: Mapping[str, Any]) -> str:
    if "relearn" not in point:
        return ""
    return str(point["relearn"]["examples"] or f"> {max(map(int, point['relearn']['curve']))}")
