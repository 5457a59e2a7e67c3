"""Further copies of a checkpoint's weights that lie beside them: other formats, other training steps, stale shards."""

import re
from collections.abc import Collection
from pathlib import Path

from surgery.jsonfile import parse_loose

# Formats that some library loads weights from, with their indices and outlying data (`.onnx_data`, `.bin.index.json`).
# `.bin` may be anything, so the name has to say it.
_WEIGHTS = re.compile(
    r"((model|weight|ggml|optim|consolidated)[^/]*\.bin"
    r"|\.(safetensors|pt|pth|ckpt|h5|hdf5|keras|msgpack|npz|pb|onnx|ort|gguf|ggml|ot|tflite|mlmodel|mlpackage|engine"
    r"|params|pdparams|nemo|distcp|pte|llamafile))([._-](index|data|meta)[^/]*)?$",
    re.IGNORECASE,
)
# What is weights by its name and yet no copy of the model's: our own readouts, adapters, the trainer's options.
_KEPT = re.compile(r"^(readout-.*\.safetensors|adapter_model\..*|training_args\.bin)$", re.IGNORECASE)
STACK = (
    "surgery-stack"  # the skills that were put into the weights (`surgery.grafting.stack`), true of these weights alone
)
# A repository, the hub's note that the files here are the ones it holds, and a lock and a stack of ours.
NOT_CONTENT = frozenset({".git", ".cache", ".surgery.lock", STACK})


def other_copies(folder: Path, own: Collection[str]) -> tuple[str, ...]:
    """Names in a checkpoint's folder that hold further copies of its weights, or a training state that goes with them.

    A folder counts as a whole when anything below it does, unless `modules.json` names it as a part of the model.

    Args:
        own: names of the files that the weights are read from, with their index.
    """
    parts = _parts(folder / "modules.json")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name in own or path.name in NOT_CONTENT or _KEPT.match(path.name):
            continue
        if _WEIGHTS.search(path.name):
            found.append(path.name)
        elif path.is_dir() and path.name not in parts and any(_WEIGHTS.search(below.name) for below in path.rglob("*")):
            found.append(f"{path.name}/")
    return tuple(found)


def _parts(modules: Path) -> set[str]:
    """The folders that a sentence encoder is made of besides its transformer, such as `2_Dense`."""
    try:
        return {Path(str(module["path"])).parts[0] for module in parse_loose(modules.read_bytes()) if module["path"]}
    except (OSError, ValueError, TypeError, KeyError):
        return set()
