"""Several evaluations in one folder: each shown again, and a page that leads to all of them."""

from pathlib import Path

from surgery.errors import EvaluationError
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.measured import interval
from surgery.evaluating.page import evaluation_page
from surgery.evaluating.plots import draw
from surgery.reporting.page import Page, Part, Table, Text


def show_folder(folder: str | Path) -> tuple[dict[Path, Evaluation], Path]:
    """Evaluations of a folder, or of the folders in it, by where they are, and the page that shows them.

    The page of each is written again from its `report.json`; of several, `index.html` beside them leads to each.

    Raises:
        EvaluationError: no evaluation there.
    """
    path = Path(folder).expanduser()
    if (path / "report.json").exists():
        found = {path: Evaluation.load(path)}
    else:
        inside = sorted(each.parent for each in path.glob("*/report.json"))
        if not inside:
            raise EvaluationError(
                f"{path} holds no evaluation: give a folder that `surgery eval` wrote, or one that holds some"
            )
        found = {}
        for place in inside:
            try:
                found[place] = Evaluation.load(place)
            except EvaluationError:
                continue  # another method's report
        if not found:
            raise EvaluationError(f"{path} holds reports, but none of them an evaluation's")
    for place, each in found.items():
        evaluation_page(each, each.summary, each.table(), draw(each, place)).write(place)
    if path in found:
        return found, path / "index.html"
    return found, _index(path, found)


def _index(folder: Path, found: dict[Path, Evaluation]) -> Path:
    rows = []
    for place, each in found.items():
        first = each.metrics[0]
        against = "" if each.base is None else interval(each.difference(first.name).score, first.scale, sign=True)
        rows.append(
            [place.name, each.kind, each.model, first.name, interval(each.score(first.name), first.scale), against]
        )
    columns = ["folder", "kind", "model", "metric", "score", "against the base"]
    parts: list[Part] = [Table("Each has a page of its own, index.html in its folder.", columns, rows, folded=False)]
    parts += [Text(f"{place.name}: {' '.join(each.summary)}") for place, each in found.items()]
    answer = [f"{len(found)} evaluations."]
    return next(file for file in Page("Evaluations", answer, parts).write(folder) if file.suffix == ".html")
