"""The commands of `surgery eval`: what they write, print and refuse."""

import json
import shutil

import pytest

from surgery.evaluating.example import run_example
from tests.evaluating.test_regrade import FULL, row, write
from tests.evaluating.test_report import long_llama  # noqa: F401 (a fixture)
from tests.support.loopback import loopback

SKILLS = "skill,definition,example\n" + "".join(
    f"{name},what it is,an example\n" for name in ("irony", "metaphor", "simile")
)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skills.csv").write_text(SKILLS)
    (tmp_path / "topics.txt").write_text("rain\nbees\n")
    (tmp_path / "book.md").write_text("A chapter on rain.")
    question = {"chapter": "Rain is wet.", "question": "Is it?", "key_points": ["yes"], "closed_book": True}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    return tmp_path


def reply(body):
    asked = body["messages"][-1]["content"]
    if "Grade a text" in asked:
        return "| Criterion | Points |\n|---|---|\n" + "| c | 1 |\n" * 5
    return "Presentation: 3/3\nCorrectness: 3/3" if "Grade a tutor" in asked else "Answer: It rains.\nExplanation: so."


def test_formal_writes_a_report_and_knows_it_again(stage, ok, long_llama):  # noqa: F811
    line = ["eval", "formal", long_llama, "-k", 1, "--items", 4, "--max-tokens", 3, "--device", "cpu"]
    first = ok(*line, "--json")
    assert first["scores"]["likelihood"]["items"] == 4 and (stage / "runs" / "formal" / "index.html").exists()
    again = ok(*line, "-o", "other/place", "--log", "runs/calls.jsonl", "--json")
    usage = again["usage"][str(long_llama)]
    assert usage["known"] == usage["calls"] and again["scores"] == first["scores"]
    assert "calls, 28 of them known from the log, 0 to make" in ok(*line, "--dry-run").replace("\n", " ")
    assert "The page is runs/formal/index.html" in ok("eval", "show", "runs/formal")


def test_a_server_is_evaluated_graded_and_talks(stage, ok):
    pytest.importorskip("openai")
    with loopback(reply) as server:
        mixed = ok("eval", "skillmix", server.model, "--skills", "skills.csv", "--topics", "topics.txt", "--grader", server.model,
                   "--combinations", 3, "--generations", 1, "--price", "1,2", "--json")  # fmt: skip
        assert mixed["scores"]["Full Marks"]["value"] == 1 and mixed["usage"][server.model]["cost"] > 0
        tutored = ok("eval", "tutor", server.model, "--data", "q.jsonl", "--grader", server.model, "--json")
        assert tutored["scores"]["correctness"]["value"] == 3
        assert ok("eval", "formal", server.model, "-k", 1, "--items", 4, "--json")["settings"]["readings"] == [
            "generation"
        ]
        asked = len(server.requests)
        ok("eval", "skillmix", server.model, "--skills", "skills.csv", "--topics", "topics.txt", "--grader", server.model,
           "--combinations", 3, "--generations", 1, "--overwrite")  # fmt: skip
        assert len(server.requests) == asked
        talked = ok(
            "eval",
            "dialogue",
            "--book",
            "book.md",
            "--teacher",
            server.model,
            "--student",
            server.model,
            "-o",
            "talk",
            "--count",
            2,
            "--turns",
            2,
            "--json",
        )
        assert talked["dialogues"] == 2 and len((stage / "talk" / "dialogues.jsonl").read_text().splitlines()) == 2
    shown = ok("eval", "show", "runs", "--json")
    assert len(shown["evaluations"]) == 3 and (stage / "runs" / "index.html").exists()


def test_regrade(stage, ok):
    write(stage / "a.csv", [row(0, FULL), row(1, "1,1")])
    assert ok("eval", "regrade", "a.csv", "--json")["scores"]["Full Marks"]["missing"] == 1
    assert "Written to out" in ok("eval", "regrade", "a.csv", "-o", "out")


@pytest.mark.parametrize(
    ("line", "said"),
    [("formal", "the model is missing"), ("formal nowhere/at/all", "is not a folder"), ("formal MODEL -k 5", "-k 5 must be 1 to 4"),
     ("formal MODEL --skill rhyme", "no formal skill"), ("formal MODEL --reading speed", "--reading speed isn't one of"),
     ("formal MODEL --floor 0.1", "--floor is the noise of what --against names"), ("formal BERT", "is no causal language model"),
     ("formal openai:m@http://localhost:1/v1 --reading likelihood", "--reading likelihood needs weights"),
     ("skillmix MODEL", "--skills is missing"), ("skillmix MODEL --skills skills.csv", "--topics is missing"),
     ("skillmix MODEL --skills skills.csv --topics topics.txt", "--grader is missing"), ("skillmix MODEL --skills gone.csv --topics topics.txt", "--skills gone.csv can't be read"),
     ("skillmix MODEL --skills skills.csv --topics topics.txt -k 4 --grader MODEL", "-k 4 must be 1 to 3"),
     ("skillmix MODEL --skills skills.csv --topics topics.txt --price x", "--price x must be two numbers"),
     ("tutor MODEL", "--data is missing"), ("tutor MODEL --data gone.jsonl", "--data gone.jsonl: there is no such file"),
     ("tutor MODEL --data q.jsonl", "--grader is missing"), ("regrade", "the file is missing"), ("regrade gone", "is no file of gradings"),
     ("dialogue", "--book is missing"), ("dialogue --book gone.md --teacher MODEL --student MODEL -o out", "--book gone.md can't be read"),
     ("show", "the folder is missing"), ("show .", "holds no evaluation")],
)  # fmt: skip
def test_mistakes_are_said_and_leave_nothing(stage, run, tiny, line, said):
    words = [{"MODEL": tiny("llama"), "BERT": tiny("bert")}.get(word, word) for word in line.split()]
    before = sorted(path.name for path in stage.iterdir())
    status, _, error = run("eval", *words)
    assert status == 2 and said in error, error
    left = sorted(path.name for path in stage.iterdir() if path.name != "runs")
    assert left == before and not list(stage.glob("runs/*/report.json"))


def test_another_tokenizer_is_held_against_by_what_it_says(stage, ok, tiny, long_llama):  # noqa: F811
    other = shutil.copytree(tiny("gpt2"), stage / "gpt2")
    config = json.loads((other / "config.json").read_text())
    found = ok(
        "eval",
        "formal",
        long_llama,
        "--against",
        other,
        "-k",
        1,
        "--items",
        4,
        "--reading",
        "likelihood",
        "--device",
        "cpu",
        "--json",
    )
    assert config["n_positions"] == 64
    assert found["base"]["scores"]["likelihood"]["missing"] == 4  # its context is too short: missing, not wrong
    assert any("tokenizer" in remark for remark in found["remarks"])


def test_the_embedded_example(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("surgery.evaluating.formal.pupil.STEPS", 3)
    formal, tutor, folder = run_example(tmp_path / "out", device="cpu", say=said.append)
    assert folder == tmp_path / "out" and formal.model == "after" and formal.base.model == "before"
    assert formal.floor_difference("the same again", "likelihood").score.value == 0
    assert {path.name for path in folder.iterdir()} == {"after", "before", "formal", "tutor", "calls.jsonl"}
    assert tutor.score("correctness").value is not None and any("clear" in line for line in said)
