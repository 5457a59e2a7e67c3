"""CompetenceReport: what `measure_competence` measured, saved as JSON, pages and figures; and reading any report of emergence."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from msgspec import convert

from probes.emergence.competence import Competence
from probes.emergence.figures import draw_competence
from probes.emergence.page import competence_page
from probes.errors import ProbeError, probe_errors
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, conform, load_json
from surgery.reporting.results import Result

FILE = "report.json"
FORMAT = "surgery emergence measure 1"


@dataclass(frozen=True)
class CompetenceReport(Competence, Result):
    """What `measure_competence` measured, in a folder with pages and figures."""

    def figures(self, folder: str | Path) -> list[Path]:
        """Draw every figure into a folder, and return the files."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return [Path(folder) / drawn.file for drawn in draw_competence(self, Path(folder))]

    @probe_errors()
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, `README.md`, `index.html` and figures; the folder appears whole or not at all."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / FILE, {"format": FORMAT, **asdict(self)})
            competence_page(self, draw_competence(self, staged)).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "CompetenceReport":
        """Read what `save` wrote; raise ProbeError, naming the file, for anything else."""
        content = read_report(folder, FORMAT)
        path = Path(folder).expanduser() / FILE
        try:
            report = convert(content, cls)
            conform(content, _Content)
            _check_shares(report)
            competence_page(report, ()).markdown()
            return report
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise ProbeError(f"{path} is damaged ({error}): write it again") from None


def _check_shares(report: CompetenceReport) -> None:
    """Refuse failures that are no shares, and counts below 0. Raises ValueError."""
    scores = [*report.tuples, *(rule for measured in report.measured for rule in measured.rules)]
    for found in scores:
        rates = (found.failure, found.soft)
        if found.texts < 0 or found.uses < 0 or not all(0 <= rate.value <= 1 for rate in rates):
            raise ValueError(f"{' + '.join(found.rules)} has a failure that is no share, or a count below 0")


class _Settings(TypedDict):
    sentences: int
    threshold: float
    alpha: float
    least: int


class _Content(TypedDict):
    """The parts of `report.json` that the dataclass holds as dictionaries, as far as anything reads them."""

    settings: _Settings


def read_report(folder: str | Path, form: str) -> dict[str, Any]:
    """The content of a report of this form; raise ProbeError, naming the file, for anything else."""
    path = Path(folder).expanduser() / FILE
    try:
        content = load_json(path)
    except OSError as error:
        raise ProbeError(f"{path} can't be read: {error.strerror}") from None
    except JsonError as error:
        raise ProbeError(f"{path} isn't JSON ({error}): name a folder written by surgery emergence") from None
    if not isinstance(content, dict) or content.pop("format", None) != form:
        raise ProbeError(f"{path} isn't a {form}'s: name a folder written by {form[:-2]}")
    return content
