"""Selection: the rows that were chosen for a target, and why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from surgery.errors import SelectionError
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.jsonfile import JsonError, load_named, parse_json
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.selecting.page import selection_page
from surgery.selecting.plots import draw

FORMAT = "surgery selection 1"
ROWS = "selected.jsonl"


@dataclass(frozen=True)
class SourceCount:
    """Rows of a source: in the pool, chosen, and in the pool by the score's histogram."""

    name: str
    pool: int
    chosen: int
    histogram: tuple[int, ...]


@dataclass(frozen=True)
class Neighbour:
    """A chosen row beside the target's row that it is nearest to."""

    row: int
    score: float
    source: str
    text: str
    target: str
    cosine: float


@dataclass(frozen=True)
class Selection(Result):
    """Selection of a pool's rows.

    Attributes:
        by: the way of scoring, one of `surgery.selecting.scoring.METHODS`.
        numbers: of the chosen rows in the pool, the best first; scores: theirs.
        sources: what the pool and the chosen rows come from.
        edges: of the histogram of scores, over the whole pool.
        lengths: tokens of the pool's and of the chosen rows: quartiles and mean, by `pool` and `chosen`.
        overlap: share of the chosen rows that each baseline chooses too.
        nearest: the best rows with the target's nearest; for ways by gradients.
        rows: the chosen rows as they were given.
    """

    by: str
    pool: int
    share: float
    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    sources: tuple[SourceCount, ...]
    edges: tuple[float, ...]
    lengths: Mapping[str, Sequence[float]]
    overlap: Mapping[str, float]
    nearest: tuple[Neighbour, ...]
    remarks: tuple[str, ...]
    settings: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    origin: Mapping[str, Any]

    @property
    def summary(self) -> list[str]:
        """How many rows, from where, and how many of them a baseline would have chosen."""
        lines = [f"{len(self.numbers):,} of {number_of(self.pool, 'row')} chosen by {self.by}."]
        if len(self.sources) > 1:
            most = max(self.sources, key=lambda source: source.chosen)
            share, base = most.chosen / max(1, len(self.numbers)), most.pool / self.pool
            lines.append(
                f"{share:.0%} of them come from {most.name or '(no source)'}, which has {base:.0%} of the pool."
            )
        if others := {name: value for name, value in self.overlap.items() if name != "random"}:
            name = max(others, key=lambda each: others[each])
            lines.append(f"Of the simpler ways {name} agrees most: it chooses {others[name]:.0%} of them too.")
        return lines

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Each source with its rows in the pool and chosen."""
        columns = ["source", "in the pool", "chosen", "share of the pool", "share of the chosen"]
        rows = [
            [
                source.name or "(none)",
                source.pool,
                source.chosen,
                source.pool / self.pool,
                source.chosen / max(1, len(self.numbers)),
            ]
            for source in self.sources
        ]
        return columns, rows

    def content(self) -> dict[str, Any]:
        """All of it as JSON but the rows, which `selected.jsonl` holds."""
        found = {name: value for name, value in asdict(self).items() if name != "rows"}
        return {"format": FORMAT, **found}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder: `selected.jsonl` to train on, `report.json`, and the page `index.html` and `README.md` with figures."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            lines = [json.dumps(dict(row), ensure_ascii=True) + "\n" for row in self.rows]
            replace_bytes(staged / ROWS, "".join(lines).encode())
            replace_json(staged / "report.json", self.content())
            selection_page(self, self.summary, self.table(), draw(self, staged)).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Selection":
        """Read what `save` wrote; raises SelectionError, naming the file, for anything else."""
        path = Path(folder).expanduser() / "report.json"
        try:
            content = load_named(path, FORMAT, _Content)
            path = path.with_name(ROWS)
            rows = tuple(parse_json(line) for line in path.read_bytes().splitlines() if line)
            if len(rows) != len(content["numbers"]):
                raise JsonError(f"{len(rows)} rows, and report.json tells of {len(content['numbers'])}")
            own = {name: content[name] for name in _Content.__annotations__}
            own["sources"] = parse_json(json.dumps(own["sources"]), tuple[SourceCount, ...])
            own["nearest"] = parse_json(json.dumps(own["nearest"]), tuple[Neighbour, ...])
            for name in ("numbers", "scores", "edges", "remarks"):
                own[name] = tuple(own[name])
            return cls(**own, rows=rows)
        except (OSError, JsonError, TypeError) as error:
            raise SelectionError(
                f"{path} can't be read as a selection ({error}): name a folder that `surgery select` wrote"
            ) from None


class _Content(TypedDict):
    """What `Selection` reads of its report."""

    by: str
    pool: int
    share: float
    numbers: list[int]
    scores: list[float]
    sources: list[dict[str, Any]]
    edges: list[float]
    lengths: dict[str, list[float]]
    overlap: dict[str, float]
    nearest: list[dict[str, Any]]
    remarks: list[str]
    settings: dict[str, Any]
    origin: dict[str, Any]
