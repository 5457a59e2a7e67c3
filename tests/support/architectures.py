"""Tiny random checkpoints of every architecture of the transformers library that a readout may fit.

A config is made of its class's own defaults, every size in it made small by its name; what a family ties together
beyond that is in `_OWN`. Nothing here uses the code under test.
"""

import re

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

from tests.support import tiny

TABLES = {
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "classifier": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "encoder": auto.MODEL_MAPPING_NAMES,
}
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "<s>",
    "eos_token": "</s>",
}
CAUSAL = {name: SPECIAL[name] for name in ("pad_token", "unk_token", "bos_token", "eos_token")}
_WIDTH, _HEADS, _LAYERS, _POSITIONS = 32, 4, 2, 96
# The first pattern that fits a field's whole name says how large it is.
_SIZES = [
    (r"vocab_size|n_token|n_words|.*_vocab_size", None),  # the tokenizer's
    (
        r"hidden_size|pooler_hidden_size|d_model|n_embd|dim|emb_dim|word_embed_proj_dim|embedding_size|embedding_dim|model_dim|width",
        _WIDTH,
    ),
    (
        r"num_hidden_layers|n_layer|n_layers|num_layers|encoder_layers|decoder_layers|num_encoder_layers|num_decoder_layers",
        _LAYERS,
    ),
    (r"num_attention_heads|n_head|n_heads|num_heads|encoder_attention_heads|decoder_attention_heads", _HEADS),
    (r"num_key_value_heads|num_kv_heads|n_head_kv|num_query_groups|multi_query_group_num", 2),
    (
        r"intermediate_size|.*_intermediate_size|ffn_dim|n_inner|d_ff|d_inner|encoder_ffn_dim|decoder_ffn_dim|ffn_hidden_size|mlp_hidden_size|hidden_dim",
        64,
    ),
    (r"head_dim|.*_head_dim|d_kv|d_head|attention_head_size", 8),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_sequence_length|block_size|max_seq_length",
        _POSITIONS,
    ),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|router_num_experts", 4),
    (r"num_experts_per_tok|top_k|moe_k|moe_topk|num_experts_per_token", 2),
]
# model type -> what its config needs besides
_FULL = {"num_key_value_heads": _HEADS}  # families whose heads don't share keys
_TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_OWN: dict[str, dict] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": _FULL,
    "deepseek_v3": _FULL,
    "deepseek_v32": _FULL,
    "esm": {"vocab_size": 90, "pad_token_id": 0, "mask_token_id": 4},
    "esmc": _FULL,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "glm_moe_dsa": _FULL,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": _LAYERS},
    "hunyuan_v1_dense": _TURNED,
    "hunyuan_v1_moe": _TURNED,
    "ministral": _TURNED,
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8},
    "minicpm3": _FULL,
    "mobilebert": {"embedding_size": 16},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "perceiver": {"d_latents": _WIDTH, "num_latents": 8, "num_self_attends_per_block": 2},
    "qwen3_next": {"num_hidden_layers": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_5_text": {"num_hidden_layers": 4},  # the fourth is the first that attends
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 12)},
    "rwkv": {"attention_hidden_size": _WIDTH},
    "xmod": {"default_language": "en_XX"},
    "youtu": _FULL,
}


def shrunk(config_class, tokenizer):
    """A small config of a class."""
    own = _OWN.get(config_class.model_type, {})
    return config_class(**{**_small(config_class().to_dict(), tokenizer), **own})


def _small(fields, tokenizer):
    found = {}
    depth = next((fields[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if name in fields), None)
    for name, value in fields.items():
        if name in ("model_type", "transformers_version", "architectures"):
            continue
        if isinstance(value, dict):
            found[name] = _small(value, tokenizer) if "model_type" in value else value
        elif isinstance(value, list) and depth and len(value) == depth:
            continue  # one entry a layer: made anew
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value)
            found[name] = len(tokenizer) if size is None else size
        else:
            found[name] = value
    ids = {f"{token}_id": getattr(tokenizer, f"{token}_id") for token in ("pad_token", "bos_token", "eos_token")}
    return found | {name: ids[name] for name in ids if name in fields}


def classes(kind):
    """model type -> class name, of one kind; a class of two kinds is of the first in `TABLES`."""
    found = {}
    for name, listed in TABLES[kind].items():
        class_name = listed[0] if isinstance(listed, tuple) else listed
        others = list(TABLES.values())[: list(TABLES).index(kind)]
        if not any(class_name in table.values() for table in others) and hasattr(transformers, class_name):
            found[name] = class_name
    return found


def build(class_name, folder, kind, seed=0):
    """Write a tiny checkpoint of a transformers class."""
    tokenizer = tiny._tokenizer(CAUSAL if kind == "causal" else SPECIAL)
    model_class = getattr(transformers, class_name)
    with tiny._quiet():
        config = shrunk(model_class.config_class, tokenizer)
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
