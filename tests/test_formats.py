"""Folders that hold no plain weights: quantised codes, adapters, code of their own; refused by name, never read as numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_structure import configure
from test_tuning import ROWS, task
from tiny import change, perturb

from surgery import Checkpoint, SparseDelta, graft, score, tune
from surgery.errors import CheckpointError
from surgery.unlearning import Encoder

QUERY = "model.layers.0.self_attn.q_proj.weight"
DECLARED = {
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "8 bits": {"load_in_8bit": True},  # before transformers wrote the method
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
}


def codes(source, target, dtype=torch.int8, name=QUERY):
    """A copy in which one tensor holds codes instead of weights, as quantisers store them."""

    def to_codes(tensor):
        scaled = tensor / tensor.abs().max()
        return (scaled * 100).round().to(dtype) if not dtype.is_floating_point else scaled.to(dtype)

    return change(source, target, lambda n, tensor: to_codes(tensor) if n == name else None)


@pytest.fixture
def plain(tiny, tmp_path):
    """A tiny LLaMA and a tuned one, both in floating point."""
    perturb(tiny("llama"), tmp_path / "plain")
    return tiny("llama"), tmp_path / "plain"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("sides", ["tuned", "base", "both"])
def test_codes_are_not_grafted_as_numbers(plain, tmp_path, dtype, sides):
    pair = [
        codes(folder, tmp_path / name, dtype) if sides in (name, "both") else folder
        for name, folder in zip(("base", "tuned"), plain, strict=True)
    ]
    culprit = tmp_path / ("tuned" if sides == "tuned" else "base")
    told = f"{culprit}: tensor {QUERY} is stored as {str(dtype)[6:]}, not as floating-point weights .* dequantise"
    with pytest.raises(CheckpointError, match=told):
        graft(*pair, task(), weights=5, device="cpu")
    with pytest.raises(CheckpointError, match=told):
        SparseDelta.between(*map(Checkpoint, pair))
    with pytest.raises(CheckpointError, match=told):
        SparseDelta.between(*map(Checkpoint, pair), [QUERY])


def test_codes_outside_the_blocks_are_refused_too(plain, tmp_path):
    coded = codes(plain[1], tmp_path / "coded", name="lm_head.weight")
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is stored as int8"):
        graft(plain[0], coded, task(), weights=5, device="cpu")


@pytest.mark.parametrize("reads", ["score", "tune", "encoder", "probe"])
def test_nobody_reads_codes_as_numbers(plain, tmp_path, reads):
    from probes import ProbedModel

    coded = codes(plain[0], tmp_path / "coded")
    readers = {
        "score": lambda: score(coded, task(), device="cpu"),
        "tune": lambda: tune(coded, task(), device="cpu"),
        "encoder": lambda: Encoder.open(coded, device="cpu"),
        "probe": lambda: ProbedModel.load(coded, device="cpu"),
    }
    with pytest.raises(CheckpointError, match=f"tensor {QUERY} is stored as int8"):
        readers[reads]()


@pytest.mark.parametrize(("told", "fields"), DECLARED.items())
def test_a_declared_quantisation_is_named(plain, told, fields):
    base, tuned = plain
    configure(tuned, quantization_config=fields)
    with pytest.raises(
        CheckpointError, match=rf"{tuned} is quantised \({told}\), .*: take .* or dequantise it \(.*\)$"
    ):
        graft(base, tuned, task(), weights=5, device="cpu")
    with pytest.raises(CheckpointError, match=rf"{tuned} is quantised \({told}\)"):
        score(tuned, task(), device="cpu")


@pytest.mark.parametrize(
    "declare",
    [
        lambda folder: configure(folder, text_config={"quantization_config": {"quant_method": "gptq"}}),
        lambda folder: configure(folder, compression_config={"quant_method": "gptq"}),
        lambda folder: (folder / "quantize_config.json").write_text('{"bits": 4}'),
        lambda folder: (folder / "hf_quant_config.json").write_text('{"quantization": {}}'),
    ],
)
def test_a_quantisation_declared_elsewhere(plain, declare):
    declare(plain[1])
    with pytest.raises(CheckpointError, match="is quantised"):
        graft(*plain, task(), weights=5, device="cpu")


def test_an_empty_declaration_is_none(plain):
    configure(plain[1], quantization_config=None)
    assert graft(*plain, task(), weights=5, device="cpu").delta.weights == 5


def test_types_that_only_quantised_files_have(copied):
    folder = copied("llama")
    header = json.dumps({"scale": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(CheckpointError, match=r"tensor scale is stored as F8_E8M0, .* dequantise it first"):
        Checkpoint(folder)


def test_integer_buffers_are_no_codes(copied, tmp_path):
    folder = copied("bert")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    perturb(folder, tmp_path / "tuned")
    assert graft(folder, tmp_path / "tuned", task(), weights=5, device="cpu").delta.weights == 5
    Encoder.open(folder, device="cpu")


def test_the_command_refuses_codes_and_writes_nothing(plain, tmp_path, run):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS))
    coded = codes(plain[1], tmp_path / "coded")
    status, out, err = run(
        "graft", plain[0], coded, "--task", "sst2", "--data", rows, "--eval", rows, "-o", tmp_path / "skill"
    )
    assert (status, out) == (2, "") and f"tensor {QUERY} is stored as int8" in err and err.count("\n") == 1
    assert not (tmp_path / "skill").exists()
