"""ProbeReport: what was measured, saved as JSON, a Markdown page, an HTML page and figures."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from msgspec import convert

from probes.errors import ProbeError, probe_errors
from probes.figures.catalog import draw_figures, drawings
from probes.findings import Findings
from probes.page import report_page
from probes.schema import REPORT_SCHEMA
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, conform, load_json
from surgery.provenance import SCHEMA
from surgery.reporting.results import Result

FILE = "report.json"
SCHEMA_FILE = "report.schema.json"  # which marks a folder as ours: models have a report.json too


@dataclass(frozen=True)
class ProbeReport(Findings, Result):
    """What `probe_spans` and `probe_trees` measured, in a folder with pages and figures."""

    def figures(self, folder: str | Path) -> list[Path]:
        """Draw every figure into a folder, and return the files."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return draw_figures(drawings(self), Path(folder))

    @probe_errors()
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json` with its schema, `README.md`, `index.html` and figures; the folder appears whole or not at all."""
        with new_folder(Path(folder), overwrite=overwrite, replaces=SCHEMA_FILE) as staged:
            replace_json(staged / FILE, self.to_json())
            replace_json(staged / SCHEMA_FILE, REPORT_SCHEMA)
            drawn = drawings(self)
            draw_figures(drawn, staged)
            report_page(self, drawn).write(staged)
        return Path(folder)

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        verdicts = [
            {"probe": v.probe, "metric": v.metric, "control": v.control, "beats": v.beats} for v in self.verdicts
        ]
        return {"schema": SCHEMA, **asdict(self), "verdicts": verdicts}

    @classmethod
    def load(cls, folder: str | Path) -> "ProbeReport":
        """Read what `save` wrote; raise ProbeError, naming the file, for anything else."""
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
            report = convert(content, cls)
            conform(content, _Content)
            report.check()
            return report
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, StopIteration) as error:
            raise ProbeError(f"{path} is damaged ({error}): write it again") from None

    def check(self) -> None:
        """Raise KeyError, TypeError, ValueError and the like where parts of a loaded report don't fit together."""
        for example in self.examples:
            example.check()
        if self.best_layer not in self.layers:
            raise ValueError(f"best_layer {self.best_layer} is none of the layers")
        page = report_page(self, drawings(self))
        page.markdown()
        page.html()


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
    """The parts of `report.json` that the dataclass holds as dictionaries, as far as anything reads them."""

    model: _Model
    loss: _Loss | None
