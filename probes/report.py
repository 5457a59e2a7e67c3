"""ProbeReport: what was measured, saved as JSON, a Markdown page, an HTML page and figures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from msgspec import convert

from probes.causal import Head, Removal
from probes.errors import ProbeError
from probes.intervals import Measure
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.jsonfile import JsonError, conform, load_json
from surgery.provenance import SCHEMA

FILE = "report.json"
SCHEMA_FILE = "report.schema.json"  # which marks a folder as ours: models have a report.json too

Table = tuple[tuple[float, ...], ...]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Example:
    """A test sentence: exact and predicted marginals, entry (i, j) for words i to j, and the minimum-risk tree of each.

    Trees are spans of first word and place after the last.
    """

    words: tuple[str, ...]
    layer: int
    exact: Table
    predicted: Table
    exact_tree: Spans
    predicted_tree: Spans


@dataclass(frozen=True)
class Verdict:
    """Whether the probe of the layer that speaks for it beats a control by more than their 95% intervals.

    Attributes:
        probe, metric: what is compared.
        control: which control, at its own best layer if it has layers.
        value, against: the model's number and the control's.
        beats: whether their intervals don't touch, and the model's is the better.
    """

    probe: str
    metric: str
    control: str
    value: Measure
    against: Measure
    beats: bool


@dataclass(frozen=True)
class ProbeReport:
    """All numbers of an experiment.

    Attributes:
        provenance: versions, call, seed, fingerprints of what went in.
        model: its name, layers, heads and width.
        counts: sentences that probes were trained and tested on, words and spans.
        exact: whether the targets are exact marginals; else they are 1 for spans of a treebank's trees, and 0.
        layers: that were probed; `best_layer` is the one with the shortest description length on training sentences.
        measures: every number with its spread.
        loss: the model's loss at masked words beside the optimum, by position and by number of masks; None without one.
        removals, heads: the causal check, by layer, and attention within constituents, by head.
        notes: what a reader must know.
        seconds: how long it took.
    """

    provenance: dict[str, Any]
    model: dict[str, Any]
    counts: dict[str, int]
    exact: bool
    layers: tuple[int, ...]
    best_layer: int
    measures: tuple[Measure, ...]
    loss: dict[str, Any] | None
    removals: tuple[Removal, ...]
    heads: tuple[Head, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    seconds: float

    def find(self, probe: str, source: str, metric: str, layer: int | None = None, group: str = "") -> Measure | None:
        """The measure of that description, or None."""
        key = (probe, source, metric, layer, group)
        return next((m for m in self.measures if (m.probe, m.source, m.metric, m.layer, m.group) == key), None)

    def by_layer(self, probe: str, source: str, metric: str, group: str = "") -> list[Measure]:
        """The measures of a model's layers, in order."""
        found = [self.find(probe, source, metric, layer, group) for layer in self.layers]
        return [measure for measure in found if measure is not None]

    def layer_of(self, probe: str) -> int:
        """The layer that speaks for a probe: the last for masked words, which are predicted there; else the best."""
        return max(self.layers) if probe == "words" else self.best_layer

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Each probe, at the layer that speaks for it, against every control."""
        found = []
        for probe, metric, controls in _COMPARED:
            own = self.find(probe, "model", metric, self.layer_of(probe))
            for control in controls:
                against = self._strongest(probe, control, metric)
                if own is not None and against is not None:
                    found.append(Verdict(probe, metric, control, own, against, _apart(own, against, metric == "kl")))
        return tuple(found)

    def _strongest(self, probe: str, control: str, metric: str) -> Measure | None:
        """A control's best number, over layers where it has them."""
        if control == "layer 0":
            return self.find(probe, "model", metric, 0) if self.layer_of(probe) else None
        if control == "control task":
            return self.find(probe, "model", f"control {metric}", self.best_layer)
        name = "none" if control in ("left", "right", "random", "length") else probe
        found = [m for m in self.measures if (m.probe, m.source, m.metric, m.group) == (name, control, metric, "")]
        best = min if metric == "kl" else max
        return best(found, key=lambda m: m.value, default=None)

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows of the table by layer."""
        metrics = [column for column in _COLUMNS if self.by_layer(column[1], "model", column[2])]
        head = ("", *(name for name, _, _ in metrics))
        rows = []
        for source, name in (("model", "layer"), ("untrained", "untrained")):
            for layer in self.layers:
                cells = [_cell(self.find(probe, source, metric, layer)) for _, probe, metric in metrics]
                star = " *" if source == "model" and layer == self.best_layer else ""
                if any(cells):
                    rows.append((f"{name} {layer}{star}", *cells))
        for source in ("word identity", "position"):
            rows.append((source, *(_cell(self.find(probe, source, metric)) for _, probe, metric in metrics)))
        for source in ("length", "left", "right", "random", "ceiling"):
            found = [
                None if (probe, metric) in _OWN else self.find("none", source, metric) for _, probe, metric in metrics
            ]
            cells = [_cell(measure) for measure in found]
            rows.append((source, *cells))
        return head, rows

    def table(self) -> str:
        """The numbers by layer and the controls, for a terminal."""
        head, rows = self.rows()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, *rows)
        ]
        return "\n".join(line.rstrip() for line in lines)

    def figures(self, folder: str | Path) -> list[Path]:
        """Draw every figure into a folder, and return the files."""
        from probes.figures import draw_figures

        Path(folder).mkdir(parents=True, exist_ok=True)
        return draw_figures(self, Path(folder))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """`report.json` with its schema, `README.md`, `index.html` and figures; the folder appears whole or not at all."""
        from probes.page import write_pages
        from probes.schema import REPORT_SCHEMA

        with new_folder(Path(folder), overwrite=overwrite, replaces=SCHEMA_FILE) as staged:
            replace_json(staged / FILE, self.to_json())
            replace_json(staged / SCHEMA_FILE, REPORT_SCHEMA)
            figures = self.figures(staged)
            for name, text in write_pages(self, figures).items():
                replace_bytes(staged / name, text.encode())

    def to_json(self) -> dict[str, Any]:
        """What `load` reads."""
        content = {"schema": SCHEMA, **asdict(self)}
        verdicts = [
            {"probe": v.probe, "metric": v.metric, "control": v.control, "beats": v.beats} for v in self.verdicts
        ]
        return {**content, "verdicts": verdicts}

    @classmethod
    def load(cls, folder: str | Path) -> "ProbeReport":
        """Read what `save` wrote. Raises ProbeError, naming the file, for anything else."""
        path = Path(folder).expanduser() / FILE
        try:
            content = load_json(path)
        except OSError as error:
            raise ProbeError(f"{path} can't be read: {error.strerror}") from None
        except JsonError as error:
            raise ProbeError(f"{path} isn't JSON ({error}): name a folder written by surgery probe") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA or "best_layer" not in content:
            raise ProbeError(f"{path} isn't a probe report of schema {SCHEMA}: name a folder written by surgery probe")
        try:
            found = convert(content, cls)
            conform(content, _Content)
            found.check()
            return found
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, StopIteration) as error:
            raise ProbeError(f"{path} is damaged ({error}): write it again") from None

    def check(self) -> None:
        """Raise KeyError, TypeError, ValueError and the like where some of its parts lack what others refer to."""
        from probes.page import text_example, write_pages

        for example in self.examples:
            n = len(example.words)
            if any(
                len(table) != n or any(len(row) != n for row in table) for table in (example.exact, example.predicted)
            ):
                raise ValueError(f"tables of other sizes than the {n} words of {' '.join(example.words)}")
            text_example(example)
            if any(not 0 <= start < stop <= n for start, stop in (*example.exact_tree, *example.predicted_tree)):
                raise ValueError(f"trees with other words than the {n} of {' '.join(example.words)}")
        if self.best_layer not in self.layers:
            raise ValueError(f"best_layer {self.best_layer} is none of the layers")
        write_pages(self, [])
        summary(self)


class _Excess(TypedDict):
    value: float
    low: float
    high: float


class _Group(_Excess, total=False):
    position: int
    masks: int


class _Loss(TypedDict):
    optimum: float
    excess: _Excess
    by_position: list[_Group]
    by_masks: list[_Group]


class _Model(TypedDict):
    name: str
    layers: int
    heads: int
    width: int


class _Content(TypedDict):
    """What is tables in a report's dataclass, as far as anything reads it."""

    model: _Model
    loss: _Loss | None


# Name of a column, probe, metric.
_COLUMNS = (
    ("R2 linear", "span-linear", "r2"),
    ("R2 2-layer", "span-two-layer", "r2"),
    ("F1 linear", "span-linear", "f1"),
    ("F1 2-layer", "span-two-layer", "f1"),
    ("of ceiling", "span-two-layer", "f1 share"),
    ("F1 depth", "depth", "f1"),
    ("F1 distance", "distance", "f1"),
    ("DSpr", "distance", "spearman"),
    ("bits", "span-two-layer", "bits"),
    ("KL words", "words", "kl"),
)
_OWN = (("distance", "spearman"), ("words", "kl"))  # what these are of, trees and lengths have no say in
_TRAINED = ("layer 0", "untrained", "word identity", "position")
_COMPARED = (
    ("span-linear", "r2", (*_TRAINED, "length", "control task")),
    ("span-two-layer", "r2", (*_TRAINED, "length", "control task")),
    ("span-linear", "f1", (*_TRAINED, "left", "right", "random")),
    ("span-two-layer", "f1", (*_TRAINED, "left", "right", "random")),
    ("depth", "f1", (*_TRAINED, "left", "right", "random")),
    ("depth", "accuracy", (*_TRAINED, "control task")),
    ("distance", "f1", (*_TRAINED, "left", "right", "random")),
    ("distance", "spearman", _TRAINED),
    ("words", "kl", _TRAINED),
)


def _apart(own: Measure, against: Measure, lower_is_better: bool) -> bool:
    if own.low is None or own.high is None or against.low is None or against.high is None:
        return False
    return own.high < against.low if lower_is_better else own.low > against.high


def _cell(measure: Measure | None) -> str:
    return "" if measure is None else f"{measure.value:.3f}"


def interval(measure: Measure) -> str:
    """A value with its interval, for people."""
    if measure.low is None or measure.high is None:
        return f"{measure.value:.3f}"
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"


def summary(report: ProbeReport) -> Sequence[str]:
    """What the report says, in sentences."""
    best = report.best_layer
    own = report.find("span-two-layer", "model", "f1", best)
    share = report.find("span-two-layer", "model", "f1 share", best)
    found = [f"Layer {best} describes the training spans in the fewest bits; what follows is of that layer."]
    if own is not None and share is not None:
        what = "of the grammar's own minimum-risk trees" if report.exact else "of the binarised true trees"
        found.append(f"Trees decoded from the two-layer span probe: F1 {interval(own)}, {interval(share)} {what}.")
    r2 = report.find("span-two-layer", "model", "r2", best)
    if r2 is not None:
        found.append(f"Span marginals, two-layer probe: R^2 {interval(r2)}.")
    if report.loss:
        excess = report.loss["excess"]
        found.append(
            f"Masked words: {excess['value']:.3f} nats [{excess['low']:.3f}, {excess['high']:.3f}] above the optimum of {report.loss['optimum']:.3f}."
        )
    if not best:
        found.append("That is the embeddings: no layer says more of spans than they do.")
    lost: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        if not verdict.beats:
            lost.setdefault(f"{verdict.probe} {verdict.metric}", []).append(verdict.control)
    if lost:
        names = "; ".join(f"{probe}: {', '.join(controls)}" for probe, controls in lost.items())
        found.append(f"Controls that are not beaten by more than the 95% intervals - {names}.")
    else:
        found.append("Every probe beats every control by more than their 95% intervals.")
    return found
