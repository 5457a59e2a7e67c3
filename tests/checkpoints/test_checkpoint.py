"""Checkpoint: what it reads, its fingerprint, what it refuses; against the safetensors library and hashlib."""

import json
import pickle
import re
import shutil
from fnmatch import fnmatchcase

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint, fingerprint, open_checkpoint, rewrite
from surgery.errors import CheckpointError
from tests.support.tiny import build, change, expected_fingerprint, hashes, pickled, shard, weight_files, weights


def edit_json(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


# -- reading ---------------------------------------------------------------------------------------------------------


def test_every_tensor_is_what_the_library_reads(tiny, kind):
    checkpoint, expected = Checkpoint(tiny(kind)), weights(tiny(kind))
    assert set(checkpoint.entries) == set(expected)
    for name, tensor in checkpoint:
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
    assert str(checkpoint) == str(tiny(kind))


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "legacy bin", "sharded bin"])
def test_fingerprint_names_the_weights_whatever_the_files(copied, tmp_path, layout):
    folder = copied("bert")
    expected = expected_fingerprint(weights(folder))
    if "sharded" in layout:
        folder = shard(folder, tmp_path / "sharded")
        assert len(weight_files(folder)) > 3
    if "bin" in layout:
        folder = pickled(folder, tmp_path / "bin", legacy="legacy" in layout)
        assert not weight_files(folder)
    checkpoint = Checkpoint(folder)
    assert checkpoint.fingerprint == expected
    assert list(checkpoint.digests) == sorted(checkpoint.entries)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fingerprint_of_other_dtypes(tmp_path, dtype):
    folder = build("gpt2", tmp_path / "base", dtype=dtype)
    assert Checkpoint(folder).fingerprint == expected_fingerprint(weights(folder))


def test_fingerprint_of_tensors_longer_than_a_chunk(copied):
    folder = copied("bert")
    tensors = {"long": torch.arange(700_001, dtype=torch.float32), "empty": torch.empty(0), "one": torch.tensor(1.0)}
    save_file(tensors, folder / "model.safetensors")
    assert Checkpoint(folder).fingerprint == expected_fingerprint(tensors)


def test_fingerprint_notices_one_bit_a_name_a_shape_and_a_dtype(copied):
    folder = copied("bert")
    tensors = {"a": torch.zeros(4), "b": torch.ones(2, 3)}
    variants = {
        "as it is": tensors,
        "one bit": {**tensors, "a": torch.tensor([0.0, -0.0, 0.0, 0.0])},
        "a name": {"c": tensors["a"], "b": tensors["b"]},
        "a shape": {**tensors, "b": torch.ones(3, 2)},
        "a dtype": {**tensors, "a": torch.zeros(4, dtype=torch.int32)},
    }
    found = set()
    for variant in variants.values():
        save_file(variant, folder / "model.safetensors")
        found.add(Checkpoint(folder).fingerprint)
    assert len(found) == len(variants)


def test_fingerprint_ignores_everything_but_the_weights(copied):
    folder = copied("bert")
    before = Checkpoint(folder).fingerprint
    (folder / "README.md").write_text("new")
    edit_json(folder / "config.json", lambda config: config.update(note="new"))
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"note": "new"})
    assert Checkpoint(folder).fingerprint == before


def test_fingerprint_function_sorts_names(tiny):
    checkpoint = Checkpoint(tiny("bert"))
    backwards = dict(reversed(list(checkpoint.entries.items())))
    assert fingerprint(backwards, checkpoint.digests) == checkpoint.fingerprint


def test_opened_checkpoints_pass_through(tiny):
    checkpoint = Checkpoint(tiny("bert"))
    assert open_checkpoint(checkpoint) is checkpoint
    assert open_checkpoint(str(tiny("bert"))).folder == tiny("bert")
    assert Checkpoint(checkpoint).folder == checkpoint.folder


def test_safetensors_go_before_a_pickle_beside_them(copied):
    folder = copied("bert")
    torch.save({"other": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert set(Checkpoint(folder).entries) == set(weights(folder))


def test_tied_tensors_of_a_pickle_become_two_in_safetensors(copied, tmp_path):
    folder = pickled(copied("gpt2"), tmp_path / "bin")
    state = torch.load(folder / "pytorch_model.bin")
    state["lm_head.weight"] = state["transformer.wte.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    (tmp_path / "out").mkdir()
    made = Checkpoint(folder).as_safetensors(tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], state["transformer.wte.weight"])
    assert made.fingerprint == Checkpoint(folder).fingerprint == expected_fingerprint(state)


# -- refusals --------------------------------------------------------------------------------------------------------


def refused(folder, message, **options):
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint(folder, **options)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    for source in (tmp_path / "missing", str(tmp_path / "missing"), "./missing", "~/missing/missing", "a/b/c", " "):
        refused(source, "is not a folder: give a Hugging Face model folder or a hub id")
    refused("no spaces allowed", "neither a folder nor a possible hub id")
    refused("someone/model-that-is-not-cached", "the hub couldn't give it")


HUB = {  # what must come along, by repository: tokenizers that are not only JSON and text
    "microsoft/deberta-v3-base": "spm.model",
    "vinai/bertweet-base": "bpe.codes",
    "vinai/phobert-base": "bpe.codes",
    "Qwen/Qwen-7B": "qwen.tiktoken",
    "google/gemma-2b": "tokenizer.model",
    "Qwen/Qwen3-0.6B": "merges.txt",
}


@pytest.mark.parametrize(("name", "file"), HUB.items())
def test_tokenizers_come_from_the_hub_whole(tiny, monkeypatch, name, file):
    def fetch(_, allow_patterns):
        assert any(fnmatchcase(file, pattern) for pattern in allow_patterns)
        assert not any(fnmatchcase(large, pattern) for large in ("tf_model.h5", "x.gguf") for pattern in allow_patterns)
        return str(tiny("bert"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert Checkpoint(name).folder == tiny("bert")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "isn't readable JSON"),
        ("[]", "isn't a JSON table"),
        (b"\xff", "isn't readable JSON"),
    ],
)
def test_config_must_be_a_table(copied, content, message):
    folder = copied("bert")
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, rf"config\.json.* {message}")


def test_no_weights(copied):
    folder = copied("bert")
    (folder / "model.safetensors").unlink()
    refused(folder, r"holds no model\.safetensors, .* is it a Hugging Face model folder")


def test_half_patched(copied):
    folder = copied("bert")
    (folder / JOURNAL).write_text("{}")
    refused(folder, "is half patched: .* `surgery skill apply .* `surgery skill revert ")
    assert Checkpoint(folder, half_patched=True).entries


def test_unknown_tensor(tiny):
    with pytest.raises(CheckpointError, match="has no tensor wanting"):
        Checkpoint(tiny("bert")).tensor("wanting")


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_shards_must_all_be_there_and_hold_what_the_index_says(copied, tmp_path, layout):
    folder = shard(copied("bert"), tmp_path / "sharded")
    if layout == "bin":
        folder = pickled(folder, tmp_path / "bin")
    index = next(folder.glob("*.index.json"))
    good = index.read_text()
    shards = sorted(set(json.loads(good)["weight_map"].values()))

    edit_json(index, lambda content: content["weight_map"].update(ghost=shards[0]))
    refused(folder, "names tensor ghost, which no file holds")
    for wrong in ({}, [], {"a": 3}, {"a": "../" + shards[0]}, {"a": "sub/" + shards[0]}, {"a": None}):
        edit_json(index, lambda content, wrong=wrong: content.update(weight_map=wrong))
        refused(folder, "has no weight_map")
    index.write_text(good)
    shutil.copyfile(folder / shards[0], folder / shards[1])
    refused(folder, f"tensor .* lies in .*{re.escape(shards[0])} and in ")
    (folder / shards[1]).unlink()
    refused(folder, f"{re.escape(shards[1])} is missing, though .*names it")


def test_an_index_over_one_file_counts_too(copied):
    folder = copied("bert")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    table = dict.fromkeys([*weights(folder), "ghost"], "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    refused(folder, "names tensor ghost, which no file holds")


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return self.file.touch, ()


@pytest.mark.parametrize("how", ["torch", "plain pickle"])
def test_code_in_a_pickle_is_not_run(copied, tmp_path, how):
    folder = pickled(copied("bert"), tmp_path / "bin")
    marker, file = tmp_path / "ran", folder / "pytorch_model.bin"
    content = {"a": torch.zeros(1), "evil": Evil(marker)}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps({"evil": Evil(marker)}))
    refused(folder, r"pytorch_model\.bin can't be read as plain weights .*: convert it to safetensors")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))  # the trap itself works
    assert marker.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, torch.zeros(2)], ids=["list", "number", "tensor"])
def test_pickle_of_something_else(copied, tmp_path, content):
    folder = pickled(copied("bert"), tmp_path / "bin")
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin holds more than tensors")


def test_truncated_pickle(copied, tmp_path):
    folder = pickled(copied("bert"), tmp_path / "bin")
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(folder, r"pytorch_model\.bin can't be read as plain weights")


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["single", "sharded", "bin"])
def test_rewrite_replaces_whole_tensors_and_nothing_else(copied, tmp_path, layout):
    plain = copied("bert")
    folder = {
        "single": lambda: plain,
        "sharded": lambda: shard(plain, tmp_path / "s"),
        "bin": lambda: pickled(plain, tmp_path / "b"),
    }[layout]()
    name = "bert.encoder.layer.1.output.dense.weight"
    new = torch.randn(weights(plain)[name].shape, dtype=torch.float64)
    (tmp_path / "out").mkdir()
    rewrite(Checkpoint(folder), {name: new}, tmp_path / "out")
    expected = weights(change(plain, tmp_path / "expected", lambda n, t: new.float() if n == name else None))
    found = weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    touched = {n for n, digest in hashes(folder).items() if hashes(tmp_path / "out").get(n) != digest}
    file = {"single": "model.safetensors", "bin": "pytorch_model.bin"}.get(layout) or Checkpoint(folder).entries[
        name
    ].file.name
    assert touched == {file}


def test_rewrite_refuses_what_does_not_fit(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="has no tensor wanting to replace"):
        rewrite(Checkpoint(tiny("bert")), {"wanting": torch.zeros(1)}, tmp_path)
    with pytest.raises(CheckpointError, match=r"tensor bert\.encoder\S+ has shape \(16,\) in .*, not \(3,\)"):
        rewrite(Checkpoint(tiny("bert")), {"bert.encoder.layer.0.output.dense.bias": torch.zeros(3)}, tmp_path)


def test_other_files_are_copied_but_not_the_weights_or_the_journal(copied, tmp_path):
    folder = copied("bert")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.txt").write_text("deep")
    (folder / ".git").mkdir()
    (folder / JOURNAL).write_text("{}")
    (tmp_path / "out").mkdir()
    Checkpoint(folder, half_patched=True).copy_other_files(tmp_path / "out")
    expected = {name: digest for name, digest in hashes(folder).items() if name not in (JOURNAL, "model.safetensors")}
    assert hashes(tmp_path / "out") == expected
    assert "sub/deep.txt" in expected
    assert not (tmp_path / "out" / ".git").exists()
