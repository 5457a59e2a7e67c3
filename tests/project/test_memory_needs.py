"""What work needs of memory, told before it: against what the system measures, and refused where it is too much."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from pcfg import Grammar
from pcfg.errors import OptionError as PcfgOptionError
from pcfg.learning.pretraining import PretrainRecipe, pretrain
from pcfg.learning.pretraining_memory import pretrain_need
from surgery import Checkpoint, Task, graft, tune
from surgery.checkpoints.models import load_model
from surgery.errors import OptionError
from surgery.grafting.memory_need import graft_need
from surgery.memory import Meter, Need
from surgery.tasks.examples import Example
from surgery.tasks.rehearsal import rehearsed
from surgery.tint.evaluation.memory_need import text_need
from surgery.tuning.memory_need import most_of_tuning, tune_need
from surgery.tuning.recipe import Recipe
from tests.support import tiny
from tests.support.measuring import resident_peak

CPU = torch.device("cpu")
TEXTS = ["this film was " + " ".join(["very"] * 40) + word for word in (" good", " bad")] * 16
ROWS = [Example(text, "", label) for text, label in zip(TEXTS, ["positive", "negative"] * 16, strict=True)]
MODELS = Path.home() / ".cache/surgery-models"
SIZED = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}


def task(train=ROWS, **given):
    return Task.load("sst2", train=train, test=ROWS, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT, and one of 14 million weights and the same tokenizer."""
    home = tmp_path_factory.mktemp("models")
    small = tiny.build("bert", home / "small")
    config = transformers.AutoConfig.from_pretrained(small, **SIZED)
    torch.manual_seed(0)
    shutil.copytree(small, home / "large")
    transformers.BertForMaskedLM(config).save_pretrained(home / "large")
    return home


@pytest.fixture
def free(monkeypatch):
    """Say how much memory is free."""
    return lambda count: monkeypatch.setattr("surgery.memory.free_memory", lambda device: count)


def code(call):
    return (
        "from pathlib import Path\nfrom surgery import tune, graft\nfrom surgery.tuning.recipe import Recipe\n"
        f"from tests.project.test_memory_needs import task\n{call}"
    )


# --- the meter


def test_meter_counts_what_is_alive_once():
    held = torch.zeros(1000)
    with Meter(CPU, [held]) as meter:
        assert meter.live == 4000
        view = held.view(10, 100).t()
        assert (meter.live, len(view)) == (4000, 100)
        big = torch.zeros(500, dtype=torch.float64)
        del big
        torch.zeros(250).add_(1)
        assert (meter.live, meter.peak) == (4000, 8000)


def test_rehearsal_is_the_step_itself(folder):
    """Over tensors with content the same operations run, so a meter counts the same bytes."""
    checkpoint = Checkpoint(folder / "large")

    def step(module):
        batch = {name: torch.ones(8, 30, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        module.requires_grad_(True)(**batch).logits.sum().backward()

    module = load_model(checkpoint, device="cpu").module
    with Meter(CPU, module.parameters()) as real:
        step(module)
    with rehearsed(checkpoint, CPU, torch.float32) as (model, meter):
        step(model.module)
    assert meter.peak == pytest.approx(real.peak, rel=0.02)


# --- against the system


def test_tuning_takes_what_was_told(folder):
    call = "tune({!r}, task(), Recipe(steps=3, optimizer='adamw-l1', batch_size=32), device='cpu')"
    warm, work = (code(call.format(str(folder / name))) for name in ("small", "large"))
    need = tune_need(folder / "large", task(), Recipe(optimizer="adamw-l1", batch_size=32), device="cpu")
    assert not need.note
    assert 0.85 < need.total / resident_peak(warm, work) < 1.15


def test_grafting_takes_what_was_told(folder, tmp_path):
    for name in ("small", "large"):
        # A third moves: growing, for checkpoints in which most does, isn't counted.
        tiny.change(
            folder / name, tmp_path / name, lambda key, x: x + 0.01 * torch.randn_like(x) * (torch.rand_like(x) < 1 / 3)
        )
    call = "graft({!r}, {!r}, task(), method='sigmoid', epochs=1, weights=100, control=False, device='cpu')"
    warm, work = (code(call.format(str(folder / name), str(tmp_path / name))) for name in ("small", "large"))
    need = graft_need(folder / "large", task(), method="sigmoid", weights=100, device="cpu")
    assert not need.note
    assert 0.85 < need.total / resident_peak(warm, work) < 1.15


def test_pretraining_takes_what_was_told():
    lines = (
        "from pcfg import Grammar\nfrom pcfg.learning.pretraining import PretrainRecipe, pretrain\n"
        "grammar = Grammar.random(5, 8, words=100, seed=0, temperature=2.0)\n"
        "def run(**sizes): pretrain(grammar, PretrainRecipe(max_length=20, evaluation=50, **sizes), device='cpu')"
    )
    sizes = {"width": 192, "sentences": 1024, "batch_size": 256}
    grammar = Grammar.random(5, 8, words=100, seed=0, temperature=2.0)
    need = pretrain_need(grammar, PretrainRecipe(max_length=20, evaluation=50, **sizes), device="cpu")
    assert not need.note
    warm = f"{lines}\nrun(width=12, sentences=64)"
    assert 0.85 < need.total / resident_peak(warm, f"run(**{sizes})") < 1.15


def test_learning_while_reading_takes_what_was_told(tmp_path):
    rows = 3
    tiny.build("llama", tmp_path / "small")
    config = transformers.AutoConfig.from_pretrained(
        tmp_path / "small", hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8
    )
    config.num_key_value_heads, config.head_dim = 8, 64
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "large")
    lines = (
        "import torch\nfrom surgery.tint.evaluation.perplexity import run_text\n"
        f"def run(model): run_text(model, torch.arange({rows} * 48) % 70, lr=1e-4, window=48, batch_size={rows}, device='cpu')"
    )
    need = text_need(tmp_path / "large", window=48, batch_size=rows, device="cpu")
    assert not need.note
    warm, work = (f"run({str(tmp_path / name)!r})" for name in ("small", "large"))
    assert 0.85 < need.total / resident_peak(f"{lines}\n{warm}", work) < 1.15


def test_pretraining_that_is_too_large_is_refused_first(free, monkeypatch):
    free(10_000_000)
    monkeypatch.setattr("transformers.RobertaForMaskedLM.to", None)
    grammar = Grammar.random(3, 4, words=6, seed=1, temperature=2.0)
    with pytest.raises(
        PcfgOptionError, match=r"pretraining needs .* on cpu, which has 10 MiB free: lower `batch_size`"
    ):
        pretrain(grammar, PretrainRecipe(sentences=1000), device="cpu")


def test_pretraining_larger_needs_more():
    grammar = Grammar.random(3, 4, words=6, seed=1, temperature=2.0)
    small, wide, many = (
        pretrain_need(grammar, PretrainRecipe(layers=2, sentences=1000, **sizes), device="cpu").parts
        for sizes in ({}, {"width": 384}, {"batch_size": 256})
    )
    assert wide["weights"] > 3 * small["weights"] and many["activations"] > 3 * small["activations"]
    assert small["AdamW"] == 2 * small["weights"] == 2 * many["weights"]


@pytest.mark.cuda
def test_a_card_takes_what_was_told():
    from tests.benchmarks.card import memory

    found = list(memory.lines())
    assert len(found) == 3 and [line for line in found if not line.ok] == []


def test_reading_no_weights(folder, monkeypatch):
    monkeypatch.setattr("surgery.checkpoints.checkpoint.Checkpoint.tensor", None)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    assert tune_need(folder / "small", task(), device="cpu").total > 0
    assert graft_need(folder / "small", task(), device="cpu").total > 0


# --- too large


@pytest.mark.parametrize("run", ["tune", "graft"])
def test_too_large_is_refused_before_loading(folder, free, run, monkeypatch):
    free(10_000_000)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)  # reading any weights fails otherwise
    where = folder / "large"
    with pytest.raises(OptionError, match=r"needs \d+ MiB on cpu, which has 10 MiB free: lower `batch_size`"):
        tune(where, task(), device="cpu") if run == "tune" else graft(where, where, task(), device="cpu")


def test_what_is_plainly_small_is_not_rehearsed(folder, monkeypatch):
    monkeypatch.setattr("surgery.tuning.memory_need.rehearsed", None)
    assert tune(folder / "small", task(), Recipe(steps=1), device="cpu").report["stopped_at"] == 1


def test_a_bound_is_above_the_need(folder):
    checkpoint = Checkpoint(folder / "large")
    names = checkpoint.block_weights()
    for recipe in (Recipe(), Recipe(optimizer="adamw", batch_size=64)):
        assert tune_need(checkpoint, task(), recipe, device="cpu").total < most_of_tuning(
            checkpoint, names, task(), recipe
        )


def test_code_that_looks_at_numbers_is_said_not_to_be_counted():
    def fails():
        raise RuntimeError("a number is wanted")

    need = Need.of_peak("tuning", CPU, {"weights": 100, "none": 0}, fails, "lower it", {})
    assert "RuntimeError" in need.note
    assert need.parts == {"weights": 100, "activations": 0, "gaps between": 20}


def test_larger_batches_and_longer_texts_need_more(folder):
    def need(**given):
        return tune_need(folder / "large", given.pop("task", task()), Recipe(**given), device="cpu").parts

    small, large = need(batch_size=16), need(batch_size=32)
    assert large["activations"] > 1.5 * small["activations"]
    assert large["weights"] == small["weights"]
    assert need(batch_size=32, accumulate=4)["activations"] < large["activations"]
    assert need(batch_size=32, task=task(max_length=12))["activations"] < large["activations"]
    assert need(optimizer="adamw")["optimizer"] == 2 * small["optimizer"]


# --- from the shell


@pytest.mark.parametrize("name", ["tune", "graft"])
def test_dry_run_prints_and_does_nothing(folder, tmp_path, name, monkeypatch, capsys, examples_file, free):
    monkeypatch.chdir(tmp_path)
    data = ["--task", "sst2", "--data", str(examples_file)]
    where = str(folder / "small")
    call = [name, where, *([where, "--eval", str(examples_file)] if name == "graft" else []), *data, "--dry-run"]
    assert run_surgery(call, monkeypatch) == 0
    assert "needed at once" in capsys.readouterr().out
    assert run_surgery([*call, "--json", "--device", "cpu"], monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["needed"] == sum(found["parts"].values())
    free(1000)
    assert run_surgery([*call, "--json", "--device", "cpu"], monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert json.loads(said.out)["free"] == 1000
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_learning_while_reading_needs_no_text(tmp_path, monkeypatch, capsys):
    tiny.build("gpt2", tmp_path / "model")
    call = ["tint", "text", str(tmp_path / "model"), "--dry-run", "--json", "--window", "16", "--device", "cpu"]
    assert run_surgery(call, monkeypatch) == 0
    small = json.loads(capsys.readouterr().out)
    assert run_surgery([*call, "--batch-size", "8"], monkeypatch) == 0
    large = json.loads(capsys.readouterr().out)
    part = "each window's own weights"
    assert large["parts"][part] == 8 * small["parts"][part]


@pytest.fixture(scope="module")
def examples_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS))
    return file


def run_surgery(arguments, monkeypatch):
    """The exit status of the command, run here."""
    from cli.main import main

    monkeypatch.setattr("sys.argv", ["surgery", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0
