"""Report: what `verify` found, as fields to read, one table, JSON and figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import BottleneckError
from surgery.files import new_folder, replace_bytes
from surgery.jsonfile import conform
from surgery.reporting.markdown import table
from surgery.unlearning.evaluation.membership import ATTACKS
from surgery.unlearning.schema import VerifyReport
from surgery.unlearning.storage import read_json, take_checksum, write_table

_SHOWN = ("before", "after", "refitted")
_FORMAT = "surgery unlearning report 1"


@dataclass(frozen=True, eq=False)
class Report:
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
    def columns(self) -> list[str]:
        """Of the table; `caption` says what they mean."""
        attacks = [f"AUC, {name}" for name in ATTACKS.values()]
        return ["", "forgotten", "retained", "vs refit", *attacks, "relearn", "sec"]

    @property
    def caption(self) -> str:
        """Of the table."""
        return (
            "Accuracy in %; membership attacks by loss, masked share (of a row's nearest keys) and likelihood ratio (to shadow "
            "bottlenecks) as areas under the ROC curve with 95% intervals; "
            "forgotten rows to learn again until half of the accuracy is back."
        )

    @property
    def rows(self) -> list[list[str]]:
        """Of the table: accuracies in percent, areas under the ROC curve with 95% intervals."""
        reference = self.refitted["retain_accuracy"]
        found = []
        for name, point in self.content["points"].items():
            attacks = point.get("membership", {})
            found.append(
                [
                    name,
                    _percent(point["forget_accuracy"]),
                    _percent(point["retain_accuracy"]),
                    ""
                    if name == "refitted" or reference is None
                    else f"{100 * (point['retain_accuracy'] - reference):+.1f}",
                    *(_area(attacks.get(attack)) for attack in ATTACKS),
                    _relearn(point),
                    "" if point.get("seconds") is None else f"{point['seconds']:.3f}",
                ]
            )
        return found

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns that hold something, and the rows."""
        rows = self.rows
        used = [n for n in range(len(self.columns)) if n < 3 or any(row[n] for row in rows)]
        return [self.columns[n] for n in used], [[row[n] for n in used] for row in rows]

    def markdown(self) -> str:
        """The table, the remarks, and the table of classes."""
        lines = [*table(*self.table()), "", self.caption, "", *(f"- {remark}" for remark in self.remarks), ""]
        lines += ["Test accuracy of each class (%), forgotten ones marked:", "", *table(*self.class_table()), ""]
        return "\n".join(lines)

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

    def save(self, folder: str | Path, *, overwrite: bool = False, figures: bool = True) -> Path:
        """Write `report.json`, `README.md` with the table, and figures."""
        from surgery.unlearning.evaluation.figures import draw

        with new_folder(Path(folder), overwrite=overwrite) as staged:
            write_table(staged / "report.json", {"format": _FORMAT, **self.content})
            drawn = draw(self.content, staged) if figures else []
            page = [f"# Forgotten: {self.content['forgotten']}", "", self.markdown()]
            page += [f"![{path.stem.replace('-', ' ')}]({path.name})" for path in drawn]
            replace_bytes(staged / "README.md", ("\n".join(page) + "\n").encode())
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


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _area(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    area, low, high = (f"{found[key]:.2f}".removeprefix("0") for key in ("auc", "low", "high"))
    return f"{area} ({low}-{high})"


def _relearn(point: Mapping[str, Any]) -> str:
    if "relearn" not in point:
        return ""
    return str(point["relearn"]["examples"] or f"> {max(map(int, point['relearn']['curve']))}")
