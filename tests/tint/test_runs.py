"""verify, runs on texts and tasks, and the commands, on tiny models."""

import functools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from cli.main import app
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.errors import OptionError, TaskError, TintError
from surgery.tasks.examples import Example
from surgery.tasks.readout import WordReadout
from surgery.tasks.task import Task
from surgery.tint import Run, TinT, Verification, run_task, run_text, verify
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.evaluation.in_context import _Place, _split
from surgery.tint.evaluation.perplexity import load_with_tokens
from surgery.tint.evaluation.report import best, difference
from surgery.tint.example import train_small
from tests.support.tiny import WORDS
from tests.tint.test_arithmetic import model  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
ROWS = [
    Example(f"{a} {b} film", "", label)
    for label, words in (("positive", ("great", "good", "wonderful")), ("negative", ("bad", "awful", "boring")))
    for a in words
    for b in ("really", "so", "very", "quite")
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(WORDS), (700,), generator=generator).tolist()
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(WORDS[n] for n in picked))
    return file


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_verify_finds_what_is_right_and_what_is_wrong(model, kind, tmp_path):  # noqa: F811
    found = verify(model(kind))
    assert found.forward_error < 1e-12 and max(entry["error"] for entry in found.content["forward"]) < 1e-12
    assert found.worst("exact", "full")["relative_error"] < 1e-9
    assert found.worst("paper", "detached")["cosine"] > 0.99999 > found.worst("paper", "full")["cosine"]
    alone = {entry["approximation"]: entry for entry in found.content["approximations"]}
    assert alone["score gradients dropped"]["cosine"] == pytest.approx(found.worst("paper", "full")["cosine"], abs=1e-4)
    assert alone["norms by differences"]["relative_error"] < 1e-4
    if kind == "gpt2":  # the published code's last bias
        entries = found.content["updates"]["published"]["detached"]
        assert {round(e["norm_ratio"]) for e in entries if e["tensor"] == "down.bias"} == {4}
    sweep = {(p["dtype"], p.get("step")): p["relative_error"] for p in found.content["sweep"] if "step" in p}
    assert sweep["float64", 1e-5] < sweep["float64", 1e-1] and sweep["float32", 3e-3] < sweep["float32", 1e-7]
    found.save(tmp_path / "out")
    again = Verification.load(tmp_path / "out")
    assert again.content["updates"] == json.loads(json.dumps(found.content["updates"]))
    assert again.table() == found.table() and (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    with pytest.raises(TintError, match="isn't a surgery tint run 1's"):
        Run.load(tmp_path / "out")


def test_verify_tells_a_broken_simulation(model, monkeypatch):  # noqa: F811
    import surgery.tint.block as block

    right = block.affine
    monkeypatch.setattr(block, "affine", lambda x, b, name: right(x, b, name) * (1.01 if name == "norm2" else 1))
    found = verify(model("opt"), sweep=False)
    assert found.forward_error > 1e-4 and found.worst("exact", "full")["relative_error"] > 1e-4


def test_verify_in_half_precision_and_in_training_mode(model):  # noqa: F811
    plain = model("gpt2")
    plain.train()
    assert verify(plain, sweep=False).forward_error < 1e-12
    assert plain.training
    found = verify(model("gpt2", torch.bfloat16))
    assert set(found.content["updates"]) == {"exact"} and not found.content["sweep"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_perplexity_is_a_plain_loops_and_exact_is_dynamic_evaluation(model, kind):  # noqa: F811
    plain = model(kind)
    ids = torch.randint(plain.config.vocab_size, (16 * 9,), generator=torch.Generator().manual_seed(1))
    found = run_text(plain, ids, shares=(0.25, 0.5), lr=0.01, steps=2, window=16, batch_size=4, methods=("frozen", "dynamic evaluation", "TinT exact", "TinT paper"))  # fmt: skip
    assert found.content["windows"] == 9 and found.content["dev_windows"] == 0
    for share, start in ((0.25, 4), (0.5, 8)):
        total = 0.0
        for row in ids.view(9, 16):
            with torch.no_grad():
                logits = plain(row[None]).logits[0]
            total += float(F.cross_entropy(logits[start - 1 : -1], row[start:], reduction="sum"))
        frozen = math.exp(total / 9 / (16 - start))
        assert found.value("frozen", share) == pytest.approx(frozen, rel=1e-5)
        exact, dynamic = found.value("TinT exact", share), found.value("dynamic evaluation", share)
        assert exact == pytest.approx(dynamic, rel=1e-6)
        assert abs(exact - frozen) > 1e-4 * frozen
    for point in found.points:
        assert point["low"] <= point["value"] <= point["high"]


def test_the_rate_is_chosen_on_windows_that_are_left_out(model):  # noqa: F811
    plain = model("gpt2")
    ids = torch.randint(plain.config.vocab_size, (16 * 10,), generator=torch.Generator().manual_seed(1))
    rates = (1e-4, 1e-2, 1e30)
    found = run_text(plain, ids, lr=rates, window=16, dev_windows=4, methods=("TinT exact",))
    assert found.content["windows"] == 6 and found.content["dev_windows"] == 4
    chosen = found.points[0]["lr"]
    by_hand = {
        rate: run_text(plain, ids[: 16 * 4], lr=rate, window=16, methods=("TinT exact",)).points[0]["value"]
        for rate in rates[:2]
    }
    assert chosen == min(by_hand, key=by_hand.get)
    same = run_text(plain, torch.cat((ids[: 16 * 4], ids[16 * 4 :].flip(0))), lr=rates, window=16, dev_windows=4, methods=("TinT exact",))  # fmt: skip
    assert same.points[0]["lr"] == chosen  # whatever the test windows are
    assert best({0.1: 2.0, 0.01: 1.0, 1.0: 1.0}, lowest=True) == 0.01


def test_windows_are_no_longer_than_the_model_by_default(model):  # noqa: F811
    plain = model("gpt2")  # 64 positions
    ids = torch.randint(plain.config.vocab_size, (130,), generator=torch.Generator().manual_seed(1))
    found = run_text(plain, ids, lr=1e-3, methods=("frozen",))
    assert (found.content["window"], found.content["windows"]) == (64, 2)


def one_by_one(plain, prompts, words):
    found = []
    for prompt in prompts:
        with torch.no_grad():
            found.append(plain(torch.tensor([prompt])).logits[0, -1, words])
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_a_task_packed_in_rows_is_the_model_asked_one_by_one(tiny, kind):
    task = Task.load("sst2", train=ROWS[::2], test=ROWS[1::2])
    plain = AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny(kind))
    words = [tokenizer.convert_tokens_to_ids(word) for word in task.words.values()]

    def prompt(example):
        ids = tokenizer(f"{example.text} It was")["input_ids"]
        return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids

    found = run_task(tiny(kind), task, shots=4, lr=0.02, modes=("exact",), seed=3)
    assert [point["method"] for point in found.points] == [
        "zero-shot", "zero-shot, TinT exact", "few-shot", "few-shot, TinT exact",
    ]  # fmt: skip
    targets = torch.tensor(task.targets(task.test))
    zero = one_by_one(plain, [prompt(example) for example in task.test], words)
    assert found.value("zero-shot") == pytest.approx(float((zero.argmax(1) == targets).float().mean()))
    assert found.content["shots"] == 4 and found.content["tests"] == 12

    loaded = load_model(Checkpoint(tiny(kind)))
    demonstrations, spare = _split(task, 4, 3)
    assert sorted(e.label for e in demonstrations) == ["negative"] * 2 + ["positive"] * 2
    assert not set(demonstrations) & set(spare)
    place = _Place(Auxiliary.of(loaded), WordReadout.of(loaded, task), task, demonstrations, "label")
    logits = torch.from_numpy(place.logits(place.auxiliary.blocks, task.test, False))
    assert torch.allclose(logits, zero, atol=1e-5)
    # Few-shot: all demonstrations with their label words, then the prompt.
    start = tokenizer.bos_token_id
    context = []
    for example in demonstrations:
        ids = prompt(example)
        context += ids[1:] if context and ids[0] == start else ids
        context += [words[task.labels.index(example.label)], *tokenizer("\n", add_special_tokens=False)["input_ids"]]
    asked = [context + (ids[1:] if ids[0] == start else ids) for ids in map(prompt, task.test)]
    logits = torch.from_numpy(place.logits(place.auxiliary.blocks, task.test, True))
    assert torch.allclose(logits, one_by_one(plain, asked, words), atol=1e-5)
    # Learning from each alone: plain gradient descent on the sum of their labels' losses.
    blocks = place.update(TinT.build(place.auxiliary, mode="exact"), 0.02, False)
    moved = [p for name, p in plain.named_parameters() if ".h." in name or ".layers." in name]
    descent = torch.optim.SGD(moved, lr=0.02)
    for example in demonstrations:
        logits = plain(torch.tensor([prompt(example)])).logits[:, -1]
        F.cross_entropy(logits, torch.tensor([words[task.labels.index(example.label)]])).backward()
    descent.step()
    ours = torch.from_numpy(place.logits(blocks, task.test, False))
    after = one_by_one(plain, [prompt(example) for example in task.test], words)
    assert float((after - zero).abs().max()) > 1e-3
    assert torch.allclose(ours, after, atol=1e-4)


def test_the_rate_of_a_task_is_chosen_without_its_test_examples(tiny):
    task = Task.load("sst2", train=ROWS, test=ROWS[:3])
    other = Task.load("sst2", train=ROWS, test=ROWS[-3:])
    rates = (1e-3, 1e-1)
    first, second = (run_task(tiny("gpt2"), t, shots=4, lr=rates, modes=("exact",)) for t in (task, other))
    assert [point["lr"] for point in first.points] == [point["lr"] for point in second.points]
    assert first.content["dev_examples"] == 20
    alone = run_task(tiny("gpt2"), Task.load("sst2", train=ROWS), shots=4, lr=rates, modes=("exact",), dev_examples=8)
    assert alone.content["tests"] == 12 and alone.content["tested_on"] == "training examples left over"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shares": (1.0,)}, OptionError, "between 0 and 1"),
        ({"shares": (0.01,)}, OptionError, "leave two of the 16 tokens of a window to learn from"),
        ({"batch_size": 0}, OptionError, "must be at least 1"),
        ({"lr": (0.1, 0.2), "dev_windows": 0}, OptionError, "no windows to choose by"),
        ({"resume": "state"}, OptionError, "nothing says what another model is"),
        ({"methods": ("magic",)}, OptionError, "method 'magic' isn't one of"),
        ({"window": 3}, OptionError, "too short"),
        ({"lr": -1.0}, OptionError, "positive numbers"),
        ({"windows": 100}, TintError, "give a longer text"),
        (
            {"lr": 1e30},
            TintError,
            "dynamic evaluation: the loss of window 0 is NaN or infinite: lower the learning rate",
        ),
        (
            {"lr": 1e30, "steps": 2},
            TintError,
            r"dynamic evaluation, step 2: the gradient of transformer\.h\.\d\.[\w.]+ is NaN or infinite",
        ),
        (
            {"lr": 1e30, "steps": 2, "methods": ("TinT exact",)},
            TintError,
            r"step 2: the gradient of block \d's \w+\.\w+ is NaN",
        ),
    ],
)
def test_bad_runs_are_refused(model, options, error, words):  # noqa: F811
    plain = model("gpt2", torch.float32)
    with pytest.raises(error, match=words):
        run_text(plain, torch.zeros(64, dtype=torch.long), **{"window": 16, "lr": 0.1, **options})


def test_bad_tasks_are_refused(tiny, model, text):  # noqa: F811
    task = Task.load("sst2", train=ROWS, test=ROWS)
    with pytest.raises(OptionError, match="give one of each"):
        run_task(tiny("gpt2"), task, shots=1)
    with pytest.raises(OptionError, match="isn't one of label, all"):
        run_task(tiny("gpt2"), task, loss="words")
    with pytest.raises(TaskError, match="no test examples"):
        run_task(tiny("gpt2"), Task.load("sst2", train=ROWS))
    with pytest.raises(TintError, match="longer than the model's 64 positions"):
        run_task(tiny("gpt2"), task, shots=24, lr=0.1)
    few = Task.load("sst2", train=[*ROWS[:12], ROWS[-1]], test=ROWS)
    with pytest.raises(TaskError, match="label 'negative' of task sst2 has 1 training examples, fewer than the 4"):
        run_task(tiny("gpt2"), few, shots=8)
    with pytest.raises(OptionError, match="isn't one of exact, paper, published"):
        run_task(tiny("gpt2"), task, modes=("best",), progress=lambda *_: pytest.fail("work was spent"))
    for given in (model("gpt2"), Auxiliary.of(model("gpt2"))):
        with pytest.raises(TintError, match="needs a tokenizer"):
            run_text(given, text)


@pytest.mark.parametrize(("kind", "asked"), [("llama", None), ("llama", False), ("opt", True), ("gpt2", None)])
def test_windows_begin_with_the_token_that_begins_a_text(tiny, text, kind, asked):
    tokenizer, plain = AutoTokenizer.from_pretrained(tiny(kind)), AutoModelForCausalLM.from_pretrained(tiny(kind))
    by_itself = tokenizer.bos_token_id is not None and tokenizer("film")["input_ids"][0] == tokenizer.bos_token_id
    begun = by_itself if asked is None else asked
    found = run_text(str(tiny(kind)), text, lr=0.1, window=16, methods=("frozen",), start_token=asked, device="cpu")
    assert found.content["start_token"] == (tokenizer.bos_token if begun else None)
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    own = 15 if begun else 16
    rows = [[*[tokenizer.bos_token_id] * begun, *ids[at : at + own]] for at in range(0, len(ids) - own + 1, own)]
    with torch.no_grad():
        logits = plain(torch.tensor(rows)).logits[:, 7:-1]
    wanted = math.exp(float(F.cross_entropy(logits.mT, torch.tensor(rows)[:, 8:])))
    assert found.content["windows"] == len(rows) and found.value("frozen") == pytest.approx(wanted, rel=1e-5)


def test_a_start_token_that_is_not_there_is_refused(tiny, text):
    with pytest.raises(OptionError, match="no token that begins a text"):
        run_text(str(tiny("gpt2")), text, lr=0.1, window=16, start_token=True)
    with pytest.raises(OptionError, match="start_token goes with a text"):
        run_text(str(tiny("gpt2")), torch.arange(40), lr=0.1, window=16, start_token=True)


def test_gains_are_paired_by_window(model):  # noqa: F811
    plain = model("gpt2")
    ids = torch.randint(plain.config.vocab_size, (16 * 9,), generator=torch.Generator().manual_seed(1))
    found = run_text(plain, ids.tolist(), shares=(0.25, 0.5), lr=0.01, window=16)
    for point in found.points:
        if point["method"] != "frozen":
            frozen = next(p for p in found.points if p["method"] == "frozen" and p["share"] == point["share"])
            pairs = np.array(frozen["losses"]) - np.array(point["losses"])
            assert point["gain"] == pytest.approx(pairs.mean())
            assert point["gain_error"] == pytest.approx(pairs.std(ddof=1) / 3)
    columns, rows = found.differences()
    assert len(columns) == 3 and [row[0] for row in rows] == ["dynamic evaluation", "TinT paper", "TinT exact"]
    assert found.differences_caption in found.markdown()
    assert difference([2.0]) == {"gain": 2.0, "gain_error": None}  # one window has no spread
    alone = run_text(plain, ids[:16], lr=0.01, window=16, methods=("frozen", "TinT exact"))
    assert "±" not in alone.differences()[1][0][1]


def test_options_are_checked_before_a_model_is_loaded(tiny, text, monkeypatch):
    monkeypatch.setattr("surgery.checkpoints.models.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    folder, task = str(tiny("gpt2")), Task.load("sst2", train=ROWS, test=ROWS)
    for options in ({"methods": ("TinT Paper",)}, {"shares": (50.0,)}, {"steps": 0}, {"batch_size": 0}, {"window": 2}):
        with pytest.raises(OptionError):
            run_text(folder, text, lr=0.1, **options)
    with pytest.raises(TintError, match="can't be read as text"):
        run_text(folder, text.with_name("missing.txt"), lr=0.1)
    for options in ({"modes": ("Paper",)}, {"steps": 0}, {"shots": 1}):
        with pytest.raises(OptionError):
            run_task(folder, task, lr=0.1, **options)
    with pytest.raises(OptionError, match="isn't one of exact, paper, published"):
        TinT.build(folder, mode="Paper")
    with pytest.raises(TintError, match="can't be read as text"):
        load_with_tokens(folder, text.with_name("missing.txt"), 8)


def test_a_long_verification_says_what_it_will_take(tiny, monkeypatch, capsys):
    monkeypatch.setattr("cli.tint._LARGE", 0)
    app(["tint", "verify", str(tiny("gpt2")), "--tokens", "8", "--device", "cpu"], standalone_mode=False)
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(r"About \d+ seconds and [\d.]+ [kM]?B of memory; --no-sweep leaves out", said)


class Killed(BaseException):
    """Stands for a signal: no handler for ordinary errors may catch it."""


@pytest.fixture
def passes(monkeypatch):
    """Counts the readings of a row, and makes one of them the last: `passes["until"]`."""
    counted, real = {"done": 0, "until": math.inf}, TinT.hidden

    def hidden(self, *arguments, **options):
        if counted["done"] >= counted["until"]:
            raise Killed
        counted["done"] += 1
        return real(self, *arguments, **options)

    monkeypatch.setattr(TinT, "hidden", hidden)
    return counted


@pytest.mark.parametrize("what", ["text", "task"])
def test_an_interrupted_run_goes_on_where_it_was(tiny, text, tmp_path, monkeypatch, passes, what):
    monkeypatch.setattr("surgery.tint.evaluation.in_context._PACKED", 40)  # several rows of prompts
    task = Task.load("sst2", train=ROWS, test=ROWS)

    def call(**options):
        if what == "task":
            return run_task(tiny("gpt2"), task, shots=4, lr=(1e-3, 1e-2), modes=("exact",), **options)
        return run_text(tiny("gpt2"), text, shares=(0.5, 0.75), lr=(1e-3, 1e-2), window=32, windows=5, dev_windows=2, **options)  # fmt: skip

    whole = call()
    needed, stops = passes["done"], (3, 9)
    passes["done"] = 0
    state = tmp_path / "state"
    for stop in stops:
        passes["until"] = stop
        with pytest.raises(Killed):
            call(resume=state)
    with (state / "figures.jsonl").open("a") as file:
        file.write('["cut sho')  # by a kill within a write
    passes["until"] = math.inf
    with pytest.raises(OptionError, match="is the state of another run"):
        call(resume=state, seed=1) if what == "task" else call(resume=state, steps=2)
    assert call(resume=state).points == whole.points
    # What was done was done once; but of a task the row of development prompts that a rate is chosen by, at most.
    assert needed <= passes["done"] <= needed + (len(stops) * 4 if what == "task" else 0)
    assert call(resume=state).points == whole.points  # all of it known


def test_a_run_that_diverges_leaves_no_state(tiny, text, tmp_path):
    with pytest.raises(TintError, match="lower the learning rate"):
        run_text(tiny("gpt2"), text, lr=1e30, window=32, windows=3, resume=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "figures.jsonl").write_text("mine")
    with pytest.raises(OptionError, match="delete it to begin anew"):
        run_text(tiny("gpt2"), text, lr=0.1, window=32, windows=3, resume=tmp_path / "state")
    assert (tmp_path / "state" / "figures.jsonl").read_text() == "mine"


def test_an_interrupted_command_says_how_to_go_on(run, tiny, text, tmp_path, monkeypatch):
    arguments = ("tint", "run", tiny("gpt2"), "--text", text, "--window", 32, "--windows", 3, "--lr", 0.01)
    real, calls = TinT.hidden, []

    def hidden(self, *given, **options):
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *given, **options)

    with monkeypatch.context() as moment:
        moment.setattr(TinT, "hidden", hidden)
        status, _, error = run(*arguments, "-o", tmp_path / "out")
    assert status not in (0, 2) and "run the same command again to go on" in error
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    assert run(*arguments, "-o", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out.partial").exists()
    status, out, _ = run(*arguments, "--json")
    assert json.loads(out)["points"] == [dict(point) for point in Run.load(tmp_path / "out").points]


def test_a_task_whose_descent_becomes_nan_has_no_accuracy(tiny):
    task = Task.load("sst2", train=ROWS, test=ROWS)
    with pytest.raises(TintError, match="logits are NaN or infinite: lower the learning rate"):
        run_task(tiny("gpt2"), task, shots=4, lr=1e30, modes=("exact",))
    found = run_task(tiny("gpt2"), task, shots=4, lr=(1e-3, 1e30), modes=("exact",))  # too high a rate loses the choice
    assert [point["lr"] for point in found.points] == [None, 1e-3, None, 1e-3]


def test_reports_say_what_they_were_made_of(tiny, text):
    checkpoint = Checkpoint(tiny("gpt2"))
    task = Task.load("sst2", train=ROWS, test=ROWS)
    first, other = (run_text(str(tiny("gpt2")), text, lr=0.1, window=size, windows=2) for size in (16, 32))
    found = [
        first.content,
        verify(str(tiny("gpt2")), sweep=False).content,
        run_task(tiny("gpt2"), task, shots=4, lr=0.1).content,
        run_text(str(tiny("gpt2")), torch.arange(40), lr=0.1, window=16).content,
    ]
    for content in found:
        assert content["inputs"]["model"] == checkpoint.fingerprint and len(content["inputs"]) == 2
        (asked,) = content["call"].values()
        assert asked["model"] == str(checkpoint)
    assert first.content["inputs"]["tokens"] != other.content["inputs"]["tokens"]
    assert first.content["call"]["run_text"]["lr"] == [0.1]


def test_verify_says_that_a_model_itself_is_nan(model):  # noqa: F811
    plain = model("gpt2", torch.float16)
    plain.transformer.h[0].mlp.c_proj.weight.data *= 60_000
    with pytest.raises(TintError, match="logits are NaN or infinite in float16"):
        verify(plain)


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
    arguments = (
        "--text",
        text,
        "--train-share",
        0.5,
        "--train-share",
        0.75,
        "--window",
        32,
        "--lr",
        0.01,
        "--steps",
        1,
    )
    status, out, _ = run("tint", "run", tiny("gpt2"), *arguments, "-o", tmp_path / "r")
    assert status == 0 and "TinT paper" in out and "75% for training" in out
    assert Run.load(tmp_path / "r").content["windows"] > 5 and (tmp_path / "r" / "perplexity.png").exists()
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in ROWS))
    task = ("--task", "sst2", "--data", data, "--eval", data, "--shots", 4, "--lr", 0.01)
    status, out, _ = run("tint", "run", tiny("opt"), *task, "--mode", "exact", "-o", tmp_path / "t", "--json")
    assert status == 0 and json.loads(out)["metric"] == "accuracy" and (tmp_path / "t" / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("count",), "give either a model folder or --config"),
        (("count", "--config", "opt-350m"), "LayerNorms after the sublayers"),
        (("count", "--config", "nothing"), "no sizes of a model called 'nothing'"),
        (("verify",), "the model is missing"),
        (("run", "{gpt2}"), "give either --text FILE"),
        (("run", "{gpt2}", "--text", "{text}", "--tests", "3"), "--tests goes with --task, not with --text"),
        (("run", "{gpt2}", "--task", "sst2", "--windows", "3"), "--windows goes with --text, not with --task"),
        (("run", "{gpt2}", "--task", "sst2", "--window", "32"), "--window goes with --text, not with --task"),
        (("run", "{gpt2}", "--text", "{text}", "--window", "60000"), "longer than the model's 64 positions"),
        (
            ("run", "{gpt2}", "--text", "{text}", "--lr", "1e30", "--window", "32", "--mode", "exact"),
            "loss of window 0 is NaN",
        ),
        (("run", "{gpt2}", "--text", "{text}", "--train-share", "0.001"), "leave two of the 64 tokens"),
        (("run", "{gpt2}", "--text", "{text}", "--dtype", "float16", "--lr", "0.1", "--window", "32"), "use float32"),
        (("run", "{gpt2}", "--text", "{text}", "--mode", "best"), "mode 'best' isn't one of exact, paper, published"),
        (("run", "{gpt2}", "--text", "nowhere.txt", "--lr", "0.1"), "can't be read as text"),
        (
            ("run", "{gpt2}", "--text", "{text}", "--window", "128", "--lr", "0.1"),
            "longer than the model's 64 positions",
        ),
        (("run", "{bert}", "--text", "{text}"), "architecture 'bert' can't be simulated"),
        (("verify", "{gpt2}", "--text", "{text}", "--tokens", "60000"), "fewer than the 60000 asked for"),
    ],
)
def test_mistakes_end_with_one_sentence_and_status_2(run, tiny, text, tmp_path, arguments, words):
    given = [a.format(gpt2=tiny("gpt2"), bert=tiny("bert"), text=text) for a in arguments]
    status, out, error = run("tint", *given)
    assert status == 2 and words in error and error.count("\n") == 1 and not out
    if arguments[0] != "count":
        assert run("tint", *given, "-o", tmp_path / "a" / "out")[0] == 2
        assert not list(tmp_path.iterdir())


def test_the_example_script_runs_as_written(tmp_path):
    script = ROOT / "examples" / "tint.py"
    done = subprocess.run([sys.executable, script, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "agrees" in done.stdout and "exact against autograd" in done.stdout
    assert (tmp_path / "out" / "run" / "perplexity.png").exists()


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


@pytest.mark.real
def test_smollm_learns_from_a_text_as_autograd_would(made):
    simulations = {mode: TinT.build(str(made("smollm2")), mode=mode) for mode in ("exact", "paper")}
    auxiliary = simulations["exact"].auxiliary
    ids = torch.randint(40_000, (1, 48), generator=torch.Generator().manual_seed(0))
    found = verify(auxiliary, ids, sweep=False)
    assert found.forward_error < 1e-3  # of logits that reach 30
    assert found.worst("exact", "full")["relative_error"] < 1e-4
    assert found.worst("paper", "detached")["cosine"] > 0.999
