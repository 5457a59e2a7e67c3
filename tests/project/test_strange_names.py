"""Names that strangers' files bring along: never a path, never markup, never a formula, never a terminal's command."""

import html
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from cli.render import print_error, print_json, print_table, progress_bar, say
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import SkillError, TaskError
from surgery.files import replace_json
from surgery.grafting.card import skill_page
from surgery.grafting.skill import Skill
from surgery.reporting.figures import figure, plain
from surgery.reporting.markdown import code, inline, table
from surgery.tasks.readout import readout_file
from surgery.tasks.task import Task
from tests.support.tiny import hashes, perturb

PATHS = [
    "x/../../planted/model",
    "/etc/passwd",
    "..",
    ".",
    "",
    " ",
    "a\\b",
    "a\0b",
    "a\nb",
    "c:d",
    "*",
    "x" * 300,
    "a\x1b[2J",
]
STRANGE = [
    "[/b]",
    "[red]x",
    "a|b",
    "`rm`",
    "<script>alert(1)</script>",
    "**x**",
    "$\\frac$",
    "{0.__class__}",
    "\x1b[2Jx",
    "a\nb",
    "\ud800",
    "[x](y)",
]


@pytest.fixture
def skill(tiny, tmp_path):
    perturb(tiny("bert"), tmp_path / "tuned", count=5)
    task = Task.load("sst2")
    delta = SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(tmp_path / "tuned"))
    return Skill(replace(delta, metadata={"task": json.dumps(task.spec())}), task, {}, b"readout")


@pytest.mark.parametrize("name", PATHS)
def test_a_task_whose_name_is_no_file_name_is_refused(skill, tiny, tmp_path, run, name):
    with pytest.raises(TaskError, match="can't be part of a file's name"):
        Task.load(name)
    spec = {**skill.task.spec(), "name": name}
    with pytest.raises(TaskError):
        Task.from_spec(spec)
    replace(skill, delta=replace(skill.delta, metadata={"task": json.dumps(spec)})).save(
        tmp_path / "skill", figures=False
    )
    with pytest.raises(SkillError, match=r"skill: the task's name .* can't be part of a file's name"):
        Skill.load(tmp_path / "skill")
    before = hashes(tmp_path)
    status, out, error = run("skill", "apply", tmp_path / "skill", tiny("bert"), "-o", tmp_path / "deep" / "out")
    assert (status, out, error.count("\n")) == (2, "", 1) and hashes(tmp_path) == before


@pytest.mark.parametrize("name", ["sst2", "my task", "Stimmung-2_b.c", "感情", "a.b", "100%"])
def test_plain_names_are_free(name):
    task = Task.load(name, words={"a": "x", "b": "y"})
    assert readout_file(Task.from_spec(task.spec())) == f"readout-{name}.safetensors"


@pytest.mark.parametrize("name", STRANGE)
def test_the_terminal_shows_names_and_obeys_none(name, capsys):
    print_table(name, [name, "n"], [[name, "1"]])
    say(name)
    print_error(name)
    with progress_bar() as progress:
        progress(1, 2, name)
    print_json({name: name})
    out, error = capsys.readouterr()
    assert "\x1b" not in out + error
    shown = name.replace("\x1b", "\\x1b").replace("\ud800", "\\ud800")
    assert out.count(shown.splitlines()[0]) >= 3
    assert json.loads(out.splitlines()[-1]) == {name: name}


def test_a_bar_on_a_terminal_takes_names_as_they_are(monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    with progress_bar() as progress:
        for name in STRANGE:
            progress(1, 2, name)


@pytest.mark.parametrize("name", STRANGE)
def test_pages_show_names_as_they_are(name):
    """By CommonMark: a backslash takes its meaning from the punctuation after it."""
    line = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", name).encode("utf-8", "backslashreplace").decode().split())
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", inline(name)) == line
    rows = table(["a", name], [[name, "1"]])
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "\n" not in code(name)
    assert re.fullmatch(r"(`+) ?(.*?) ?\1", code(name))[2] == line.strip()
    for mark in ("<s", "**", "`", "]("):
        assert mark not in inline(name).replace("\\" + mark[0], "").replace("]\\(", "")


def test_a_card_of_strange_names_has_no_markup_of_theirs(skill):
    words = {"<b>bad</b>": "bad", "good\n# Title": "good"}
    report = {"call": {"graft": {"base": "x` <img src=y>"}}, "method": "`a`", "surgery": "<i>1</i>"}
    page = skill_page(skill.delta, [replace(skill.task, words=words, phrases=words)], report, []).markdown()
    assert not re.search(r"(?<![\\`\w ])<(b|i|img)", page.replace("``x` <img src=y>``", ""))
    assert [line for line in page.splitlines() if line.startswith("# ")] == ["# Skill: sst2"]


@pytest.mark.parametrize("name", [*STRANGE[:9], "$", "$$", "$x$ and $y"])
def test_a_figure_shows_formulas_as_text(tmp_path, name):
    with figure(tmp_path / "x.png") as axes:
        axes.set_xticks([0], [plain(name)])
        axes.set_title(plain(name))
    assert (tmp_path / "x.png").stat().st_size


def test_half_a_letter_goes_through_json(tmp_path):
    replace_json(tmp_path / "x.json", {"a": "\ud800", "b": "ü\U0001f642"})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"a": "\ud800", "b": "ü\U0001f642"}


def test_a_page_in_html_escapes_names():
    from surgery.reporting.page import Figure, Page, Table

    parts = [Table("<script>{1}</script>", ["<b>"], [["&<i>"]]), Figure('a".png', "<u>", "<u>")]
    page = Page("<script>{0}</script>", ["<b>"], parts).html()
    assert not re.search("<(script|b|i|u)>", page)
    assert html.escape("<script>{0}</script>") in page


def test_a_table_wider_than_the_terminal_is_turned(monkeypatch, capsys):
    columns, row = (
        ["metric", *(f"column {number}" for number in range(9))],
        ["likelihood", *("0.125" for _ in range(9))],
    )
    monkeypatch.setenv("COLUMNS", "60")
    print_table("", columns, [row])
    assert "column 8" in capsys.readouterr().out.splitlines()[1]  # a file takes any width
    monkeypatch.setattr(Console, "is_terminal", True)
    print_table("", columns, [row])
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert ["metric", "likelihood"] in [line.split() for line in lines]
    assert ["column", "8", "0.125"] in [line.split() for line in lines]
