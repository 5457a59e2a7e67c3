"""Which tensors are block weights, and what else an architecture says of a checkpoint; rules spelled out family by family."""

import json
import re
from fnmatch import fnmatchcase

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.structure import block_parameters
from surgery.errors import CheckpointError, OptionError
from tests.support.tiny import weights


def rename(folder, new_name):
    """Rename tensors in a checkpoint's file; `new_name` gives None to drop one."""
    file = folder / "model.safetensors"
    renamed = {new_name(name): tensor for name, tensor in load_file(file).items()}
    renamed.pop(None, None)
    save_file(renamed, file, metadata={"format": "pt"})


def configure(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


# -- the block rule --------------------------------------------------------------------------------------------------

BLOCKS = {  # kind -> what a block tensor begins with, kind of model, blocks' weights counted by hand
    # attention 4(dd + d), feed-forward 2df + d + f, norms 2 * 2d with d = 16, f = 32 (64 in GPT-2); two layers
    "bert": (r"bert\.encoder\.layer\.[01]\.", "masked", 2 * (4 * 272 + 1072 + 64)),
    "bert-encoder": (r"encoder\.layer\.[01]\.", "encoder", 2 * (4 * 272 + 1072 + 64)),
    "bert-classifier": (r"bert\.encoder\.layer\.[01]\.", "classifier", 2 * (4 * 272 + 1072 + 64)),
    "roberta": (r"roberta\.encoder\.layer\.[01]\.", "masked", 2 * (4 * 272 + 1072 + 64)),
    "gpt2": (r"transformer\.h\.[01]\.", "causal", 2 * (4 * 272 + 2128 + 64)),
    "opt": (r"model\.decoder\.layers\.[01]\.", "causal", 2 * (4 * 272 + 1072 + 64)),
    "llama": (r"model\.layers\.[01]\.", "causal", 2 * (4 * 256 + 3 * 512 + 32)),
    "llama-tied": (r"model\.layers\.[01]\.", "causal", 2 * (4 * 256 + 3 * 512 + 32)),
}


def test_block_weights_of_each_family(tiny, kind):
    rule, model_kind, count = BLOCKS[kind]
    checkpoint, tensors = Checkpoint(tiny(kind)), weights(tiny(kind))
    found = checkpoint.block_weights()
    assert found == tuple(sorted(name for name in tensors if re.match(rule, name)))
    assert sum(tensors[name].numel() for name in found) == count
    assert any(re.search("word_embeddings|wte|embed_tokens", name) for name in set(tensors) - set(found))
    assert checkpoint.structure.kind == model_kind
    assert checkpoint.structure.model_class.__name__ == checkpoint.config["architectures"][0]


D = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    **{f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
}
OTHERS = {
    # class: (config, what block parameters match, how many there are)
    "AlbertForMaskedLM": (
        {**D, "embedding_size": 8, "num_hidden_groups": 1},
        r"albert\.encoder\.albert_layer_groups\.0\.albert_layers\.0\.",
        16,
    ),
    "DistilBertForMaskedLM": (
        {"vocab_size": 40, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
        r"distilbert\.transformer\.layer\.[01]\.",
        2 * 16,
    ),
    "XLMWithLMHeadModel": (
        {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 2},
        r"transformer\.(attentions|layer_norm1|ffns|layer_norm2)\.[01]\.",
        2 * 16,
    ),
    "MixtralForCausalLM": (
        {**D, "num_key_value_heads": 1, "num_local_experts": 2},
        r"model\.layers\.[01]\.",
        2 * 9,  # q k v o, two norms, router, experts in two fused tensors
    ),
    "T5ForConditionalGeneration": (
        T5,
        r"(encoder|decoder)\.block\.[01]\.(?!.*relative_attention_bias)",
        2 * 8 + 2 * 13,
    ),
    "T5EncoderModel": (T5, r"encoder\.block\.[01]\.(?!.*relative_attention_bias)", 2 * 8),
    "BartForConditionalGeneration": (BART, r"model\.(encoder|decoder)\.layers\.[01]\.", 2 * 16 + 2 * 26),
    "ElectraForPreTraining": ({**D, "embedding_size": 8}, r"electra\.encoder\.layer\.[01]\.", 2 * 16),
    "DebertaV2ForMaskedLM": (
        {**D, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4},
        r"deberta\.encoder\.layer\.[01]\.",
        2 * 20,  # relative positions have projections of their own for keys and queries
    ),
    "GPTNeoXForCausalLM": (D, r"gpt_neox\.layers\.[01]\.", 2 * 12),
    "BloomForCausalLM": (
        {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        r"transformer\.h\.[01]\.",
        2 * 12,
    ),
    "Qwen2ForCausalLM": ({**D, "num_key_value_heads": 1}, r"model\.layers\.[01]\.", 2 * 12),
    "ModernBertForMaskedLM": ({**D, "pad_token_id": 0}, r"model\.layers\.[01]\.", 2 * 6 - 1),  # first norm is identity
}


@pytest.mark.parametrize("name", OTHERS)
def test_block_parameters_of_other_architectures(name):
    config, rule, count = OTHERS[name]
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    found = block_parameters(model)
    everything = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert found == {name for name in everything if re.match(rule, name)}
    assert found < everything
    assert len(found) == count


def test_a_model_without_stacks_has_no_blocks():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
    assert block_parameters(model) == set()


def test_lists_within_a_block_are_part_of_it_and_lists_of_other_lengths_are_not():
    def layer():
        inner = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
        return torch.nn.ModuleDict({"experts": inner, "norm": torch.nn.LayerNorm(2)})

    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(layer() for _ in range(2))
    model.norms = torch.nn.ModuleList(torch.nn.LayerNorm(2) for _ in range(2))
    model.scales = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(5))
    expected = {name for name, _ in model.named_parameters() if not name.startswith("scales")}
    assert block_parameters(model) == expected
    assert "layers.1.experts.2.weight" in expected


# -- ties ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        ("llama", set()),
        ("llama-tied", {("model.embed_tokens.weight", "lm_head.weight")}),
        ("gpt2", {("transformer.wte.weight", "lm_head.weight")}),
        (
            "bert",
            {
                ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
                ("cls.predictions.bias", "cls.predictions.decoder.bias"),
            },
        ),
    ],
)
def test_tied_parameters(tiny, kind, pairs):
    assert set(Checkpoint(tiny(kind)).structure.tied) == pairs


# -- names -----------------------------------------------------------------------------------------------------------


def test_old_names_of_layer_norm_parameters(copied):
    def old(name):
        return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name))

    new_blocks = Checkpoint(copied("bert", "new")).block_weights()
    folder = copied("bert")
    rename(folder, old)
    structure = Checkpoint(folder).structure
    assert structure.blocks == tuple(sorted(old(name) for name in new_blocks))
    gammas = {tensor for tensor in structure.parameters if tensor.endswith(".gamma")}
    assert len(gammas) == 6  # two a layer, one after the embeddings, one in the head
    assert all(structure.parameters[tensor] == tensor.removesuffix("gamma") + "weight" for tensor in gammas)


@pytest.mark.parametrize(
    ("kind", "prefix", "model_class"),
    [
        ("gpt2", "transformer.", "GPT2LMHeadModel"),
        ("bert", "bert.", "BertForMaskedLM"),
        ("llama", "model.", "LlamaForCausalLM"),
    ],
)
def test_checkpoint_named_as_the_bare_model_for_a_model_with_a_head(copied, kind, prefix, model_class):
    folder = copied(kind)
    rename(folder, lambda name: name.removeprefix(prefix))
    checkpoint = Checkpoint(folder)
    assert checkpoint.structure.model_class.__name__ == model_class
    assert checkpoint.block_weights()
    assert not any(name.startswith(prefix) for name in checkpoint.block_weights())
    assert all(checkpoint.structure.parameters[name] == prefix + name for name in checkpoint.block_weights())


@pytest.mark.parametrize(("kind", "bare"), [("gpt2", "GPT2Model"), ("bert", "BertModel"), ("roberta", "RobertaModel")])
def test_checkpoint_of_a_model_with_a_head_for_the_bare_model(copied, kind, bare):
    folder = copied(kind)
    expected = Checkpoint(folder).block_weights()
    configure(folder, architectures=[bare])
    checkpoint = Checkpoint(folder)
    assert checkpoint.structure.kind == "encoder"
    assert checkpoint.block_weights() == expected
    assert "lm_head.bias" not in checkpoint.structure.parameters


def test_tensors_that_are_no_parameters_are_left_alone(copied):
    folder = copied("bert")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(64)
    save_file(tensors, folder / "model.safetensors")
    structure = Checkpoint(folder).structure
    assert "bert.embeddings.position_ids" not in structure.parameters
    assert len(structure.parameters) == len(tensors) - 1


# -- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        (["*.attention.*"], []),
        (["*layer.0.*", "*embeddings*"], []),
        ([], ["*.bias", "*LayerNorm*"]),
        (["*"], ["bert.encoder.layer.[0-9].*"]),
        (["cls.predictions.bias"], []),
        (["*.weight"], ["*LayerNorm.weight", "*embeddings*"]),
    ],
)
def test_patterns_against_fnmatch(tiny, include, exclude):
    names = weights(tiny("bert"))
    start = (
        [n for n in names if any(fnmatchcase(n, p) for p in include)]
        if include
        else [n for n in names if ".layer." in n]
    )
    expected = sorted(n for n in start if not any(fnmatchcase(n, p) for p in exclude))
    assert expected
    assert Checkpoint(tiny("bert")).block_weights(include, exclude) == tuple(expected)


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["nothing.*"], [], r"no tensor matches 'nothing\.\*': patterns are shell patterns over names such as bert\."),
        (["*", "typo"], [], "no tensor matches 'typo'"),
        ([], ["LAYER"], "no tensor matches 'LAYER'"),
        ([], ["*"], "leave no tensor"),
        (["cls.*"], ["cls.*"], "leave no tensor"),
    ],
)
def test_patterns_that_choose_nothing(tiny, include, exclude, message):
    with pytest.raises(OptionError, match=message):
        Checkpoint(tiny("bert")).block_weights(include, exclude)


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSED = {
    "no architecture": ({"architectures": None}, r'add "architectures": \["BertModel"\] or the like .* --head tuned'),
    "no architecture, as DeBERTa-v3's": (
        {"architectures": None, "model_type": "deberta-v2"},
        r'add "architectures": \["DebertaV2Model"\]',
    ),
    "two architectures": ({"architectures": ["BertModel", "BertForMaskedLM"]}, "must name one architecture"),
    "unknown architecture": ({"architectures": ["WonderModel"]}, "has no WonderModel"),
    "unknown model type": ({"model_type": "wonder"}, "can't build a BertForMaskedLM"),
    "impossible sizes": ({"num_attention_heads": 3}, "can't build a BertForMaskedLM"),
    "no language model": (
        {"architectures": ["BertForQuestionAnswering"]},
        "a BertForQuestionAnswering is no masked or causal",
    ),
    "other sizes": ({"intermediate_size": 64}, r"has shape \(32,\), but its config\.json asks for \(64,\)"),
    "more layers than the files hold": (
        {"num_hidden_layers": 3},
        r"holds no tensor for the model's parameter bert\.encoder\.layer\.2\.",
    ),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(copied, fields, message):
    folder = copied("bert")
    configure(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder).block_weights()


def test_a_block_tensor_that_is_missing(copied):
    folder = copied("bert")
    gone = "bert.encoder.layer.1.output.dense.weight"
    rename(folder, lambda name: None if name == gone else name)
    with pytest.raises(CheckpointError, match=f"holds no tensor for the model's parameter {re.escape(gone)}"):
        Checkpoint(folder).block_weights()


def test_experts_that_the_library_fuses_while_loading_are_refused(tmp_path):
    config = transformers.MixtralConfig(**D, num_key_value_heads=1, num_local_experts=2)
    tensors = {}
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "experts" not in name:
            tensors[name] = torch.zeros(parameter.shape)
    for layer, expert, part in [(layer, expert, part) for layer in (0, 1) for expert in (0, 1) for part in (1, 2, 3)]:
        shape = (16, 32) if part == 2 else (32, 16)
        tensors[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{part}.weight"] = torch.zeros(shape)
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds no tensor for the model's parameter model\.layers\.0\.mlp\.experts"
    ):
        Checkpoint(tmp_path).block_weights()


def test_reading_the_structure_reads_no_weights(tiny, monkeypatch):
    checkpoint = Checkpoint(tiny("bert"))
    monkeypatch.setattr("surgery.checkpoints.checkpoint.safe_open", None)  # what tensors are read with
    with pytest.raises(TypeError):
        checkpoint.tensor("cls.predictions.bias")
    assert checkpoint.structure.blocks
