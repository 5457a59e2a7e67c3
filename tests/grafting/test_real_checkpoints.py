"""Real checkpoints and real text: what the README promises, on one seed.

MiniLM comes from its package; text and the script that makes SmolLM2 from the folder `shared` beside the checkout.
"""

from pathlib import Path

import pytest
import torch
import transformers

from surgery import Checkpoint, Skill, SparseDelta, Task, graft, score, tune
from surgery.checkpoints.models import load_model
from surgery.grafting.example import minilm, run_example
from surgery.tasks.readout import pick_readout
from surgery.tasks.scoring import predict
from tests.support.tiny import hashes

pytestmark = pytest.mark.real
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def text():
    """The folder of labelled text."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no labelled text at {SHARED / 'data'}")
    return SHARED / "data"


@pytest.fixture(scope="session")
def smollm2(made):
    """SmolLM2-135M."""
    return made("smollm2")


def test_the_embedded_example(tmp_path):
    skill, folder, base = run_example(tmp_path / "example", say=lambda line: None)
    assert skill.delta.weights == 1064 and skill.delta.movable == 10_646_784
    assert skill.report["graft"]["gain_recovered"] >= 0.93
    assert skill.report["graft"]["agreement"] >= 0.95
    assert {"skill.safetensors", "report.json", "README.md", "sparsity.png", "reliability.png", "where.png"} <= {
        p.name for p in folder.iterdir()
    }
    assert (folder / "skill.safetensors").stat().st_size <= 12 * 1064 + 32_000
    Skill.load(folder).apply(base, tmp_path / "grafted")
    transformers.AutoModel.from_pretrained(tmp_path / "grafted")
    Skill.load(folder).revert(tmp_path / "grafted", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(base)


def test_trec_is_recovered_by_a_ten_thousandth_of_the_weights(text, tmp_path):
    task = Task.load("trec", train=text / "trec/train.jsonl", test=text / "trec/test.jsonl", shots=64, seed=0)
    tuned = tune(minilm(), task).save(tmp_path / "tuned")
    report = graft(minilm(), tuned, task, sparsity=1e-4, sweep=[1e-5], baselines=True).report
    points = {(point["method"], point["weights"]): point for point in report["points"]}
    assert report["tuned"]["accuracy"] - report["base"]["accuracy"] > 0.2
    assert (
        points["dual-averaging", 1064]["gain_recovered"] >= 0.85 and points["dual-averaging", 1064]["agreement"] >= 0.93
    )
    assert points["dual-averaging", 106]["gain_recovered"] >= 0.55
    assert points["dual-averaging", 106]["gain_recovered"] > points["movement", 106]["gain_recovered"]
    assert points["random", 1064]["gain_recovered"] <= 0.15
    assert points["zero outside", 1064]["accuracy"] < report["base"]["accuracy"]


def test_a_causal_model_is_read_as_the_library_reads_it(smollm2, text):
    task = Task.load("sst2", test=text / "sst2/test.jsonl")
    model = load_model(Checkpoint(smollm2), device="cpu")
    readout = pick_readout(model, task)
    rows = task.test[:6]
    found = torch.from_numpy(predict(model, readout, readout.encode(rows)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    words = [tokenizer.encode(word)[0] for word in (" terrible", " great")]
    with torch.inference_mode():
        for example, row in zip(rows, found, strict=True):
            logits = model.module(**tokenizer(f"{example.text} It was", return_tensors="pt")).logits[0, -1]
            assert torch.allclose(row, logits[words], atol=1e-3)


def test_a_half_gigabyte_checkpoint_is_patched_and_restored_bit_for_bit(smollm2, tmp_path):
    base = Checkpoint(smollm2)
    names = base.block_weights()
    assert sum(base.entries[name].size for name in names) == 106_202_880
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for name in names:
        index = torch.randperm(base.entries[name].size, generator=generator)[:40]
        parts[name] = (index, torch.randn(len(index), generator=generator))
    delta = SparseDelta.from_parts(base, parts, movable=106_202_880)
    skill = Skill(delta, Task.load("sst2"), {})
    grafted = skill.apply(base, tmp_path / "grafted")
    before = hashes(smollm2)
    assert hashes(grafted)["model.safetensors"] != before["model.safetensors"]
    skill.revert(grafted, in_place=True)
    assert hashes(grafted) == before


def test_phrases_alone_tell_opinion_from_plot(text):
    task = Task.load("subj", test=text / "subj/test.jsonl")
    result = score(minilm(), Task.load("subj", test=task.test[:200]), device="cpu")
    assert result.accuracy > 0.65  # zero-shot, by the phrases alone
