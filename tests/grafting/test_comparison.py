"""Comparisons of skills: figures by hand, what is said of them, files that come back, pages and bad input."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from surgery.errors import OptionError, SkillError
from surgery.grafting.comparison import Comparison, compare
from surgery.grafting.skill import Skill
from surgery.tasks.task import Task
from tests.support.deltas import delta_of
from tests.support.tiny import hashes, raw

BASE = {f"layer.{layer}.weight": torch.full((20,), 0.5) for layer in (0, 1, 4)}


def skill(task, moves, moved=None, asked=None, movable=60):
    """A skill by `{(layer, index): how far the weight moves}`."""
    changed = {(f"layer.{layer}.weight", i): raw(torch.tensor([0.5 + far]))[0] for (layer, i), far in moves.items()}
    task = Task.load(task)
    delta = delta_of(BASE, changed, movable=movable, metadata={"task": json.dumps(task.spec())})
    known = {"moved": moved, "weights": len(moves)} if moved else {}
    call = {"call": {"graft": {"weights": asked}}} if asked else {}
    return Skill(delta, task, {**known, **call, "task": task.spec()})


@pytest.fixture
def skills():
    return {
        "one": skill("sst2", {(0, 1): 1.0, (0, 2): -2.0, (1, 3): 4.0, (4, 9): 1.0}, moved=30),
        "two": skill("subj", {(0, 1): 3.0, (0, 2): 1.0, (1, 3): 0.5, (0, 7): 1.0, (1, 5): 1.0}, moved=10, asked=8),
        "three": skill("mr", {(4, 9): -1.0, (4, 10): 1.0}),
    }


def test_pairs_by_hand(skills):
    found = compare(skills)
    columns, rows = found.table()
    table = {(row[0], row[1]): dict(zip(columns, row, strict=True)) for row in rows}
    assert list(table) == [("one", "two"), ("one", "three"), ("two", "three")]
    first = table["one", "two"]
    assert [first[name] for name in ("shared", "of first", "of second", "same direction")] == [3, 3 / 4, 3 / 5, 2 / 3]
    one, two = np.array([1, -2, 4]), np.array([3, 1, 0.5])
    assert first["alignment"] == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert first["chance: all"] == pytest.approx(4 * 5 / 60)
    assert first["chance: moved"] == pytest.approx(4 * 5 / 30)  # the larger of the two counts
    assert first["chance: tensors"] == pytest.approx(2 * 3 / 20 + 1 * 2 / 20)
    assert table["one", "three"]["chance: moved"] is None  # of which one report says nothing
    assert table["one", "three"]["same direction"] == 0 and table["one", "three"]["alignment"] == pytest.approx(-1)
    assert table["two", "three"]["same direction"] is None and table["two", "three"]["alignment"] is None
    assert found.matrix().tolist() == [[1, 3 / 4, 1 / 4], [3 / 5, 1, 0], [1 / 2, 0, 1]]
    layers = {layer: (o.first, o.second, o.shared) for layer, o in found.pairs[0].layers.items()}
    assert layers == {0: (2, 3, 2), 1: (1, 2, 1), 4: (1, 0, 0)}


def test_what_is_said(skills):
    summary = compare(skills).summary
    assert len(summary) == 3
    assert summary[0].startswith(
        "one and two share 3 weights: 75.0% of one's 4 and 60.0% of two's 5; by chance it would be"
    )
    assert "at most 0.7 among the weights that moved, 0.4 within the same tensors, 0.33 among all" in summary[0]
    assert "67% are moved in the same direction, and the cosine of their moves is 0.20" in summary[0]
    assert "the most of 3 pairs" in summary[1] and "two and three: no weights" in summary[1]
    assert "two (5 of 8)" in summary[2] and "one (" not in summary[2]
    two = compare({name: skills[name] for name in ("one", "three")})
    assert len(two.summary) == 1 and "among the weights that moved" not in two.summary[0]
    apart = compare({name: skills[name] for name in ("two", "three")}).summary
    assert "direction" not in apart[0]
    assert repr(two).startswith("<Comparison: one and three share") and len(repr(two)) <= 200


def test_a_skill_compared_with_itself_under_another_task(skills):
    other = skill("mr", {(0, 1): 1.0, (0, 2): -2.0, (1, 3): 4.0, (4, 9): 1.0}, moved=30)
    row = compare({"one": skills["one"], "other": other}).table()[1][0]
    assert row[3:5] == [1, 1] and row[-2:] == [1, pytest.approx(1)]


def test_saved_and_loaded(skills, tmp_path):
    found = compare(skills)
    assert found.save(tmp_path / "report") == tmp_path / "report"
    assert hashes(tmp_path / "report").keys() == {"report.json", "overlap.png", "layers.png", "README.md", "index.html"}
    loaded = Comparison.load(tmp_path / "report")
    assert (loaded.skills, loaded.pairs, loaded.table(), loaded.summary) == (
        found.skills,
        found.pairs,
        found.table(),
        found.summary,
    )
    loaded.save(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "one and two share 3 weights" in page and "overlap.png" in page and "layers.png" in page
    assert all(f">{name}<" in page for name in found.table()[0])
    assert found._repr_html_().count("<tr>") == 4


def test_many_skills_with_strange_names(tmp_path):
    many = {
        f"<b>${number}$ of a rather long name_{number}*": skill("mr", {(number % 2, i): 1.0 for i in range(number + 1)})
        for number in range(8)
    }
    compare(many).save(tmp_path / "report")  # where a warning of matplotlib's, that a name found no room, fails
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<b>$" not in page and "&lt;b&gt;$" in page and "The 6 pairs that share most are shown" in page


def test_refusals(skills, tmp_path):
    one = skills["one"]
    other = replace(one, delta=replace(one.delta, base_fingerprint="cd" * 32, metadata={"task": "x"}))
    words = {"yes": "good", "no": "bad"}
    alike = skill("mr", {(0, 1): 1.0})
    alike = replace(alike, task=replace(alike.task, name="sst2", words=words, phrases=words))
    for error, match, given in (
        (OptionError, "one skill is given", {"one": one}),
        (OptionError, "one and same are the same skill", {"one": one, "same": one}),
        (SkillError, r"the skills \(one and other\) start from different bases", {"one": one, "other": other}),
        (
            SkillError,
            "of two tasks called sst2, with the labels negative, positive and yes, no",
            {"one": one, "b": alike},
        ),
    ):
        with pytest.raises(error, match=match):
            compare(given)
    with pytest.raises(SkillError, match=r"report\.json is no comparison of skills"):
        Comparison.load(tmp_path)
    compare(skills).save(tmp_path / "report")
    file = tmp_path / "report" / "report.json"
    content = json.loads(file.read_text())
    negative = [{**pair, "overlap": {**pair["overlap"], "first_square": -1.0}} for pair in content["pairs"]]
    damage = (
        {"format": "x"},
        {"pairs": content["pairs"][:2]},
        {"pairs": []},
        {"pairs": negative},
        {"skills": []},
        {"skills": 3},
    )
    for wrong in damage:
        file.write_text(json.dumps(content | wrong))
        with pytest.raises(SkillError, match=r"report\.json is no comparison of skills"):
            Comparison.load(tmp_path / "report")


def test_command(skills, run, tmp_path):
    folders = [skill.save(tmp_path / name, figures=False) for name, skill in skills.items()]
    status, out, _ = run("skill", "compare", *folders, "-o", tmp_path / "report")
    assert status == 0 and "one and two share 3 weights" in out and "one, three" in out and "index.html" in out
    found = json.loads(run("skill", "compare", *folders[:2], "--json")[1])
    assert found["output"] is None and found["pairs"][0]["shared"] == 3 and found["pairs"][0]["first"] == "one"
    assert "60.0% of its 5 lie in" in run("skill", "overlap", *folders[:2])[1]
    before = hashes(tmp_path)
    for match, call in (
        ("one skill is given", (folders[0],)),
        ("is given twice", (folders[0], folders[0])),
        ("exists already", (*folders, "-o", tmp_path / "report")),
        ("same or lie one inside", (*folders, "-o", folders[0], "--overwrite")),
        ("is missing", (folders[0], tmp_path / "nowhere")),
    ):
        status, _, error = run("skill", "compare", *call)
        assert (status, error.count("\n")) == (2, 1) and match in error, error
    assert hashes(tmp_path) == before
