"""Refusals, by name, of what a model folder may hold that isn't plain weights: codes, adapters, code to run."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.checkpoints.folder import ModelFolder
from surgery.checkpoints.tensorfile import read_header
from surgery.errors import CheckpointError
from surgery.jsonfile import parse_loose

ADAPTER = "adapter_config.json"  # of the library peft
# Where quantisers that came before transformers' own field say what they did.
_QUANTISERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_PEFT_CLASSES = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_CLS": "ForSequenceClassification",
    "FEATURE_EXTRACTION": "ForFeatureExtraction",
}
_HEAD = re.compile(r"(^|\.)(classifier|score|out_proj)(\.modules_to_save\.\w+)?\.weight$")
_WAY_OUT = (
    "take the checkpoint it was made from, or dequantise it (load it with transformers, then "
    "`model.dequantize().save_pretrained(FOLDER)`, where its method allows that)"
)


def check_plain(checkpoint: ModelFolder) -> None:
    """Refuse a folder whose tensors aren't the numbers that the model computes with.

    Raises CheckpointError for a quantised checkpoint (bitsandbytes, GPTQ, AWQ, fp8 with scales, MXFP4 and so on) and
    for an adapter that lies beside the weights.
    """
    _check_no_adapter(checkpoint)
    _check_no_kernels(checkpoint)
    if method := quantisation(checkpoint):
        raise CheckpointError(
            f"{checkpoint} is quantised ({method}), so its tensors are codes and not weights: {_WAY_OUT}"
        )


def check_readable(checkpoint: ModelFolder) -> None:
    """Refuse what transformers would load as something else than the folder says, for those who only run the model.

    A quantised checkpoint is fine there, but not codes that nothing in config.json declares: these would be read as
    numbers.
    """
    _check_no_adapter(checkpoint)
    _check_no_kernels(checkpoint)
    if not quantisation(checkpoint):
        for name in checkpoint.entries:
            if name.endswith(".weight"):
                check_weight(checkpoint, name)


def _check_no_adapter(checkpoint: ModelFolder) -> None:
    # What transformers makes of both depends on what is installed.
    if (checkpoint.folder / ADAPTER).exists():
        raise CheckpointError(
            f"{checkpoint} holds an adapter ({ADAPTER}) beside whole weights, which transformers adds to them if peft is installed: "
            "merge it into them (peft's `merge_and_unload`), or move the adapter's files to a folder of their own"
        )


def _check_no_kernels(checkpoint: ModelFolder) -> None:
    # transformers fetches and runs code by such a name, whatever `trust_remote_code` says.
    for config in _configs(checkpoint):
        for field in ("attn_implementation", "experts_implementation"):
            for key in (field, f"_{field}"):
                named = config.get(key)
                wanted = named.values() if isinstance(named, dict) else [named]
                if hub := [name for name in wanted if isinstance(name, str) and "/" in name]:
                    raise CheckpointError(
                        f"{checkpoint}: config.json asks for code from the hub ({key}: {hub[0]}), which is never run here: delete {key} there"
                    )


def check_weight(checkpoint: ModelFolder, name: str) -> None:
    """Refuse a tensor that isn't stored in floating point of 16 bits or more."""
    dtype = checkpoint.entries[name].dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise CheckpointError(
            f"{checkpoint}: tensor {name} is stored as {str(dtype).removeprefix('torch.')}, "
            f"not as floating-point weights of 16 bits or more; if it is quantised, {_WAY_OUT}"
        )


def code_of_its_own(checkpoint: ModelFolder, name: str) -> str:
    """Why a model with an `auto_map` is refused, as a sentence."""
    return (
        f"{checkpoint}: a {name} needs code of its own (auto_map in config.json), which is never run here: "
        "use a checkpoint of an architecture that transformers has itself"
    )


def without_tensor(checkpoint: ModelFolder, model: str, parameter: str, instead: Sequence[str]) -> str:
    """Why a checkpoint without a tensor for a parameter of the blocks is refused, as a sentence.

    Args:
        instead: tensors of the same block that are no parameters of the model.
    """
    told = f"{checkpoint} holds no tensor for the model's parameter {parameter}"
    if not instead:
        return f"{told}: it isn't a whole {model} checkpoint; fetch or save it again"
    held = f"{instead[0]}{f' and {len(instead) - 1} more' if len(instead) > 1 else ''}"
    if _fused(checkpoint, parameter):
        return (
            f"{told}: transformers fuses it from others while loading ({held}), as it does with experts, "
            "and fused tensors can't be grafted: use a model without mixtures of experts"
        )
    if any(".lora_" in name or ".base_layer." in name for name in instead):
        return f"{told} but an adapter's ({held}): merge it first (peft's `merge_and_unload`) and save the model again"
    if "auto_map" in checkpoint.config:
        return f"{told} but tensors of its own ({held}); {code_of_its_own(checkpoint, model).partition(': ')[2]}"
    return f"{told} but others in its place ({held}): save it with transformers as a plain {model}"


def _fused(checkpoint: ModelFolder, parameter: str) -> bool:
    """Whether transformers makes a parameter out of several tensors of the files."""
    from transformers import conversion_mapping

    converters = conversion_mapping.get_checkpoint_conversion_mapping(checkpoint.config.get("model_type")) or []
    targets = [
        target
        for converter in converters
        if getattr(converter, "operations", None)  # one without only renames
        for target in converter.target_patterns
    ]
    return any(target.strip("^$") in parameter for target in targets)


def quantisation(checkpoint: ModelFolder) -> str:
    """The quantisation method that a folder declares; empty for none."""
    for config in _configs(checkpoint):
        for field in ("quantization_config", "compression_config"):
            if declared := config.get(field):
                return _method(declared)
    return next((file for file in _QUANTISERS if (checkpoint.folder / file).exists()), "")


def _configs(checkpoint: ModelFolder) -> list[dict[str, Any]]:
    """The config and those of its parts."""
    return [checkpoint.config, *(part for part in checkpoint.config.values() if isinstance(part, dict))]


def no_model(folder: Path) -> str:
    """What a folder without a config.json is instead, and what to name; as the end of a sentence."""
    if (folder / ADAPTER).exists():
        return f"{folder} holds an adapter, not a model: merge it into its base with peft, and name what comes of it: {_merging(folder)}"
    inner = [path.parent for path in folder.glob("*/config.json")]
    if not inner:
        return f"{folder / 'config.json'} is missing: is {folder} a Hugging Face model folder?"
    # A trainer's checkpoints are numbered by step: the last one is what training ended with.
    last = max(inner, key=lambda path: (int("0" + "".join(filter(str.isdigit, path.name))), path.name))
    return f"{folder / 'config.json'} is missing: name {last}, which has one"


def _merging(folder: Path) -> str:
    try:
        kind = parse_loose((folder / ADAPTER).read_bytes()).get("task_type")
    except (ValueError, AttributeError):
        kind = None
    auto = f"AutoPeftModel{_PEFT_CLASSES.get(str(kind), '')}"
    labels = f", num_labels={count}" if kind == "SEQ_CLS" and (count := _labels(folder)) else ""
    # Python text within double quotes, which a shell leaves alone.
    source, target = (json.dumps(text, ensure_ascii=False) for text in (str(folder), f"{folder}-merged"))
    code = f"from peft import {auto} as M; M.from_pretrained({source}{labels}).merge_and_unload().save_pretrained({target})"
    return f"python -c {shlex.quote(code)}"


def _labels(folder: Path) -> int:
    """How many labels an adapter's own head has, which peft doesn't look up; 0 for a folder without one."""
    try:
        entries = read_header(folder / "adapter_model.safetensors")[0]
    except (CheckpointError, OSError):
        return 0
    return next((entry.shape[0] for entry in entries if _HEAD.search(entry.name)), 0)


def _method(declared: Any) -> str:
    if not isinstance(declared, dict):
        return str(declared)
    bits = next((f"{n} bits" for n in (4, 8) if declared.get(f"load_in_{n}bit")), "")
    return ", ".join(part for part in (str(declared.get("quant_method") or ""), bits) if part) or "quantization_config"
