"""Further copies of the weights beside a checkpoint: never copied along, never left unpatched without a word."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from surgery.checkpoints.applying import patch_folder, write_patched
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint, rewrite
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import CheckpointError
from surgery.grafting.skill import Skill
from surgery.tasks.task import Task
from tests.support.tiny import hashes, perturb, pickled, shard

COPIES = {
    "tf_model.h5",
    "flax_model.msgpack",
    "consolidated.safetensors",
    "model-00007-of-00009.safetensors",  # a stale shard
    "optimizer.pt",
    "rng_state_0.pth",
    "bert_model.ckpt.data-00000-of-00001",
    "model-Q4_K_M.gguf",
    "original/consolidated.00.pth",
    "original/params.json",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/config.json",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/trainer_state.json",
    "coreml/deep/float32_model.mlpackage/weights/weight.bin",
}
# A module of a sentence encoder, the trainer's options, another skill's readout, notes.
OTHERS = {
    "2_Dense/pytorch_model.bin",
    "training_args.bin",
    "readout-sst2.safetensors",
    "docs/notes.txt",
    "spiece.model",
    "vocabulary.bin",
}


def add(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return sorted({name if "/" not in name else f"{name.partition('/')[0]}/" for name in names})


@pytest.fixture
def base(copied):
    folder = copied("bert")
    modules = [{"path": "", "type": "models.Transformer"}, {"path": "2_Dense", "type": "models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    add(folder, OTHERS)
    return folder


def make(base, tuned):
    perturb(base, tuned, count=40)
    return SparseDelta.between(Checkpoint(base), Checkpoint(tuned))


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "sharded bin"])
def test_a_new_folder_holds_no_copies(base, tmp_path, layout):
    if "sharded" in layout:
        base = shard(base, tmp_path / "sharded")
    delta = make(base, tmp_path / "tuned")
    stale = {"pytorch_model.bin", "pytorch_model.bin.index.json"}
    if "bin" in layout:
        base, stale = pickled(base, tmp_path / "bin"), {"model.ckpt.index"}
    write_patched(delta, Checkpoint(base), tmp_path / "clean")
    shown = add(base, COPIES | stale)
    checkpoint = Checkpoint(base)
    assert list(checkpoint.other_copies) == shown
    write_patched(delta, checkpoint, tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "clean")
    assert hashes(tmp_path / "out").keys() >= OTHERS
    write_patched(delta, checkpoint, tmp_path / "back", direction="revert")
    assert not COPIES & hashes(tmp_path / "back").keys()


def test_one_file_and_a_stale_index(base, tmp_path):
    """Both of transformers and here the single file comes first."""
    delta = make(base, tmp_path / "tuned")
    index = shard(base, tmp_path / "sharded") / "model.safetensors.index.json"
    shutil.copy(index, base)
    assert Checkpoint(base).other_copies == ("model.safetensors.index.json",)
    write_patched(delta, Checkpoint(base), tmp_path / "out")
    assert not (tmp_path / "out" / index.name).exists()


def test_tuning_copies_none_either(base, tmp_path):
    add(base, COPIES)
    (tmp_path / "out").mkdir()
    name = "bert.encoder.layer.0.output.dense.bias"
    rewrite(Checkpoint(base), {name: torch.zeros(16)}, tmp_path / "out")
    assert not COPIES & hashes(tmp_path / "out").keys()
    assert hashes(tmp_path / "out").keys() >= OTHERS


def test_the_hubs_notes_on_its_files_are_not_copied(base, tmp_path):
    """They would say that the grafted weights are the hub's."""
    delta = make(base, tmp_path / "tuned")
    add(base, {".cache/huggingface/download/model.safetensors.metadata"})
    write_patched(delta, Checkpoint(base), tmp_path / "out")
    assert not (tmp_path / "out" / ".cache").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "onnx/model.onnx", "checkpoint-500/model.safetensors"])
def test_in_place_refuses_to_leave_a_copy_behind(base, tmp_path, name):
    delta = make(base, tmp_path / "tuned")
    grafted = shutil.copytree(base, tmp_path / "grafted")
    patch_folder(delta, grafted)
    for folder in (base, grafted):
        [shown] = add(folder, {name})
        before = hashes(folder)
        with pytest.raises(CheckpointError, match=f"also holds {shown}, copies of the weights"):
            patch_folder(delta, folder)
        assert hashes(folder) == before
    patch_folder(delta, grafted, direction="revert")  # as it was: the copy is right again
    assert hashes(grafted) == hashes(base)


def test_a_copy_does_not_keep_a_half_done_patch_from_being_completed(base, tmp_path, monkeypatch):
    delta = make(base, tmp_path / "tuned")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as moment, pytest.raises(KeyboardInterrupt):
        moment.setattr("surgery.checkpoints.applying.patch_in_place", killed)
        patch_folder(delta, base)
    assert (base / JOURNAL).exists()
    add(base, {"pytorch_model.bin"})
    patch_folder(delta, base)
    assert Checkpoint(base).fingerprint == Checkpoint(tmp_path / "tuned").fingerprint


@pytest.mark.parametrize("modules", ["[", "[]", "{}", '[{"path": 3}]', "[" * 100_000])
def test_an_unreadable_list_of_modules_names_none(base, modules):
    (base / "modules.json").write_text(modules)
    assert Checkpoint(base).other_copies == ("2_Dense/",)


def test_the_command_says_what_it_left_out(base, tmp_path, run):
    task = Task.load("sst2")
    delta = replace(make(base, tmp_path / "tuned"), metadata={"task": json.dumps(task.spec())})
    Skill(delta, task, {}).save(tmp_path / "skill", figures=False)
    add(base, {"onnx/model.onnx", "pytorch_model.bin"})
    status, out, _ = run("skill", "apply", tmp_path / "skill", base, "-o", tmp_path / "out")
    assert status == 0
    assert "left out: onnx/, pytorch_model.bin: further copies of the weights, which the skill doesn't reach" in out
    status, out, _ = run("skill", "apply", tmp_path / "skill", base, "-o", tmp_path / "out2", "--json")
    assert json.loads(out)["other_copies"] == ["onnx/", "pytorch_model.bin"]
    status, out, error = run("skill", "apply", tmp_path / "skill", base, "--in-place")
    assert (status, out) == (2, "") and "also holds onnx/, pytorch_model.bin" in error
