"""Results of TinT: a line to print, a table of numbers, a page that explains itself, and files of earlier code."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import pytest
import torch

from surgery.errors import TintError
from surgery.tint import Run, TinT, Verification, count, run_text, verify
from tests.support.tint import prefix_mask, tokens

SAVED = Path(__file__).parents[1] / "data" / "saved"  # by code from before results had pages


@pytest.mark.parametrize(("name", "kind"), [("tint-run", Run), ("tint-task", Run), ("tint-verification", Verification)])
def test_what_earlier_code_saved_is_read_and_saved_again(tmp_path, name, kind):
    earlier = kind.load(SAVED / name)
    written = json.loads((SAVED / name / "report.json").read_text())
    assert earlier.content == {key: value for key, value in written.items() if key != "format"}
    columns, rows = earlier.table()
    assert all(len(row) == len(columns) for row in rows) and len(set(columns)) == len(columns)
    again = kind.load(earlier.save(tmp_path / "again"))
    assert again.content == earlier.content and again.table() == (columns, rows)


def test_what_the_sentences_say_is_what_was_measured():
    text, task = Run.load(SAVED / "tint-run"), Run.load(SAVED / "tint-task")
    assert text.summary == [
        "Perplexity after learning from 50% of each window: frozen 87.69; TinT exact 87.37.",
        "The most is gained by TinT exact at 50%: 0.0037 nats a token on the frozen model (standard error 0.0006).",
        "Measured on 3 windows of 16 tokens; learning rates chosen on 1 other window.",
    ]
    assert task.summary[0].startswith("Accuracy: zero-shot 0.750; zero-shot, TinT exact 0.750; few-shot 0.500; ")
    assert task.summary[1:] == ["No method gains on the same prompt without learning.", "Measured on 8 test examples."]
    checked = Verification.load(SAVED / "tint-verification")
    exact = checked.content["updates"]["exact"]["full"]
    worst = max((e for e in exact if e["cosine"] is not None), key=lambda e: e["relative_error"])
    assert f"at most {worst['relative_error']:.1e} (block {worst['layer']}'s {worst['tensor']})" in checked.summary[0]


def test_the_gain_that_is_named_is_the_largest():
    point = {"low": 0.1, "high": 0.9, "lr": 0.1, "gain_error": 0.01}
    points = [
        {"method": "frozen", "share": 0.5, "value": 9.0, "low": 8.0, "high": 10.0, "lr": None},
        {"method": "TinT paper", "share": 0.5, "value": 8.0, "gain": 0.1, **point},
        {"method": "TinT exact", "share": 0.9, "value": 7.0, "gain": 0.25, **point},
    ]
    run = Run({"kind": "text", "points": points})
    assert "gained by TinT exact at 90%: 0.25 nats a token" in run.summary[1]
    assert "frozen 9.00; TinT paper 8.00" in run.summary[0] and "7.00" not in run.summary[0]


def test_a_verifications_table_shows_the_worst_block():
    def entry(layer, cosine, norm, error, tensor="o.weight"):
        return {"layer": layer, "tensor": tensor, "learns": True, "cosine": cosine, "norm_ratio": norm, "relative_error": error}  # fmt: skip

    updates = {
        "exact": {"full": [entry(0, 1.0, 1.0, 3e-7), entry(1, 1.0, 1.0, 2e-7)]},
        "paper": {"detached": [entry(0, 0.75, 1.5, 0.1), entry(1, 0.5, 0.25, 0.2)], "full": [entry(0, 0.5, 1.0, 1.0)]},
    }
    forward = [{"layer": 0, "piece": "o", "error": 1e-7}, {"layer": 1, "piece": "o", "error": 4e-7}]
    checked = Verification({"logits_error": 1e-6, "forward": forward, "updates": updates})
    columns, rows = checked.table()
    piece, tensor, logits = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (piece["piece or tensor"], piece["forward error"]) == ("o", 4e-7)
    assert [tensor[name] for name in ("exact error", "paper 1-cos", "paper norm", "paper error")] == [
        3e-7,
        0.5,
        0.25,
        0.2,
    ]
    assert tensor["published norm"] is None and logits["forward error"] == 1e-6
    assert "1 - cosine at most 5.0e-01 (block 1's o.weight)" in checked.summary[1]


def test_pages_explain_every_column_and_show_their_figures(model, tmp_path):
    plain = model("gpt2", torch.float32)
    run = run_text(plain, tokens(plain, count=64)[0], lr=0.01, window=16)
    for name, result in (
        ("run", run),
        ("verification", verify(plain, tokens(plain), sweep=False)),
        ("count", count(plain)),
    ):
        folder = result.save(tmp_path / name)
        page = (folder / "index.html").read_text()
        answer = page.partition('<section class="answer">')[2].partition("</section>")[0]
        assert 1 <= answer.count("<p>") <= 3
        columns, _ = result.table()
        assert all(f"<dt>{escape(column)}</dt>" in page for column in columns)
        figures = re.findall(r'<img src="(.*?)" alt="(.+?)">', page)
        assert sorted(file for file, _ in figures) == sorted(path.name for path in folder.glob("*.png"))
        assert page.count("<figcaption>") == len(figures) == {"run": 1, "verification": 1, "count": 0}[name]
        assert len(repr(result)) <= 200 and len(result._repr_html_()) < 30_000


def test_updates_and_passes_are_shown_in_a_line(model):
    plain = model("gpt2")
    out = TinT.build(plain, steps=2, layers=[1])(tokens(plain, 2), prefix_mask(2), lr=0.01)
    losses = out.update.losses.mean(1)
    assert f"summed loss {losses[0]:.4g} before step 1, {losses[1]:.4g} before step 2" in repr(out.update)
    learnt = {name: value for name, value in out.update.blocks[1].items() if value.dim() > out.update.auxiliary.blocks[1][name].dim()}  # fmt: skip
    assert f"{sum(value[0].numel() for value in learnt.values()):,} weights learnt of 2 rows" in repr(out.update)
    columns, rows = out.update.table()
    assert columns == ["block", "tensor", "row", "moved"] and {row[0] for row in rows} == {1}
    before, after = out.update.auxiliary.blocks[1]["o.weight"], out.update.blocks[1]["o.weight"][1]
    moved = next(row[3] for row in rows if row[1:3] == ["o.weight", 1])
    assert moved == pytest.approx(float((after - before).norm() / before.norm()))
    for shown in (out, out.update, out.update.auxiliary, TinT.build(plain)):
        assert len(repr(shown)) <= 200 and "tensor(" not in repr(shown)
    assert repr(out).startswith("<Output: logits [2, 20, ")


def test_a_report_that_is_damaged_is_refused(tmp_path):
    shutil.copytree(SAVED / "tint-run", tmp_path / "text")
    report = tmp_path / "text" / "report.json"
    content = json.loads(report.read_text())
    for change in (
        {"points": []},
        {"points": [{"method": "frozen"}]},
        {"kind": "song"},
        {"call": [1]},
        {"kind": "task"},
    ):
        report.write_text(json.dumps(content | change))
        with pytest.raises(TintError, match=r"report\.json is damaged"):
            Run.load(tmp_path / "text")
