"""Activations: hidden states word by word, in one file a layer, found again by the next run of the same model and sentences."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from jaxtyping import Float32, Int64
from torch import Tensor

from probes.alignment import Encoded
from probes.probed_model import ProbedModel, pad
from surgery.locks import hold
from surgery.progress import Progress, silent

_TOKENS = 4096  # in a batch


@dataclass(frozen=True, eq=False)
class Activations:
    """Hidden states of words on disk, one file a layer; a word's state is the mean over its tokens.

    Attributes:
        folder: named by a digest of the model, the tokens and the words, so that no other states are ever written there.
        offsets: sentence k's words are rows offsets[k] to offsets[k + 1] - 1.
    """

    folder: Path
    layers: tuple[int, ...]
    offsets: Int64[np.ndarray, " bounds"]
    width: int

    def layer(self, number: int) -> Float32[np.ndarray, "words width"]:
        """Return one layer's states, which are read from disk as they are used."""
        return np.memmap(_file(self.folder, number), np.float32, "r", shape=(int(self.offsets[-1]), self.width))

    @classmethod
    def collect(
        cls,
        model: ProbedModel,
        sentences: Sequence[Sequence[str]],
        folder: Path,
        layers: Sequence[int],
        *,
        progress: Progress = silent,
    ) -> "Activations":
        """Run a model over sentences and write states as they come, so that memory holds a batch and no more.

        States of that very model and those sentences that are in `folder` already are taken from there.
        """
        lengths = np.array([len(sentence) for sentence in sentences])
        offsets = np.append(0, np.cumsum(lengths))
        encoded = model.encode(sentences)
        made = cls(folder / _content(model, encoded), tuple(layers), offsets, model.width)
        size = int(offsets[-1]) * model.width * 4
        if all(made._holds(layer, size) for layer in layers):
            return made
        with hold(made.folder):
            missing = [layer for layer in layers if not made._holds(layer, size)]  # another run may have made some
            if missing:
                made.folder.mkdir(parents=True, exist_ok=True)
                made._write(model, encoded, missing, progress)
        return made

    def _holds(self, layer: int, size: int) -> bool:
        file = _file(self.folder, layer)
        return file.exists() and file.stat().st_size == size

    def _write(self, model: ProbedModel, encoded: Sequence[Encoded], layers: Sequence[int], progress: Progress) -> None:
        """Write beside the final names and rename once all are whole; what a killed run left is written over."""
        order, lengths = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids)), np.diff(self.offsets)
        staged = {layer: _file(self.folder, layer).with_suffix(".part") for layer in layers}
        with contextlib.ExitStack() as stack:
            files = {layer: stack.enter_context(path.open("wb")) for layer, path in staged.items()}
            done = 0
            while done < len(order):
                size = max(1, _TOKENS // len(encoded[order[done]].ids))
                batch = order[done : done + size]
                ids, mask = pad(model, [encoded[i] for i in batch])
                for layer, states in model.hidden_states(ids, mask, layers).items():
                    words = _pool(states, [encoded[i] for i in batch], lengths[batch])
                    first = 0
                    for i in batch:
                        files[layer].seek(int(self.offsets[i]) * model.width * 4)
                        files[layer].write(words[first : first + lengths[i]].tobytes())
                        first += lengths[i]
                done += len(batch)
                progress(done, len(order), f"activations: {model.name}")
        for layer, path in staged.items():
            path.replace(_file(self.folder, layer))


def _content(model: ProbedModel, encoded: Sequence[Encoded]) -> str:
    """Digest of all that decides the states: weights in memory, configuration, device, versions, tokens and words."""
    config = {key: value for key, value in model.module.config.to_dict().items() if key != "_name_or_path"}
    about = [config, model.bridge is None, model.module.device.type, torch.__version__]
    total = xxhash.xxh3_128(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in model.module.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    for sentence in encoded:
        total.update(json.dumps([sentence.ids, sentence.words]).encode())
    return total.hexdigest()


def _pool(states: Tensor, batch: Sequence[Encoded], lengths: Int64[np.ndarray, " batch"]) -> np.ndarray:
    """Mean state over each word's tokens, [words, width], one sentence after another."""
    first, rows, columns, owners = 0, [], [], []
    for row, (encoded, length) in enumerate(zip(batch, lengths, strict=True)):
        for column, word in enumerate(encoded.words):
            if word >= 0:
                rows.append(row)
                columns.append(column)
                owners.append(first + word)
        first += int(length)
    owner = torch.tensor(owners, device=states.device)
    total = torch.zeros(first, states.shape[2], device=states.device, dtype=torch.float32)
    total.index_add_(0, owner, states[rows, columns].float())
    counts = torch.bincount(owner, minlength=first)
    return (total / counts[:, None]).cpu().numpy()


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:02d}.f32"
