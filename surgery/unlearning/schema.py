"""What the JSON of bottlenecks, erasers and reports on them holds, as far as anything reads it.

Fields that older versions didn't write may be missing.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_Number = Annotated[int, Meta(ge=1, le=1 << 16)]
_Label = int | str
_Via = Literal["activations", "examples", "refit", "counts"]


class _Sgd(TypedDict):
    rate: float
    epochs: _Count
    batch: Annotated[int, Meta(ge=1, lt=1 << 53)]
    smoothing: float


class _Settings(TypedDict):
    top: _Number
    values: Literal["sgd", "counts"]
    sgd: _Sgd | None
    seed: _Count
    key_init: Literal["kmeans", "ema", "sample"]
    projection: Literal["random", "segments"]
    keys_from: str
    class_rows: list[_Count] | None
    read_as: NotRequired[dict[str, str]]


class _Encoder(TypedDict):
    source: str
    kind: Literal["text", "image"]
    pooling: str | None
    width: _Count
    max_length: _Count | None
    dtype: str | None
    fingerprint: str


class _Note(TypedDict):
    hash: str
    via: _Via
    forget: list[_Label]
    rows: _Count
    masked: _Count
    keys_saw_them: _Count
    answer: str | None


class BottleneckConfig(TypedDict):
    """`config.json` of a bottleneck."""

    classes: Annotated[list[_Label], Meta(min_length=1)]
    settings: _Settings
    encoder: _Encoder | None
    history: list[_Note]


class Origin(TypedDict, total=False):
    """`report.json` of a bottleneck."""

    surgery: str
    inputs: dict[str, Any]


class _Edit(TypedDict):
    via: _Via
    forget: list[_Label]
    rows: _Count
    pairs: _Count
    of_pairs: _Count
    active: _Count
    masked: _Count
    rank: str | None
    answer: str | None
    examples: NotRequired[_Count | None]
    rule: NotRequired[str | None]
    keys_saw_them: _Count
    class_rows: tuple[list[_Count] | None, list[_Count] | None]
    inputs: NotRequired[dict[str, Any]]
    seed: _Count


class EraserReport(TypedDict):
    """`report.json` of an eraser."""

    hash: str
    bottleneck: str
    previous: str
    edit: _Edit
    surgery: NotRequired[str]
    seconds: NotRequired[float]


class _Area(TypedDict):
    auc: float
    low: float
    high: float


class _Relearn(TypedDict):
    curve: dict[str, float]
    examples: _Count | None


class _Point(TypedDict):
    forget_accuracy: float | None
    retain_accuracy: float | None
    per_class: NotRequired[dict[str, float | None]]
    seconds: NotRequired[float | None]
    membership: NotRequired[dict[str, _Area]]
    relearn: NotRequired[_Relearn]


class _Forgotten(TypedDict):
    forget: list[_Label]


class VerifyReport(TypedDict):
    """`report.json` of `surgery bottleneck verify`."""

    points: dict[str, _Point]
    classes: list[str]
    class_rows: NotRequired[list[_Count] | None]
    history: list[_Forgotten]
    remarks: list[str]
