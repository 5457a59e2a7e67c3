"""surgery tint and its commands, from the words typed to the files written."""

import functools
import json
import re
from pathlib import Path

import pytest

from surgery.tint import Run
from surgery.tint.example import train_small
from tests.support.tint import ROWS

ROOT = Path(__file__).resolve().parents[2]


def test_commands_end_to_end(run, tiny, text, tmp_path):
    status, out, _ = run("tint", "count", "--config", "opt-125m")
    assert status == 0 and "125,239,296" in out and "simulating transformer" in out
    status, out, _ = run("tint", "count", tiny("gpt2"), "--json")
    assert status == 0 and json.loads(out)["total"] > 0
    status, out, _ = run(
        "tint", "verify", tiny("llama"), "--no-sweep", "--tokens", 20, "-o", tmp_path / "v", "--device", "cpu"
    )
    assert status == 0 and "exact against autograd" in out and (tmp_path / "v" / "layers.png").exists()
    status, out, _ = run("tint", "verify", tiny("opt"), "--text", text, "--no-sweep", "--dtype", "float64", "--json")
    assert status == 0 and json.loads(out)["dtype"] == "float64"
    assert '<section class="answer"><p>Mode exact against autograd' in (tmp_path / "v" / "index.html").read_text()
    arguments = (text, "--train-share", 0.5, "--train-share", 0.75, "--window", 32, "--lr", 0.01, "--steps", 1)
    status, out, _ = run("tint", "text", tiny("gpt2"), *arguments, "-o", tmp_path / "r")
    assert status == 0 and "TinT paper" in out and "training share" in out and " 0.75 " in out
    assert Run.load(tmp_path / "r").content["windows"] > 5 and (tmp_path / "r" / "perplexity.png").exists()
    data = data_file(tmp_path)
    task = ("sst2", "--data", data, "--eval", data, "--shots", 4, "--lr", 0.01)
    status, out, _ = run("tint", "task", tiny("opt"), *task, "--mode", "exact", "-o", tmp_path / "t", "--json")
    assert status == 0 and json.loads(out)["metric"] == "accuracy" and (tmp_path / "t" / "accuracy.png").exists()


def data_file(folder):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in ROWS))
    return file


def test_run_as_it_was_is_text_or_task_and_says_so(run, tiny, text, tmp_path):
    """Options stand where a user put them, the model among them."""
    tail = ("--window", 32, "--windows", 2, "--lr", 0.01, "--json")
    status, out, error = run("tint", "run", "--train-share", 0.75, tiny("gpt2"), f"--text={text}", *tail)
    assert status == 0 and "surgery tint text" in error and error.count("\n") == 1
    same = run("tint", "text", tiny("gpt2"), text, "--train-share", 0.75, *tail)
    assert json.loads(out)["points"] == json.loads(same[1])["points"] and not same[2]
    data = data_file(tmp_path)
    tail = ("--data", data, "--eval", data, "--shots", 4, "--lr", 0.01, "--seed", 3, "--json")
    status, out, error = run("tint", "run", tiny("gpt2"), "--task", "sst2", *tail)
    assert status == 0 and f"surgery tint task {tiny('gpt2')} --data {data}" in error and error.endswith(" sst2\n")
    assert json.loads(out)["points"] == json.loads(run("tint", "task", tiny("gpt2"), "sst2", *tail)[1])["points"]
    again = run("tint", *error.split("is now: surgery tint ")[1].split())  # what it says can be typed
    assert again[0] == 0 and json.loads(again[1])["points"] == json.loads(out)["points"]


@pytest.mark.parametrize(("arguments", "missing"), [("verify", "model"), ("text", "model"), ("task MODEL", "task")])
def test_a_missing_argument_is_named_and_marked_in_help(run, arguments, missing):
    status, out, error = run("tint", *arguments.split())
    assert status == 2 and f"Missing argument '{missing}'" in error and not out
    help_text = " ".join(run("tint", arguments.split()[0], "--help")[1].replace("│", " ").split())
    assert re.search(rf"\* {missing} <\w+> .*?\[required\]", help_text)


def test_an_option_of_the_other_command_is_refused(run, tiny, text):
    for arguments in (("text", tiny("gpt2"), text, "--tests", 3), ("task", tiny("gpt2"), "sst2", "--windows", 3)):
        status, out, error = run("tint", *arguments)
        assert status == 2 and f"No such option: {arguments[-2]}" in error and not out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("count",), "give either a model folder or --config"),
        (("count", "--config", "opt-350m"), "LayerNorms after the sublayers"),
        (("count", "--config", "nothing"), "no sizes of a model called 'nothing'"),
        (("text", "{gpt2}"), "the text is missing: surgery tint text MODEL FILE"),
        (("run", "{gpt2}"), "surgery tint text MODEL FILE for perplexity, or surgery tint task MODEL TASK"),
        (("run", "{gpt2}", "--text", "{text}", "--task", "sst2"), "surgery tint text MODEL FILE for perplexity"),
        (
            ("task", "{gpt2}", "sst2", "--data", "{rows}", "--eval", "{rows}", "--shots", "1"),
            "--shots 1 is too few: task sst2 has 2 labels",
        ),
        (("task", "{gpt2}", "sst2", "--data", "{rows}", "--eval", "{rows}", "--shots", "90"), "lower --shots"),
        (("text", "{gpt2}", "{text}", "--start-token", "--lr", "0.1"), "leave --start-token out"),
        (("text", "{gpt2}", "{text}", "--windows", "1000", "--lr", "0.1"), "give a longer text or a smaller --window"),
        (("text", "{gpt2}", "{text}", "--window", "60000"), "longer than the model's 64 positions"),
        (
            ("text", "{gpt2}", "{text}", "--lr", "1e30", "--window", "32", "--mode", "exact"),
            "loss of window 0 is NaN",
        ),
        (("text", "{gpt2}", "{text}", "--train-share", "0.001"), "leave two of the 64 tokens"),
        (("text", "{gpt2}", "{text}", "--dtype", "float16", "--lr", "0.1", "--window", "32"), "use float32"),
        (("text", "{gpt2}", "{text}", "--mode", "best"), "mode 'best' isn't one of exact, paper, published"),
        (("text", "{gpt2}", "nowhere.txt", "--lr", "0.1"), "can't be read as text"),
        (
            ("text", "{gpt2}", "{text}", "--window", "128", "--lr", "0.1"),
            "longer than the model's 64 positions",
        ),
        (("text", "{bert}", "{text}"), "architecture 'bert' can't be simulated"),
        (("verify", "{gpt2}", "--text", "{text}", "--tokens", "60000"), "fewer than the 60000 asked for"),
    ],
)
def test_mistakes_end_with_one_sentence_and_status_2(run, tiny, text, tmp_path, arguments, words):
    rows = data_file(text.parent)
    given = [a.format(gpt2=tiny("gpt2"), bert=tiny("bert"), text=text, rows=rows) for a in arguments]
    status, out, error = run("tint", *given)
    assert status == 2 and words in error and error.count("\n") == 1 and not out
    if arguments[0] != "count":
        assert run("tint", *given, "-o", tmp_path / "a" / "out")[0] == 2
        assert not list(tmp_path.iterdir())


@pytest.mark.real
def test_the_command_without_arguments_makes_verifies_and_runs_a_model(run, tmp_path, monkeypatch):
    # Most of its time is training, and what is held true here doesn't wait for a model as good as a user gets.
    monkeypatch.setattr(
        "surgery.tint.example.train_small", functools.partial(train_small, width=48, layers=2, vocabulary=512, batch=4)
    )
    status, out, _ = run("tint", "-o", tmp_path / "out", "--device", "cpu", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["verification"]["logits_error"] < 1e-4
    points = {point["method"]: point["value"] for point in found["run"]["points"]}
    assert points["TinT exact"] == pytest.approx(points["dynamic evaluation"], rel=1e-3)
    assert points["TinT exact"] < points["frozen"] and points["TinT paper"] < points["frozen"]
    assert {"model", "text.txt", "verification", "run"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_every_option_reaches_the_work(run, tiny, text, tmp_path):
    model, data = tiny("llama"), data_file(tmp_path)
    shared = (
        "--lr",
        0.03,
        "--lr",
        0.01,
        "--steps",
        2,
        "--layers",
        1,
        "--mode",
        "exact",
        "--dtype",
        "float64",
        "--seed",
        5,
    )
    wanted = {"lr": [0.01, 0.03], "steps": 2, "layers": "1", "dtype": "float64", "model": str(model)}
    of_text = ("--train-share", 0.25, "--window", 20, "--windows", 3, "--dev-windows", 2, "--batch-size", 3)
    status, out, _ = run("tint", "text", model, text, *shared, *of_text, "--no-start-token", "--json")
    report = json.loads(out)
    assert status == 0 and report["seed"] == 5
    assert report["call"]["run_text"] == wanted | {
        "text": str(text), "start_token": None, "shares": [0.25], "window": 20, "windows": 3, "dev_windows": 2,
        "batch_size": 3, "methods": ["frozen", "dynamic evaluation", "TinT exact"],
    }  # fmt: skip
    of_task = ("--data", data, "--eval", data, "--dev", data, "--shots", 6, "--tests", 7, "--loss", "all")
    status, out, _ = run("tint", "task", model, "sst2", *shared, *of_task, "--max-length", 32, "--json")
    report = json.loads(out)
    task = report["call"]["run_task"].pop("task")
    assert status == 0 and report["seed"] == 5 and (report["shots"], report["tests"]) == (6, 7)
    assert report["call"]["run_task"] == wanted | {
        "shots": 6, "modes": ["exact"], "loss": "all", "dev_examples": 48, "tests": 7,
    }  # fmt: skip
    assert task["max_length"] == 32 and report["dev_examples"] == len(ROWS)
    seeds = [run("tint", "verify", model, "--tokens", 9, "--no-sweep", "--seed", seed, "--json") for seed in (1, 1, 2)]
    first, again, other = (json.loads(out)["inputs"]["tokens"] for _, out, _ in seeds)
    assert first == again != other
