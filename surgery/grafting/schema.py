"""Schema of a skill's `report.json`, as far as anything reads it. Fields that older versions didn't write may be missing."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta

from surgery.jsonfile import KindError, conform


class _Figures(TypedDict, total=False):
    accuracy: Required[float]
    ece: Required[float]
    f1: float
    agreement: float | None
    gain_recovered: float | None
    gain_interval: tuple[float, float] | None


class _Point(_Figures, total=False):
    method: Required[str]
    weights: Required[int]
    sparsity: Required[float]


class _Asked(TypedDict, total=False):
    base: str
    weights: int


class _Call(TypedDict, total=False):
    graft: _Asked


class _Task(TypedDict):
    metric: str


class _Examples(TypedDict, total=False):
    test: int
    test_in_train: int


class _Dtypes(TypedDict):
    base: str
    tuned: str


class _Part(TypedDict):
    skill: str
    tasks: list[str]
    weights: int


class _Expected(TypedDict):
    weights: int
    sparsity: float
    ceiling: float


class _Prospects(TypedDict):
    moved: int
    movable: int
    asked: int
    ceiling: float | None
    points: list[_Expected]


class _Tried(TypedDict):
    weights: int
    sparsity: float
    gain: float


class _Target(TypedDict):
    gain: float
    judged_on: Literal["train", "dev"]
    weights: int
    points: Annotated[list[_Tried], Meta(min_length=1)]


class _Control(_Figures, total=False):
    weights: Required[int]
    agreement_above: Required[tuple[float, float, float]]


class _Skipped(TypedDict):
    skipped: str


class _Report(TypedDict, total=False):
    surgery: str
    method: str
    call: _Call
    task: _Task
    examples: _Examples
    base: _Figures
    tuned: _Figures
    graft: _Figures
    weights: int
    sparsity: float
    movable: int
    moved: int
    bytes: int
    values: Literal["tuned", "rescaled", "refitted", "low-rank"]
    prospects: _Prospects
    target: _Target
    head: list[str]
    head_given: list[str]
    resized: list[str]
    dtypes: _Dtypes
    points: list[_Point]
    made_of: list[_Part]


def check_report(report: Mapping[str, Any]) -> None:
    """Raise KindError for a report that can't be shown."""
    conform(report, _Report)
    if "control" in report:
        conform(report["control"], _Skipped if "skipped" in report["control"] else _Control)
    if "made_of" in report and "method" not in report:
        raise KindError("what it is made of and not how")
    if "graft" not in report:
        return
    if lost := {"base", "tuned"} - report.keys():
        raise KindError(f"figures of the graft and none of {min(lost)}")
    if "weights" not in report and report.get("moved"):
        raise KindError("how many weights moved and not how many are in it")
    f1 = report.get("task", {}).get("metric") == "f1"
    if f1 and not all("f1" in report[name] for name in ("base", "tuned", "graft")):
        raise KindError("no f1 among the figures of a task that it is the metric of")
