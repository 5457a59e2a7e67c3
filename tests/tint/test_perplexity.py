"""run_text: perplexity against a plain loop, windows, rates, gains, and what reports say of their inputs."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import OptionError, TintError
from surgery.tasks.task import Task
from surgery.tint import TinT, run_task, run_text, verify
from surgery.tint.evaluation.perplexity import Evaluation, _perplexity
from surgery.tint.evaluation.report import best, difference
from surgery.tint.evaluation.texts import load_with_tokens
from tests.support.tint import ROWS, tokens


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_perplexity_is_a_plain_loops_and_exact_is_dynamic_evaluation(model, kind):
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


def test_the_rate_is_chosen_on_windows_that_are_left_out(model):
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


def test_windows_are_no_longer_than_the_model_by_default(model):
    plain = model("gpt2")  # 64 positions
    ids = torch.randint(plain.config.vocab_size, (130,), generator=torch.Generator().manual_seed(1))
    found = run_text(plain, ids, lr=1e-3, methods=("frozen",))
    assert (found.content["window"], found.content["windows"]) == (64, 2)


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
def test_bad_runs_are_refused(model, options, error, words):
    plain = model("gpt2", torch.float32)
    with pytest.raises(error, match=words):
        run_text(plain, torch.zeros(64, dtype=torch.long), **{"window": 16, "lr": 0.1, **options})


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
    with pytest.raises(OptionError, match="`start_token` goes with a text"):
        run_text(str(tiny("gpt2")), torch.arange(40), lr=0.1, window=16, start_token=True)


def test_gains_are_paired_by_window(model):
    plain = model("gpt2")
    ids = torch.randint(plain.config.vocab_size, (16 * 9,), generator=torch.Generator().manual_seed(1))
    found = run_text(plain, ids.tolist(), shares=(0.25, 0.5), lr=0.01, window=16)
    for point in found.points:
        if point["method"] != "frozen":
            frozen = next(p for p in found.points if p["method"] == "frozen" and p["share"] == point["share"])
            pairs = np.array(frozen["losses"]) - np.array(point["losses"])
            assert point["gain"] == pytest.approx(pairs.mean())
            assert point["gain_error"] == pytest.approx(pairs.std(ddof=1) / 3)
    columns, rows = found.table()
    gains = {(row[0], row[1]): row[columns.index("gain")] for row in rows}
    assert gains == {(p["method"], p["share"]): p.get("gain") for p in found.points}
    assert [name for (name, share), gain in gains.items() if gain is not None and share == 0.5] == [
        "dynamic evaluation", "TinT paper", "TinT exact",
    ]  # fmt: skip
    assert "**gain**: Nats a token below the frozen model" in found.markdown()
    assert difference([2.0]) == {"gain": 2.0, "gain_error": None}  # one window has no spread
    alone = run_text(plain, ids[:16], lr=0.01, window=16, methods=("frozen", "TinT exact"))
    assert alone.table()[1][1][-1] is None and "standard error" not in " ".join(alone.summary)


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


def test_the_interval_is_the_resampled_windows_by_seed():
    """Of many windows the mean is normal: its interval is known without resampling."""
    losses = np.random.default_rng(0).exponential(3.0, 800)
    first, again, other = (_perplexity(losses, 2, seed) for seed in (0, 0, 1))
    assert first == again and (first["low"], first["high"]) != (other["low"], other["high"])
    middle, half = losses.mean() / 2, 1.96 * losses.std(ddof=1) / math.sqrt(800) / 2
    assert first["value"] == pytest.approx(math.exp(middle))
    assert math.log(first["low"]) == pytest.approx(middle - half, abs=0.1 * half)
    assert math.log(first["high"]) == pytest.approx(middle + half, abs=0.1 * half)
    assert first["losses"] == pytest.approx((losses / 2).tolist())


def test_windows_are_the_first_of_the_text(model):
    plain = model("gpt2")
    ids = tokens(plain, count=16 * 6)[0]
    few, alone = (
        run_text(plain, given, window=16, windows=2, dev_windows=2, lr=(1e-3, 1e-2)) for given in (ids, ids[:64])
    )
    assert few.points == alone.points and few.content["windows"] == 2
    frozen, resampled = (
        run_text(plain, ids, window=16, lr=0.1, methods=("frozen",), seed=seed).points[0] for seed in (0, 1)
    )
    assert frozen["value"] == resampled["value"] and frozen["low"] != resampled["low"]


def test_a_rate_that_the_measured_windows_like_better_is_not_taken(model, monkeypatch):
    """Planted losses: the two windows that choose are best at .1, the two that are measured at .01."""

    def planted(self, method, first, last, boundary, lr, dev):
        return [abs(lr - (0.1 if window < 2 else 0.01)) for window in range(first, last)]

    monkeypatch.setattr(Evaluation, "_find", planted)
    plain = model("gpt2")
    run = run_text(plain, tokens(plain, count=64)[0], window=16, dev_windows=2, lr=(0.01, 0.1), methods=("TinT exact",))
    (point,) = run.points
    assert point["lr"] == 0.1 and point["losses"] == pytest.approx([0.09 / 8] * 2)
