"""What scoring, tuning and grafting return: saved, loaded, shown in a line, a table and a page."""

import json

import numpy as np
import pandas
import pytest
import torch

from surgery import Score, Skill, Tuned, graft, score, tune
from surgery.errors import CheckpointError, TaskError
from surgery.tuning.recipe import Recipe
from tests.tuning.test_tuning import ROWS, task


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A base, what was tuned from it, and a folder of each result."""
    folder = tmp_path_factory.mktemp("results")
    tuned = tune(tiny("bert-encoder"), task(dev=ROWS[:6]), Recipe("sgd", rate=0.05, steps=20), device="cpu")
    tuned.save(folder / "tuned")
    scored = score(folder / "tuned", task(), against=tiny("bert-encoder"), device="cpu")
    scored.save(folder / "score")
    skill = graft(tiny("bert-encoder"), folder / "tuned", task(), weights=30, sweep=[0.1], baselines=True, device="cpu")
    skill.save(folder / "skill")
    return folder, {"tuned": tuned, "score": scored, "skill": skill}


@pytest.mark.parametrize(("name", "kind"), [("tuned", Tuned), ("score", Score), ("skill", Skill)])
def test_each_is_loaded_as_it_was_and_shown_in_one_way(made, name, kind):
    folder, results = made
    result, again = results[name], kind.load(folder / name)
    for each in (result, again):
        assert repr(each).startswith(f"<{kind.__name__}: ") and len(repr(each)) <= 200 and "\n" not in repr(each)
        columns, rows = each.table()
        assert all(len(row) == len(columns) for row in rows) and rows
        assert isinstance(each.to_pandas(), pandas.DataFrame) and each._repr_html_().count("<tr>") == len(rows) + 1
    assert again.summary == result.summary and again.table() == result.table()


def test_a_score_keeps_every_bit(made):
    folder, results = made
    again, first = Score.load(folder / "score"), results["score"]
    assert np.array_equal(again.logits, first.logits) and np.array_equal(again.targets, first.targets)
    assert (again.labels, again.metric, again.agreement) == (first.labels, first.metric, first.agreement)
    assert again.origin == json.loads(json.dumps(first.origin))
    again.save(folder / "again")
    assert (folder / "again" / "report.json").read_bytes() == (folder / "score" / "report.json").read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"logits": [[1.0]]}, {"logits": "x"}, {"targets": [-1]}, {"targets": []}, {"labels": None}, {"metric": "speed"}],
)
def test_a_score_that_is_damaged_is_refused(made, tmp_path, change):
    content = json.loads((made[0] / "score" / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(TaskError, match=r"report.json can't be read as a score \(.*\): score the model again"):
        Score.load(tmp_path)
    with pytest.raises(TaskError, match="can't be read as a score"):
        Score.load(tmp_path / "nothing")


def test_a_tuning_is_loaded_with_its_base(made, tiny, copied, tmp_path):
    folder, results = made
    again = Tuned.load(folder / "tuned", base=copied("bert-encoder"))
    assert again.tensors.keys() == results["tuned"].tensors.keys()
    assert all(torch.equal(tensor, results["tuned"].tensors[name]) for name, tensor in again.tensors.items())
    assert torch.equal(again.readout.anchors, results["tuned"].readout.anchors)
    with pytest.raises(CheckpointError, match=r"isn't what .* was tuned from"):
        Tuned.load(folder / "tuned", base=tiny("bert"))
    for name in ("score", "skill", "nothing"):
        with pytest.raises(CheckpointError, match="is no report of a tuning"):
            Tuned.load(folder / name)


def test_the_table_of_a_tuning_has_every_step_once(made):
    report, (columns, rows) = made[1]["tuned"].report, made[1]["tuned"].table()
    assert columns == ["step", "loss", "accuracy", "ECE"] and [row[0] for row in rows] == [
        s["step"] for s in report["dev"]
    ]
    widths = np.diff([0, *(row[0] for row in rows)])
    assert sum(row[1] * width for row, width in zip(rows, widths, strict=True)) == pytest.approx(
        sum(report["losses"][: rows[-1][0]])
    )
    assert [row[2] for row in rows] == [scored["value"] for scored in report["dev"]]


def test_a_skills_page_tells_the_answer_first_and_shows_its_figures(made):
    skill, page = made[1]["skill"], (made[0] / "skill" / "index.html").read_text()
    start = page.index('class="answer"')
    assert (
        "30 weights" in page[start : page.index("</section>")]
        and "accuracy is" in page[start : page.index("</section>")]
    )
    for name in ("sparsity.png", "reliability.png", "where.png"):
        assert f'src="{name}"' in page and (made[0] / "skill" / name).exists()
    assert page.count("<table") == 4 and f'<td class="number">{skill.report["graft"]["accuracy"]:.4g}' in page
    card = (made[0] / "skill" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: surgery\n") and "surgery skill apply THIS_FOLDER BASE" in card
