"""Folders that hold no plain weights: quantised codes, adapters, code of their own; refused by name, never read as numbers."""

import ast
import json
import shlex
import shutil
import subprocess

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from surgery import Checkpoint, SparseDelta, graft, score, tune
from surgery.checkpoints.pairing import check_tokenizers
from surgery.errors import CheckpointError
from surgery.unlearning import Encoder
from tests.checkpoints.test_structure import configure, rename
from tests.support.tiny import change, perturb
from tests.tuning.test_tuning import ROWS, task

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


# -- adapters and folders that hold no model ---------------------------------------------------------------------------


def adapter(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **fields}))
    (folder / "adapter_model.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("CAUSAL_LM", "AutoPeftModelForCausalLM"),
        ("SEQ_CLS", "AutoPeftModelForSequenceClassification"),
        ("FEATURE_EXTRACTION", "AutoPeftModelForFeatureExtraction"),
        (None, "AutoPeftModel"),
        ("SOMETHING_NEW", "AutoPeftModel"),
    ],
)
def test_an_adapter_is_no_model_and_the_line_that_merges_it_is_given(plain, tmp_path, kind, auto):
    folder = adapter(tmp_path / "my lora's", task_type=kind)
    with pytest.raises(
        CheckpointError, match="holds an adapter, not a model: merge it into its base with peft"
    ) as caught:
        graft(plain[0], folder, task(), device="cpu")
    python, option, code = shlex.split(str(caught.value).partition("comes of it: ")[2])
    assert (python, option) == ("python", "-c")
    assert code.startswith(f"from peft import {auto} as M; ")
    called = ast.parse(code).body[1].value
    assert ast.literal_eval(called.args[0]) == f"{folder}-merged" and called.func.attr == "save_pretrained"


def test_a_merging_line_counts_the_labels_of_the_adapters_head(tmp_path):
    folder = adapter(tmp_path / "lora", task_type="SEQ_CLS")
    names = ("base_model.model.bert.query.lora_A.weight", "base_model.model.classifier.weight")
    save_file({name: torch.zeros(3, 16) for name in names}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\", num_labels=3\)\.merge_and_unload"):
        Checkpoint(folder)


def test_a_damaged_adapters_line_is_given_too(tmp_path):
    folder = adapter(tmp_path / "lora")
    for content in ("{", "[]", b"\xff"):
        (folder / "adapter_config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(CheckpointError, match="import AutoPeftModel as M"):
            Checkpoint(folder)


@pytest.mark.parametrize("reads", ["graft", "score", "tune", "encoder", "probe"])
def test_an_adapter_beside_whole_weights_is_refused(plain, reads):
    from probes import ProbedModel

    base, tuned = plain
    adapter(tuned)
    readers = {
        "graft": lambda: graft(base, tuned, task(), weights=5, device="cpu"),
        "score": lambda: score(tuned, task(), device="cpu"),
        "tune": lambda: tune(tuned, task(), device="cpu"),
        "encoder": lambda: Encoder.open(tuned, device="cpu"),
        "probe": lambda: ProbedModel.load(tuned, device="cpu"),
    }
    with pytest.raises(CheckpointError, match=r"holds an adapter \(adapter_config\.json\) beside whole weights"):
        readers[reads]()


def test_a_folder_of_checkpoints_names_its_last(plain, tmp_path):
    for step in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "logs"):
        (tmp_path / "run" / step).mkdir(parents=True)
        if step != "logs":
            (tmp_path / "run" / step / "config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=rf"config\.json is missing: name {tmp_path}/run/checkpoint-100, which has one"
    ):
        graft(plain[0], tmp_path / "run", task(), device="cpu")


@pytest.mark.parametrize("missing", ["all", "vocabulary"])
def test_a_missing_tokenizer_is_to_be_copied(plain, run, tmp_path, missing):
    base, tuned = plain
    for file in tuned.glob("*token*" if missing == "all" else "tokenizer.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer .*: copy the one of the checkpoint it was tuned from"):
        score(tuned, task(), device="cpu")
    if missing == "vocabulary":
        return
    with pytest.raises(CheckpointError, match=rf"{tuned} has no tokenizer: copy the base's \(cp .*\)$") as caught:
        graft(base, tuned, task(), weights=5, device="cpu")
    command = shlex.split(str(caught.value).partition("(")[2].removesuffix(")"))
    subprocess.run(command, check=True)
    assert graft(base, tuned, task(), weights=5, device="cpu").delta.weights == 5


@pytest.mark.parametrize("name", ["spm.model", "bpe.codes", "vocab.bpe", "qwen.tiktoken", "chat_template.jinja"])
def test_whatever_a_tokenizer_needs_is_copied(plain, tmp_path, name):
    """DeBERTa-v3, BERTweet, older GPT-2, Qwen, and the way a chat is put."""
    base, tuned = (
        shutil.copytree(folder, tmp_path / side) for folder, side in zip(plain, ("base", "tuned"), strict=True)
    )
    (base / name).write_text("of the tokenizer")
    for file in tuned.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer") as caught:
        check_tokenizers(Checkpoint(base), Checkpoint(tuned), [])
    assert str(base / name) in shlex.split(str(caught.value).partition("(")[2].removesuffix(")"))


# -- tensors that aren't the model's own -------------------------------------------------------------------------------

D = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
LINEAR = {f"linear_{what}": size for what, size in (("num_value_heads", 2), ("num_key_heads", 2), ("key_head_dim", 8))}
FUSED = {  # class -> its config's sizes, the first of the tensors that are fused
    "MixtralForCausalLM": ({"num_local_experts": 2}, "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
    "Qwen2MoeForCausalLM": (EXPERTS, "model.layers.0.mlp.experts.0.down_proj.weight"),
    "Qwen3NextForCausalLM": (
        {**EXPERTS, **LINEAR, "linear_value_head_dim": 8, "head_dim": 8},
        "model.layers.0.mlp.experts.0.down_proj.weight",
    ),
    "OlmoeForCausalLM": (EXPERTS, "model.layers.0.mlp.experts.0.down_proj.weight"),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_tensors_are_named(tmp_path, name):
    sizes, first = FUSED[name]
    model_class = getattr(transformers, name)
    model_class(model_class.config_class(**{**D, "num_key_value_heads": 1, **sizes})).save_pretrained(tmp_path)
    assert first in load_file(tmp_path / "model.safetensors")
    told = rf"holds no tensor for the model's parameter model\.layers\.0\.mlp\.experts\.down_proj: transformers fuses it from others while loading \({first} and \d+ more\)"
    with pytest.raises(CheckpointError, match=told):
        Checkpoint(tmp_path).block_weights()


@pytest.mark.parametrize(
    ("new_name", "told"),
    [
        (
            lambda name: f"_orig_mod.{name}",
            r"but others in its place \(_orig_mod\.model\.layers\.0\.\S+ and 8 more\): save it",
        ),
        (lambda name: f"base_model.model.{name}", r"but others in its place \(base_model\.model\."),
        (lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"), "but an adapter's .*: merge it first"),
        (lambda name: name.replace("q_proj.weight", "q_proj.qweight"), r"in its place \(\S+q_proj\.qweight\)"),
        (lambda name: None if "q_proj" in name else name, "it isn't a whole LlamaForCausalLM checkpoint"),
    ],
)
def test_what_lies_in_a_parameters_place_is_named(copied, new_name, told):
    folder = copied("llama")
    rename(folder, new_name)
    with pytest.raises(CheckpointError, match=told):
        Checkpoint(folder).block_weights()


def rename_architecture(folder, name, model_type=None):
    configure(folder, architectures=[name], **({"model_type": model_type} if model_type else {}))


def test_a_model_with_code_of_its_own_is_called_that(copied):
    told = r"needs code of its own \(auto_map in config\.json\), which is never run here: use a checkpoint"
    folder = copied("bert")
    configure(folder, auto_map={"AutoModel": "code.Model"})
    assert Checkpoint(folder).block_weights()  # transformers has this one itself
    rename(folder, lambda name: name.replace("query", "q"))
    with pytest.raises(
        CheckpointError, match=rf"but tensors of its own \(bert\.\S+ and 1 more\); a BertForMaskedLM {told}"
    ):
        Checkpoint(folder).block_weights()
    rename_architecture(folder, "JinaBertForMaskedLM")
    with pytest.raises(CheckpointError, match=f"a JinaBertForMaskedLM {told}"):
        Checkpoint(folder).block_weights()
    rename_architecture(folder, "BertForMaskedLM", "jina")
    with pytest.raises(CheckpointError, match=f"a BertForMaskedLM {told}"):
        Checkpoint(folder).block_weights()


@pytest.mark.parametrize(
    "named", [["pipeline"], ["AutoModel"], ["BertConfig"], [3], {"a": 1}, "BertModel", ["__name__"]]
)
def test_architectures_that_are_no_model(copied, named):
    folder = copied("bert")
    configure(folder, architectures=named)
    with pytest.raises(CheckpointError, match=r"has no |must name one architecture"):
        Checkpoint(folder).block_weights()


# -- models that give no gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ReformerModelWithLMHead", "ReformerForMaskedLM"])
def test_models_without_gradients_are_refused_before_anything_is_learnt(tiny, tmp_path, name):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("bert"))
    model_class = getattr(transformers, name)
    sizes = {"hidden_size": 16, "attention_head_size": 8, "num_attention_heads": 2, "feed_forward_size": 32}
    places = {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 8], "max_position_embeddings": 64}
    config = model_class.config_class(
        vocab_size=len(tokenizer),
        attn_layers=["local", "lsh"],
        is_decoder="LMHead" in name,
        pad_token_id=0,
        **sizes,
        **places,
    )
    model_class(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    change(tmp_path / "base", tmp_path / "tuned", lambda name, tensor: tensor + 0.1)
    for learn in (
        lambda: graft(tmp_path / "base", tmp_path / "tuned", task(), weights=5, device="cpu"),
        lambda: tune(tmp_path / "base", task(), device="cpu"),
    ):
        with pytest.raises(CheckpointError, match=f"a {name} gives no gradients in evaluation mode .*: use another"):
            learn()
