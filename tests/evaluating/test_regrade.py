"""Regrading files in the published form, made up here: two rounds of generation, three gradings each, five combinations."""

import csv
import os
from pathlib import Path

import pytest

from surgery.errors import EvaluationError
from surgery.evaluating.regrading import read_gradings, regrade

COLUMNS = ["k", "skills", "topic", "user_0", "assistant_0", "points_0", "true_sentence_lim_pt_0"]
# By combination: points of the best two generations' gradings; the sentence limit as counted.
FULL, TWO, NO_SENSE = "1.0,1.0,1.0,1.0,1.0,0.0", "1.0,1.0,0.0,1.0,1.0,1.0", "1.0,1.0,1.0,1.0,0.0,1.0"


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return path


def row(number, points, limit="1.0", k=3):
    return [k, "one,  \ntwo,  \nthree", f"topic {number}", "asked", "| a | 1 |", points, limit]


def published(folder):
    """Five combinations: three with full marks in either generation, one with two skills of three, one that never makes sense."""
    for turn in (1, 2, 3):
        odd = turn == 3  # the third grading differs, and is outvoted
        first = [row(0, FULL), row(1, TWO if not odd else FULL), row(2, TWO), row(3, TWO), row(4, NO_SENSE)]
        second = [
            row(0, TWO),
            row(1, FULL if not odd else TWO),
            row(2, FULL),
            row(3, "0.0,0.0,0.0,1.0,1.0,1.0"),
            row(4, NO_SENSE),
        ]
        write(folder / "k3_r2" / "gpt" / "graded" / f"by_x_{turn}" / "records.csv", first)
        write(folder / "k3_r3" / "gpt" / "graded" / f"by_x_{turn}" / "records.csv", second)
    return folder


def test_metrics_are_by_majority_and_the_best_generation(tmp_path):
    found = regrade(published(tmp_path))
    assert found.settings["generations"] == 2
    values = {metric.name: found.score(metric.name).value for metric in found.metrics}
    assert values == {"Full Marks": 0.6, "All Skills": 0.8, "Skill Fraction": pytest.approx((3 + 2 / 3) / 5)}
    assert found.score("Full Marks").standard_error == pytest.approx(0.219, abs=0.01)  # sqrt(.6 * .4 / 5)
    assert found.items[1].points["k3_r2: three"] == 0 and found.items[1].points["k3_r3: three"] == 1
    assert regrade([tmp_path / "k3_r2", tmp_path / "k3_r3"]).table()[1] == found.table()[1]
    assert found.facts[0].rows[0][0] == 3


def test_the_sentence_limit_is_the_counted_one(tmp_path):
    assert regrade(write(tmp_path / "a.csv", [row(0, FULL)])).score("Full Marks").value == 1
    assert regrade(write(tmp_path / "b.csv", [row(0, "1,1,1,1,1,1", limit="0.0")])).score("Full Marks").value == 0
    assert regrade(write(tmp_path / "c.csv", [row(0, "1,1,1,1,1,1", limit="")])).score("Full Marks").value == 1


@pytest.mark.parametrize("points", ["", "1.0,1.0,1.0", "0.0,0.5,1.0", "1,1,1,1,1,1,1", "1,1,1,1,1,0.5"])
def test_the_wrong_number_of_points_is_missing_and_not_zeros(tmp_path, points):
    found = regrade(write(tmp_path / "a.csv", [row(0, points), row(1, FULL)]))
    assert found.score("Full Marks").value == 1 and found.score("Full Marks").missing == 1
    assert "1 of 2 gradings have the wrong number of points" in found.remarks[0]


@pytest.mark.parametrize(
    ("rows", "said"),
    [([row(0, FULL), row(1, FULL, k="spatial")], "line 7: k is 'spatial', no number"), ([row(0, FULL, k=4)], "k is 4 and there are 3 skills"),
     ([["3", "one, two, three", "t", "u", "a", "the text of an answer", "1"]], "line 2: points 'the text of an answer' aren't numbers"),
     ([row(0, FULL, limit="Sewing")], "true_sentence_lim_pt_0 is 'Sewing'"), ([row(0, FULL)[:4]], "no points_0")],
)  # fmt: skip
def test_shifted_and_truncated_rows_are_named(tmp_path, rows, said):
    write(tmp_path / "a.csv", rows)
    with pytest.raises(EvaluationError, match=said):
        regrade(tmp_path / "a.csv")


def test_what_is_no_file_of_gradings(tmp_path):
    (tmp_path / "a.csv").write_text('k,skills\n3,"cut short\n')
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("a.csv", "can't be read as gradings"),
        ("empty.csv", "holds no gradings"),
        ("folder", "no folder with a records.csv"),
        ("gone", "is no file"),
    ):
        with pytest.raises(EvaluationError, match=said):
            regrade(tmp_path / name)


@pytest.mark.real
def test_the_published_sample():
    """The files of the Skill-Mix repository, at SKILLMIX_DIR; whoever runs this fetches them."""
    folder = Path(os.environ.get("SKILLMIX_DIR", ""))
    files = [folder / "test" / f"k3_s10_vdefault_r{number}" / "gpt-4" for number in (2, 3)]
    if not os.environ.get("SKILLMIX_DIR") or not all(file.exists() for file in files):
        pytest.skip("set SKILLMIX_DIR to a copy of the published repository")
    found = regrade(files)
    values = {metric.name: found.score(metric.name).value for metric in found.metrics}
    assert values == {"Full Marks": 0.6, "All Skills": 0.6, "Skill Fraction": pytest.approx(0.867, abs=5e-4)}
    equal = 0
    for file in files:
        by_topic = {}
        for each in sorted(file.rglob("graded/*/records.csv")):
            for grading in read_gradings(each):
                by_topic.setdefault((grading.topic, grading.skills), []).append(grading.points)
        for (topic, skills), points in by_topic.items():
            item = next(item for item in found.items if item.name == f"{topic}: {skills}")
            own = [value for name, value in item.points.items() if name.startswith(file.parent.name)]
            equal += own == [round(sum(column) / len(points)) for column in zip(*points, strict=True)]
    assert equal == 10
    llama = regrade(folder / "test" / "k3_s10_vdefault_r2" / "llama2-7b-chat")
    assert llama.score("Full Marks").value is None and llama.score("Full Marks").missing == len(llama.items)
