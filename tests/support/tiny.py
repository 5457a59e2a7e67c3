"""Tiny Hugging Face checkpoints made in code, and plain ways to change, split, pickle and hash them.

Nothing here uses the code under test, so what these functions return can serve as an oracle.
"""

import hashlib
import json
import random
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
import xxhash
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.utils import logging

WORDS = """
It was terrible great good bad awful wonderful boring fun okay positive negative yes no maybe this that the a an
film movie story plot acting actor scene music book food service place is are were has had and but or not very
really so too quite I we they he she you loved hated liked saw made felt of in on to for with . , ! ? : ' - sports
business world science
""".split()  # noqa: SIM905 (read as text)

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# kind -> class, its config's sizes, special tokens in the order of their ids
_ENCODER = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_OPT = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2 = {"eos_token": "<|endoftext|>"}
_BERT = {**SIZES, "max_position_embeddings": 64}
_KINDS = {
    "bert": ("BertForMaskedLM", _BERT, _ENCODER),
    "bert-encoder": ("BertModel", _BERT, _ENCODER),
    "bert-classifier": ("BertForSequenceClassification", {**_BERT, "num_labels": 2}, _ENCODER),
    "roberta": ("RobertaForMaskedLM", {**SIZES, "max_position_embeddings": 66}, _ROBERTA),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}, _GPT2),
    "opt": (
        "OPTForCausalLM",
        {
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "max_position_embeddings": 64,
        },
        _OPT,
    ),
    "llama": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": False}, _LLAMA),
    "llama-tied": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": True}, _LLAMA),
}
KINDS = tuple(_KINDS)

# What a block's tensor is called in these families, spelled out here as the tests' own rule.
BLOCK = re.compile(r"(^|\.)(layer|layers|h)\.\d+\.")


def build(kind, folder, *, dtype=torch.float32, seed=0, layers=None):
    """Write a tiny checkpoint of random weights with its tokenizer; returns the folder."""
    name, sizes, special = _KINDS[kind]
    tokenizer = _tokenizer(special)
    model_class = getattr(transformers, name)
    ids = {
        f"{token}_id": tokenizer.convert_tokens_to_ids(special.get(token))
        for token in ("bos_token", "eos_token", "pad_token")
        if token in special
    }
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | ids
    config = model_class.config_class(vocab_size=len(tokenizer), **{**sizes, **ids})
    if layers:
        config.num_hidden_layers = layers
    torch.manual_seed(seed)
    with _quiet():
        model = model_class(config).to(dtype)
        for parameter in model.parameters():  # biases and norms too, so that no two tensors are alike
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return Path(folder)


def weight_files(folder):
    """A checkpoint's safetensors files."""
    return sorted(Path(folder).glob("model*.safetensors"))


def weights(folder):
    """All tensors of a checkpoint by name, read by the safetensors library."""
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}


def block_names(folder):
    """Names of the block tensors, by their spelling."""
    return sorted(name for name in weights(folder) if BLOCK.search(name))


def change(source, target, change_tensor):
    """Copy a checkpoint and replace tensors: `change_tensor(name, tensor)` gives the new tensor, or None to leave it."""
    shutil.copytree(source, target)
    for file in weight_files(target):
        tensors = load_file(file)
        for name in list(tensors):
            changed = change_tensor(name, tensors[name].clone())
            tensors[name] = tensors[name] if changed is None else changed
        save_file(tensors, file, metadata={"format": "pt"})
    return Path(target)


def perturb(source, target, count=50, seed=0):
    """Copy a checkpoint with `count` random block weights changed; returns {tensor name: sorted indices}."""
    tensors = weights(source)
    places = [(name, index) for name in block_names(source) for index in range(tensors[name].numel())]
    touched = {}
    for name, index in random.Random(seed).sample(places, count):
        touched.setdefault(name, []).append(index)

    def move(name, tensor):
        for index in touched.get(name, ()):
            tensor.view(-1)[index] = -tensor.view(-1)[index] * 2 + 0.25 + seed
        return tensor

    change(source, target, move)
    return {name: sorted(indices) for name, indices in sorted(touched.items())}


def shard(source, target, size="8KB"):
    """Copy a checkpoint with its weights split over several files by the transformers library."""
    shutil.copytree(source, target)
    name = json.loads((source / "config.json").read_text())["architectures"][0]
    with _quiet():
        model = getattr(transformers, name).from_pretrained(source, dtype="auto")
        (target / "model.safetensors").unlink()
        model.save_pretrained(target, max_shard_size=size)
    return Path(target)


def pickled(source, target, *, legacy=False):
    """Copy a checkpoint with its weights as pytorch_model.bin, in torch's present format or the one before 1.6."""
    shutil.copytree(source, target)
    for file in weight_files(target):
        name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(file), target / name, _use_new_zipfile_serialization=not legacy)
        file.unlink()
    index = target / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] = {
            name: file.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
            for name, file in content["weight_map"].items()
        }
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        index.unlink()
    return Path(target)


def hashes(folder):
    """SHA-256 of every file below a folder, hidden ones too, by relative path."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def raw(tensor):
    """A tensor's bits as an integer array."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[tensor.element_size()]
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy().view(kind)


def expected_fingerprint(tensors):
    """The fingerprint's definition, spelled out: SHA-256 over name, dtype, shape and xxh3-64 of each tensor."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        content = xxhash.xxh3_64(raw(tensor).tobytes()).hexdigest()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape), content]).encode())
    return total.hexdigest()


def _tokenizer(special):
    tokens = [*special.values(), *WORDS]
    core = Tokenizer(
        models.WordLevel(
            {token: number for number, token in enumerate(tokens)}, unk_token=special.get("unk_token", ".")
        )
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##")
    first, last = special.get("cls_token") or special.get("bos_token"), special.get("sep_token")
    if first:
        ends = [(token, tokens.index(token)) for token in (first, last) if token]
        tail = f" {last}" if last else ""
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A{tail}", pair=f"{first} $A{tail} $B:1{tail and tail + ':1'}", special_tokens=ends
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **special)


class _quiet(warnings.catch_warnings):  # noqa: N801 (read as a function)
    """Keep the library's bars and warnings out of the tests' output while checkpoints are made."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
