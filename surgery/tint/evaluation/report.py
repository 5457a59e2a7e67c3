"""Run: what `surgery tint run` measured, as fields to read, one table, JSON and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from surgery.files import new_folder, replace_bytes, replace_json
from surgery.reporting.markdown import table
from surgery.tint.evaluation.verification import load_report

_FORMAT = "surgery tint run 1"


class _Point(TypedDict):
    method: str
    value: float
    low: float
    high: float
    lr: float | None
    share: NotRequired[float]
    gain: NotRequired[float]
    gain_error: NotRequired[float | None]


class _Content(TypedDict):
    """What `report.json` holds, as far as the tables read it."""

    kind: Literal["text", "task"]
    points: list[_Point]
    metric: NotRequired[str]
    tests: NotRequired[int]


@dataclass(frozen=True, eq=False)
class Run:
    """Perplexity on a text's windows, or accuracy on a task, by method.

    Attributes:
        content: everything, as it is saved; `content["points"]` has one entry a method (and, for texts, a training share),
            each with `value`, `low` and `high` (a 95% interval), the learning rate `lr` and, for methods that learn, `gain`
            and `gain_error`: see `difference`.
    """

    content: Mapping[str, Any]

    @property
    def points(self) -> list[Mapping[str, Any]]:
        """The entries."""
        return self.content["points"]

    def value(self, method: str, share: float | None = None) -> float:
        """A method's figure; raises KeyError for one that wasn't run."""
        for point in self.points:
            if point["method"] == method and (share is None or point.get("share") == share):
                return point["value"]
        raise KeyError(method)

    @property
    def caption(self) -> str:
        """Of the table."""
        if self.content["kind"] == "text":
            return "Perplexity on what follows the training share of each window, with 95% intervals over windows."
        return f"{self.content['metric']} with 95% intervals, {self.content['tests']} test examples."

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: one row a method; for texts one column a training share."""
        if self.content["kind"] == "task":
            rows = [[p["method"], _interval(p, 3), _rate(p)] for p in self.points]
            return ["", self.content["metric"], "learning rate"], rows
        shares = list(dict.fromkeys(point["share"] for point in self.points))
        methods = list(dict.fromkeys(point["method"] for point in self.points))
        rows = []
        for method in methods:
            by_share = {point["share"]: point for point in self.points if point["method"] == method}
            rows.append([method, *(f"{_interval(by_share[s], 2)}{_at(by_share[s])}" for s in shares)])
        return ["", *(f"{share:.0%} for training" for share in shares)], rows

    @property
    def differences_caption(self) -> str:
        """Of the second table."""
        if self.content["kind"] == "text":
            return "Nats a token below the frozen model, window by window, plus or minus a standard error over windows."
        return "Accuracy above the same prompt without learning, example by example, plus or minus a standard error."

    def differences(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: what each method that learns gains, paired; reports written before this was kept have none."""
        learn = [point for point in self.points if "gain" in point]
        if self.content["kind"] == "task":
            return ["", "gain"], [[point["method"], _gain(point)] for point in learn]
        shares = list(dict.fromkeys(point["share"] for point in learn))
        rows = [
            [method, *(_gain(p) for p in learn if p["method"] == method)]
            for method in dict.fromkeys(point["method"] for point in learn)
        ]
        return ["", *(f"{share:.0%} for training" for share in shares)], rows

    def markdown(self) -> str:
        """Both tables and their captions."""
        parts = [(*self.table(), self.caption)]
        if self.differences()[1]:
            parts.append((*self.differences(), self.differences_caption))
        lines: list[str] = []
        for columns, rows, caption in parts:
            lines += [*table(columns, rows), "", caption, ""]
        return "\n".join(lines)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, `README.md` with the table, and the figure."""
        from surgery.tint.evaluation.figures import draw_run

        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / "report.json", {"format": _FORMAT, **self.content})
            drawn = draw_run(self.content, staged)
            page = ["# Fine-tuned in the forward pass", "", self.markdown(), *(f"![{p.stem}]({p.name})" for p in drawn)]
            replace_bytes(staged / "README.md", ("\n".join(page) + "\n").encode())
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a saved one; raises TintError for anything else."""
        return load_report(Path(folder), _FORMAT, _Content, cls)


def difference(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of paired differences, and its standard error; None of a single pair."""
    count = len(values)
    mean = sum(values) / count
    spread = sum((value - mean) ** 2 for value in values)
    return {"gain": mean, "gain_error": (spread / (count - 1) / count) ** 0.5 if count > 1 else None}


def best(scores: Mapping[float, float], *, lowest: bool) -> float:
    """The learning rate with the best score on the development split; of equals, the smallest."""
    sign = 1 if lowest else -1
    return min(sorted(scores), key=lambda rate: sign * scores[rate])


def pick_rates(given: float | Sequence[float] | None, usual: Sequence[float]) -> tuple[float, ...]:
    """The learning rates to choose among; one alone isn't chosen."""
    from surgery.errors import OptionError

    rates = tuple(usual) if given is None else (given,) if isinstance(given, int | float) else tuple(given)
    if not rates or any(not 0 < rate < float("inf") for rate in rates):
        raise OptionError(f"learning rates {list(rates)} must be positive numbers")
    return tuple(sorted({float(rate) for rate in rates}))


def _interval(point: Mapping[str, Any], digits: int) -> str:
    return f"{point['value']:.{digits}f} ({point['low']:.{digits}f}-{point['high']:.{digits}f})"


def _gain(point: Mapping[str, Any]) -> str:
    error = "" if point["gain_error"] is None else f" ± {point['gain_error']:.3f}"
    return f"{point['gain']:+.3f}{error}"


def _rate(point: Mapping[str, Any]) -> str:
    return "" if point["lr"] is None else f"{point['lr']:g}"


def _at(point: Mapping[str, Any]) -> str:
    return "" if point["lr"] is None else f" at {point['lr']:g}"
