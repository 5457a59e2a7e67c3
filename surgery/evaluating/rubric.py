"""Rubrics of graders: points read off what they wrote, or nothing where it isn't in the form asked for.

After Yu et al. 2023 (Skill-Mix), section 4: k points for the skills, one each for the topic, for making sense, and for the
sentence limit, which is counted whatever the grader says.
"""

import re
from collections.abc import Sequence

OTHERS = 3  # points beside those of the skills: on topic, makes sense, within the limit
_ROW = re.compile(r"^\s*\|(.+)\|\s*$")
_POINT = re.compile(r"\**\s*([01](?:\.0+)?)\s*(?:/\s*1)?\s*\**")

Points = tuple[float, ...]


def sentence_limit(k: int) -> int:
    """Sentences that a text of k skills may have: max(1, k - 1)."""
    return max(1, k - 1)


def read_points(reply: str, count: int) -> Points | None:
    """Points of a table with a row a criterion and the number last, the total aside; None unless there are exactly `count`.

    A point is 0 or 1; anything else makes the whole grading unreadable.
    """
    points = []
    for line in reply.splitlines():
        if not (row := _ROW.match(line)):
            continue
        cells = [cell.strip() for cell in row[1].split("|")]
        if len(cells) < 2 or set("".join(cells)) <= set("-: ") or cells[0].lower().strip("* ").startswith("total"):
            continue
        if (found := _POINT.fullmatch(cells[-1])) is None:
            if any(letter.isdigit() for letter in cells[-1]):
                return None
            continue  # the head of the table
        points.append(float(found[1]))
    return tuple(points) if len(points) == count else None


def majority(gradings: Sequence[Points | None]) -> Points | None:
    """The majority by point over the gradings that can be read; a tie is 0. None where none can."""
    read = [grading for grading in gradings if grading is not None]
    if not read:
        return None
    return tuple(float(2 * sum(column) > len(read)) for column in zip(*read, strict=True))


def names_a_skill(text: str, skills: Sequence[str]) -> list[bool]:
    """Whether a text names each skill, whatever stands in parentheses after its name."""
    plain = text.lower()
    return [skill.partition("(")[0].strip().lower() in plain for skill in skills]


def full_marks(points: Points, k: int) -> float:
    """1 for all k + 3 points."""
    return float(all(points[: k + OTHERS]))


def all_skills(points: Points, k: int) -> float:
    """1 for all k skills and at least two of the other three points."""
    return float(all(points[:k]) and sum(points[k:]) >= OTHERS - 1)


def skill_fraction(points: Points, k: int) -> float:
    """Share of the k skills where the other three points are all there, else 0."""
    return sum(points[:k]) / k if all(points[k:]) else 0.0


METRIC_FUNCTIONS = {"Full Marks": full_marks, "All Skills": all_skills, "Skill Fraction": skill_fraction}


def best(generations: Sequence[Points | None], k: int) -> dict[str, float | None]:
    """Each metric's best over a combination's generations, those that are missing aside; None where all are."""
    kept = [points for points in generations if points is not None]
    return {
        name: max((metric(points, k) for points in kept), default=None) for name, metric in METRIC_FUNCTIONS.items()
    }
