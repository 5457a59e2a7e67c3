"""Regrading: published or own files of gradings to the published metrics, nothing made up for what isn't there.

A file is the published `records.csv` (columns k, skills, topic, points_0, true_sentence_lim_pt_0; a row a combination), one
for each round of generation and grading. Folders are searched for such files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from surgery.errors import EvaluationError, TaskError
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.measured import Item
from surgery.evaluating.novelty import novelty_facts
from surgery.evaluating.rubric import OTHERS, Points, best, majority
from surgery.evaluating.skillmix import METRICS
from surgery.provenance import provenance
from surgery.resuming import digest
from surgery.tasks.data_files import read_csv

NEEDED = ("k", "skills", "topic", "points_0")
_LIMIT = "true_sentence_lim_pt_0"


@dataclass(frozen=True)
class Grading:
    """A row of a file: a grading of one generation of one combination.

    `points` is None where there are more or fewer than k + 3 of them, or others than 0 and 1."""

    k: int
    skills: str
    topic: str
    points: Points | None
    text: str
    reply: str


def regrade(files: str | Path | Sequence[str | Path]) -> Evaluation:
    """Published metrics of files of gradings: by majority over the gradings of a generation, by the best over generations.

    The round of generation is the file's place: files of one folder `..._rN/` are gradings of the same generation; else each
    file is a generation of its own. The same grading three times over counts as one.

    Raises:
        EvaluationError: no file of gradings, a column that isn't there, or a row that can't be read, by its line.
    """
    given = [files] if isinstance(files, str | Path) else list(files)
    paths = [found for each in given for found in _found(Path(each).expanduser())]
    rounds: dict[str, dict[tuple[int, str, str], list[Grading]]] = {}
    for path in paths:
        for grading in read_gradings(path):
            own = rounds.setdefault(_round(path), {})
            own.setdefault((grading.k, grading.skills, grading.topic), []).append(grading)
    combinations = sorted({key for own in rounds.values() for key in own})
    items = [_item(key, rounds) for key in combinations]
    ks = sorted({key[0] for key in combinations})
    evaluation = Evaluation(
        "regrade",
        ", ".join(map(str, given)),
        METRICS,
        tuple(items),
        remarks=_remarks(rounds),
        settings={"files": [str(path) for path in paths], "generations": len(rounds), "k": ks},
        origin=provenance(
            call={"eval regrade": {"files": [str(path) for path in paths]}},
            inputs={str(path): digest(path.read_bytes().hex()) for path in paths},
        ),
    )
    facts = [
        novelty_facts(evaluation.score("Full Marks", [i for i in items if i.labels["k"] == str(k)]), k) for k in ks
    ]
    return Evaluation(**{**vars(evaluation), "facts": tuple(facts)})


def _found(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    inside = sorted(path.rglob("records.csv")) if path.is_dir() else []
    graded = [file for file in inside if "graded" in file.parts]
    if not graded and not inside:
        raise EvaluationError(f"{path} is no file of gradings, and no folder with a records.csv in it")
    return graded or inside


def _round(path: Path) -> str:
    named = [part for part in path.parts if re.search(r"_r\d+$", part)]
    return named[-1] if named else str(path)


def read_gradings(path: Path) -> list[Grading]:
    """Rows of a file of gradings; raises EvaluationError, naming the line, for what isn't one."""
    try:
        rows = read_csv(path)
    except (OSError, TaskError, UnicodeError) as error:
        raise EvaluationError(
            f"{path} can't be read as gradings ({error}): give the published records.csv, or one in its form"
        ) from None
    if not rows:
        raise EvaluationError(f"{path} holds no gradings")
    found = []
    for number, row in rows:
        if lost := [name for name in NEEDED if row.get(name) is None]:
            raise EvaluationError(f"{path}, line {number}: no {lost[0]}; columns here: {', '.join(map(str, row))}")
        found.append(_grading(path, number, row))
    return found


def _grading(path: Path, number: int, row: dict[str, object]) -> Grading:
    def damaged(what: str) -> EvaluationError:
        return EvaluationError(
            f"{path}, line {number}: {what}: the row is shifted or cut short; fetch or write it again"
        )

    k_text, skills = str(row["k"]).strip(), str(row["skills"])
    if not re.fullmatch(r"\d{1,2}", k_text):
        raise damaged(f"k is {k_text[:30]!r}, no number")
    k, names = int(k_text), [" ".join(name.split()) for name in skills.split(",") if name.strip()]
    if len(names) != k:
        raise damaged(f"k is {k} and there are {len(names)} skills")
    values = [value.strip() for value in str(row["points_0"]).split(",") if value.strip()]
    if any(not re.fullmatch(r"\d+(\.\d*)?", value) for value in values):
        raise damaged(f"points {str(row['points_0'])[:40]!r} aren't numbers")
    points: Points | None = None
    if len(values) == k + OTHERS and {float(value) for value in values} <= {0.0, 1.0}:
        limit = str(row.get(_LIMIT) or "").strip()
        if limit and not re.fullmatch(r"[01](\.0*)?", limit):
            raise damaged(f"{_LIMIT} is {limit[:30]!r}, neither 0 nor 1")
        points = tuple(float(value) for value in [*values[:-1], limit or values[-1]])
    return Grading(
        k,
        ", ".join(names),
        str(row["topic"]).strip(),
        points,
        str(row.get("user_0") or ""),
        str(row.get("assistant_0") or ""),
    )


def _item(key: tuple[int, str, str], rounds: dict[str, dict[tuple[int, str, str], list[Grading]]]) -> Item:
    k, skills, topic = key
    points: list[Points | None] = []
    transcript: list[tuple[str, str]] = []
    shown: dict[str, float | None] = {}
    for name, own in rounds.items():
        gradings = own.get(key, [])
        points.append(majority([grading.points for grading in gradings]))
        for turn, grading in enumerate(gradings, 1):
            transcript += [(f"{name}, asked", grading.text), (f"{name}, grading {turn}", grading.reply)]
        criteria = [*skills.split(", "), "on topic", "makes sense", "within the limit"]
        shown |= {
            f"{name}: {what}": None if points[-1] is None else points[-1][place] for place, what in enumerate(criteria)
        }
    note = "" if any(each is not None for each in points) else f"no grading has {k + OTHERS} points"
    return Item(
        f"{topic}: {skills}",
        f"{topic}: {skills}",
        best(points, k),
        {"skill": skills, "topic": topic, "k": str(k)},
        transcript,
        shown,
        note,
    )


def _remarks(rounds: dict[str, dict[tuple[int, str, str], list[Grading]]]) -> tuple[str, ...]:
    every = [grading for own in rounds.values() for gradings in own.values() for grading in gradings]
    short = sum(grading.points is None for grading in every)
    if not short:
        return ()
    return (
        f"{short} of {len(every)} gradings have the wrong number of points, or others than 0 and 1; they are missing, not zeros.",
    )
