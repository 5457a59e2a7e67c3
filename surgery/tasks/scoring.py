"""Scoring: a model's label scores on examples, and what they are worth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.models import Model, load_model, steady_attention
from surgery.errors import CheckpointError, TaskError
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, conform, load_json
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.tasks.calibration import Reliability, scaled_ece, softmax
from surgery.tasks.examples import Example
from surgery.tasks.readout import Encoded, PhraseReadout, Readout, alike, collate, pick_readout
from surgery.tasks.task import Task


class _Saved(TypedDict, total=False):
    labels: Required[list[str]]
    metric: Required[Literal["accuracy", "f1"]]
    logits: Required[list[list[float]]]
    targets: Required[list[Annotated[int, Meta(ge=0)]]]
    agreement: float


@dataclass(frozen=True, eq=False)
class Score(Result):
    """Label scores of a model on the examples of a task, and the figures that follow from them.

    Attributes:
        logits: [examples, labels]; `targets`: [examples].
        agreement: the share of examples on which another model predicts the same label; None without another.
        origin: what, when and how, for the report.
    """

    labels: tuple[str, ...]
    metric: Literal["accuracy", "f1"]
    logits: NDArray
    targets: NDArray
    agreement: float | None = None
    origin: dict[str, Any] | None = None

    @property
    def predictions(self) -> NDArray:
        """The label numbers predicted, [examples]."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float((self.predictions == self.targets).mean())

    @property
    def f1(self) -> float:
        """F1 of the last label for a two-label task scored by F1 (mrpc, qqp), else the unweighted mean over labels."""
        from sklearn.metrics import f1_score

        numbers = list(range(len(self.labels)))
        if self.metric == "f1":
            return float(f1_score(self.targets, self.predictions, pos_label=numbers[-1], zero_division=0))
        return float(f1_score(self.targets, self.predictions, labels=numbers, average="macro", zero_division=0))

    @property
    def value(self) -> float:
        """The task's own metric."""
        return self.f1 if self.metric == "f1" else self.accuracy

    def resampled(self, rows: NDArray) -> NDArray:
        """The task's own metric on resamples of the examples: their numbers [resamples, examples] -> [resamples]."""
        right, guess = self.predictions == self.targets, self.predictions == len(self.labels) - 1
        if self.metric != "f1":
            return right[rows].mean(1)
        hits = (right & guess)[rows].sum(1)
        return 2 * hits / np.maximum(1, guess[rows].sum(1) + (self.targets == len(self.labels) - 1)[rows].sum(1))

    @property
    def reliability(self) -> Reliability:
        """Confidence against accuracy, by bin."""
        return Reliability.of(softmax(self.logits), self.targets)

    @property
    def ece(self) -> float:
        """Expected calibration error, 15 bins."""
        return self.reliability.ece

    def agreement_with(self, other: "Score") -> float:
        """The share of examples on which both predict the same label."""
        return float((self.predictions == other.predictions).mean())

    def figures(self) -> dict[str, Any]:
        """The figures, as JSON."""
        figures: dict[str, Any] = {
            "accuracy": self.accuracy,
            "f1": self.f1,
            "ece": self.ece,
            "ece_scaled": scaled_ece(self.logits, self.targets),
            "examples": len(self.targets),
        }
        return figures if self.agreement is None else {**figures, "agreement": self.agreement}

    @property
    def summary(self) -> list[str]:
        """The task's own metric and calibration."""
        own = f"F1 {self.f1:.3f}" if self.metric == "f1" else f"accuracy {self.accuracy:.3f}"
        both = "" if self.agreement is None else f", agreement {self.agreement:.3f}"
        return [f"{own} on {number_of(len(self.targets), 'example')}, calibration error {self.ece:.3f}{both}."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """One row: the model and its figures."""
        model = (self.origin or {}).get("call", {}).get("score", "")
        names = {
            "examples": "examples",
            "accuracy": "accuracy",
            "f1": "F1",
            "ece": "ECE",
            "ece_scaled": "ECE, temperature scaled",
        }
        if self.agreement is not None:
            names["agreement"] = "agreement"
        figures = self.figures()
        return ["model", *names.values()], [[model, *(figures[key] for key in names)]]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json` with the figures and every example's scores."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            content = {**(self.origin or {}), **self.figures(), "labels": self.labels, "metric": self.metric}
            replace_json(
                staged / "report.json", {**content, "logits": self.logits.tolist(), "targets": self.targets.tolist()}
            )
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Score":
        """Read what `save` wrote; raises TaskError, naming the file, for anything else."""
        path = Path(folder).expanduser() / "report.json"
        try:
            content = load_json(path, dict[str, Any])
            own: _Saved = {key: content[key] for key in _Saved.__annotations__ if key in content}  # type: ignore[assignment]
            conform(own, _Saved)
            logits, targets = np.array(own["logits"], np.float32), np.array(own["targets"])
            if logits.shape != (len(targets), len(own["labels"])) or not len(targets):
                raise JsonError(f"scores of shape {list(logits.shape)} for {len(targets)} examples")
        except (OSError, ValueError) as error:
            raise TaskError(f"{path} can't be read as a score ({error}): score the model again") from None
        known = {*_Saved.__annotations__, "accuracy", "f1", "ece", "ece_scaled", "examples"}
        origin = {key: value for key, value in content.items() if key not in known}
        return cls(tuple(own["labels"]), own["metric"], logits, targets, own.get("agreement"), origin or None)


def score(
    model: str | Path | Checkpoint,
    task: Task,
    *,
    against: str | Path | Checkpoint | None = None,
    base: str | Path | Checkpoint | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Score:
    """Score a checkpoint on a task's test examples.

    Args:
        against: another checkpoint, to report how often both predict the same.
        base: for sentence encoders, whose embeddings of the phrases to read by; default those that lie beside the
            checkpoint, else its own. `against` is read by the same.

    Raises:
        TaskError, CheckpointError: as loading them does.
    """
    examples = task.need("test")
    first = open_checkpoint(model)
    anchors = None if base is None else _anchors(load_model(open_checkpoint(base), device=device, dtype=dtype), task)

    def run(checkpoint: Checkpoint) -> Score:
        nonlocal anchors
        loaded = load_model(checkpoint, device=device, dtype=dtype)
        if anchors is not None:
            anchors.check_fits(loaded)
        anchors = anchors or _anchors(loaded, task)
        return score_model(loaded, anchors or pick_readout(loaded, task), task, examples, batch_size, progress)

    result = run(first)
    other = None if against is None else open_checkpoint(against)
    origin = provenance(
        call={"score": str(first), "against": other and str(other)}, inputs={"model": first.fingerprint}
    )
    agreement = None if other is None else result.agreement_with(run(other))
    return Score(
        result.labels, result.metric, result.logits, result.targets, agreement, {**origin, "task": task.spec()}
    )


def score_model(
    model: Model,
    readout: Readout,
    task: Task,
    examples: Sequence[Example],
    batch_size: int = 32,
    progress: Progress = silent,
) -> Score:
    """Score a model in memory."""
    logits = predict(model, readout, readout.encode(examples), batch_size, progress)
    return Score(task.labels, task.metric, logits, np.array(task.targets(examples)))


def predict(
    model: Model, readout: Readout, rows: Sequence[Encoded], batch_size: int = 32, progress: Progress = silent
) -> NDArray:
    """Label scores [examples, labels], float32, in the rows' order. Rows of like length share a batch."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    table: NDArray | None = None
    with torch.inference_mode(), steady_attention():
        for start in range(0, len(order), batch_size):
            for numbers in alike(model, rows, order[start : start + batch_size]):
                batch, positions = collate(model, [rows[number] for number in numbers])
                scores = readout.logits(model.module, batch, positions).float().cpu().numpy()
                if not np.isfinite(scores).all():
                    raise CheckpointError(f"{model.checkpoint} gives NaN or infinite label scores: try `dtype` float32")
                if table is None:
                    table = np.empty((len(rows), scores.shape[1]), dtype=np.float32)
                table[numbers] = scores
            progress(min(start + batch_size, len(order)), len(order), "scoring")
    assert table is not None, "an empty split is refused before"
    return table


def _anchors(model: Model, task: Task) -> PhraseReadout | None:
    """The readout that must be the same for every checkpoint compared; other kinds have one of their own each."""
    return PhraseReadout.of(model, task) if model.kind == "encoder" else None
