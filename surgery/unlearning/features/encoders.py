"""Frozen encoders: one row of features a text, pair of texts or image, kept on disk so that each is computed once."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float32, UInt64
from safetensors import SafetensorError
from safetensors.numpy import load, save

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_tokenizer, pick_dtype, read_module
from surgery.devices import full_float32, memory_for, pick_device
from surgery.errors import CheckpointError, OptionError, TaskError, first_line
from surgery.files import replace_bytes
from surgery.progress import Progress, silent
from surgery.quiet import quiet
from surgery.sync import ranks
from surgery.unlearning.features.extractors import (
    Extractor,
    ImageExtractor,
    Input,
    TextExtractor,
    alike,
    image_digests,
    text_digests,
)

_CHUNK = 2048  # inputs between two writes to the cache


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen Hugging Face model without its head, and how one row of features is read off it.

    It stays as it was opened, whatever becomes of its files.

    Attributes:
        source: the folder or hub id, as given.
        pooling: mean or last for texts, pooled or mean for images.
        width: features a row.
        opened: a hash of the weights as they were loaded.
    """

    source: str
    checkpoint: Checkpoint
    extractor: Extractor
    module: Any
    pooling: str
    width: int
    batch_size: int
    opened: str

    @classmethod
    def open(
        cls,
        source: str | Path | Checkpoint,
        *,
        pooling: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_length: int = 128,
        batch_size: int = 32,
    ) -> "Encoder":
        """Load the model and try it on one input.

        Args:
            source: a masked or causal language model, classifier or bare encoder; or an image model: CLIP, ViT, DINOv2,
                ResNet, ConvNeXt and so on. Which of the two follows from what the transformers class takes.
            pooling: by default mean for an encoder of text and last for a causal decoder; for an image model pooled where
                the checkpoint has such an output, else mean.
            device: as torch names them; default CUDA when there is one, else the CPU.
            dtype: float32 (default), bfloat16, float16 or float64, to compute in; features are float32.

        Raises:
            CheckpointError: no such model, tensors, tokenizer or image processor, no features come of it, or its files
                change while they are read.
            OptionError: an option out of its range, or a model that the device's memory doesn't hold.
        """
        if batch_size < 1:
            raise OptionError(f"`batch_size` {batch_size} is less than 1: raise it")
        # A checkpoint in memory may be older than its files, of which the model is made.
        place, precision, checkpoint = pick_device(device), pick_dtype(dtype), Checkpoint(source)
        stamps = _stamps(checkpoint)
        kind = kind_of(checkpoint)
        if pooling is not None:
            _check_pooling(pooling, kind)
        with quiet():
            module, has_pooler = _load_body(checkpoint, precision)
            opened = _hash_weights(module)
            size = sum(parameter.nbytes for parameter in module.parameters())
            with memory_for(place, size, str(checkpoint), "give `dtype` bfloat16, or `device` cpu"):
                module = module.to(place).eval().requires_grad_(False)
            extractor = _extractor(checkpoint, module, has_pooler, max_length)
        try:
            with torch.inference_mode(), full_float32():
                pooling = extractor.pick_pooling(pooling)
                # Twice: a few models drop patches at random even in evaluation mode.
                trial, again = (extractor.features(extractor.prepare([extractor.trial]), pooling) for _ in range(2))
        except Exception as error:  # anything a model can raise on inputs that aren't the ones it wants
            raise CheckpointError(
                f"{checkpoint}: a {type(module).__name__} can't encode {extractor.kind}s ({first_line(error)})"
            ) from error
        if not bool(torch.isfinite(trial).all()):
            raise CheckpointError(f"{checkpoint} gives features of NaN or infinity: fetch it again or change `dtype`")
        if not alike(trial, again):
            raise CheckpointError(
                f"{checkpoint}: a {type(module).__name__} gives other features each time: use another encoder"
            )
        encoder = cls(str(source), checkpoint, extractor, module, pooling, trial.shape[1], batch_size, opened)
        # Now, not when first asked for: it must be of the files that were loaded.
        if not encoder.fingerprint or _stamps(checkpoint) != stamps:
            raise CheckpointError(f"{checkpoint} changed while it was read: try again once it is written")
        return encoder

    @classmethod
    def from_spec(
        cls,
        spec: Mapping[str, Any],
        *,
        source: str | Path | Checkpoint | None = None,
        device: str | torch.device | None = None,
    ) -> "Encoder":
        """Open what `spec()` described, or `source` in its place; raises CheckpointError if that gives other features."""
        try:
            options = {key: spec[key] for key in ("pooling", "dtype", "max_length") if spec[key] is not None}
            named, fingerprint = spec["source"], spec["fingerprint"]
        except KeyError as error:
            raise CheckpointError(f"the description of an encoder lacks {error}: make it again") from None
        encoder = cls.open(named if source is None else source, device=device, **options)
        if encoder.fingerprint != fingerprint:
            raise CheckpointError(
                f"{encoder.source} isn't the encoder used before: its weights, config, tokenizer or image processor differ; give that one"
            )
        return encoder

    def spec(self) -> dict[str, Any]:
        """What `from_spec` needs to open this encoder again; plain JSON.

        Raises CheckpointError for weights that were changed in memory, which no folder gives again.
        """
        if _hash_weights(self.module) != self.opened:
            raise CheckpointError(
                f"the weights of {self.source} were changed in memory since it was opened: save it and open that folder"
            )
        return {
            "source": self.source,
            "kind": self.kind,
            "pooling": self.pooling,
            "width": self.width,
            "max_length": self.max_length,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint,
        }

    @property
    def kind(self) -> str:
        """What it takes: text or image."""
        return self.extractor.kind

    @property
    def max_length(self) -> int | None:
        """Tokens after which a text is cut; None for images."""
        return self.extractor.max_length

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return str(self.module.dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """Names the map from inputs to features: SHA-256 over weights, config, tokenizer or image processor, and options."""
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.checkpoint.folder.iterdir()
            if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in self.extractor.files)
        }
        marks = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")  # what saving again changes
        config = {key: value for key, value in self.checkpoint.config.items() if key not in marks}
        options = [self.kind, self.pooling, self.max_length, self.dtype]
        content = json.dumps([self.checkpoint.fingerprint, config, files, options], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, inputs: Sequence[Input], progress: Progress = silent) -> Float32[np.ndarray, "N D"]:
        """Features of each input, in their order: numpy, wherever the model is.

        On CUDA the same inputs in the same batches give the same bits; from device to device, and in other batches, features
        agree to rounding. float32 is computed as such, never in TF32.

        Args:
            inputs: texts or pairs of texts; or image files, PIL images or uint8 arrays [height, width (, channels)].

        Raises:
            TaskError: an input that can't be read, or is of another kind.
            OptionError: a batch that the device's memory doesn't hold.
        """
        features = np.empty((len(inputs), self.width), np.float32)
        rows = self.extractor.prepare(inputs)
        # Similar sizes together, the longest first: what fits in memory at all then fits at once.
        order = sorted(range(len(rows)), key=lambda number: -self.extractor.size(rows[number]))
        most = f"encoding {min(self.batch_size, len(rows))} {self.kind}s at once"
        starts, mine = range(0, len(order), self.batch_size)[ranks.my_part()], []
        with memory_for(self.module.device, 0, most, "lower `batch_size`, or give `device` cpu"):
            for start in starts:
                batch = order[start : start + self.batch_size]
                mine += batch
                with torch.inference_mode(), full_float32():
                    states = self.extractor.features([rows[number] for number in batch], self.pooling)
                features[batch] = states.cpu().numpy()
                progress(start + len(batch), len(order), "encoding")
        ranks.share(features, mine)
        return features

    def digests(self, inputs: Sequence[Input]) -> UInt64[np.ndarray, " N"]:
        """A hash of each input's content (xxh3-64)."""
        return text_digests(inputs) if self.kind == "text" else image_digests(inputs)


def cached_features(
    encoder: Encoder, inputs: Sequence[Input], progress: Progress = silent
) -> Float32[np.ndarray, "N D"]:
    """`encoder.encode`, looked up first under `$SURGERY_CACHE` (default ~/.cache/surgery), in `features/`.

    What is kept is filed under the weights and options of the encoder as it is in memory, and the content of the inputs.
    Finished parts are kept until the whole is there, so an interrupted run goes on where it stopped. A cache that is
    damaged, or can't be written to, costs time and nothing else.
    """
    folder = Path(os.environ.get("SURGERY_CACHE") or "~/.cache/surgery").expanduser() / "features"
    weights, digests = _hash_weights(encoder.module), encoder.digests(inputs)
    changed = b"" if weights == encoder.opened else weights.encode()  # in memory, by its user
    key = hashlib.sha256(encoder.fingerprint.encode() + changed + digests.tobytes()).hexdigest()
    whole = folder / f"{key}.safetensors"
    features = _cached(whole, len(inputs), encoder.width)
    if features is not None:
        return features
    features = np.empty((len(inputs), encoder.width), np.float32)
    parts = {start: folder / f"{key}.{start}.safetensors" for start in range(0, len(inputs), _CHUNK)}
    for start, part in parts.items():
        chunk = inputs[start : start + _CHUNK]
        encoded = _cached(part, len(chunk), encoder.width)
        if encoded is None:
            encoded = encoder.encode(chunk, _shifted(progress, start, len(inputs)))
            _check_unchanged(encoder, chunk, digests[start : start + _CHUNK])
            if len(parts) > 1:
                _keep(part, encoded)
        features[start : start + len(chunk)] = encoded
    _keep(whole, features)
    for part in parts.values():
        with suppress(OSError):
            part.unlink()
    return features


def _check_unchanged(encoder: Encoder, inputs: Sequence[Input], digests: UInt64[np.ndarray, " N"]) -> None:
    """Refuse image files that aren't what they were when their digests were taken."""
    files = [number for number, given in enumerate(inputs) if encoder.kind == "image" and isinstance(given, str | Path)]
    for number, now in zip(files, encoder.digests([inputs[number] for number in files]), strict=True):
        if now != digests[number]:
            raise TaskError(f"the image {inputs[number]} changed while it was encoded: try again once it is written")


def _shifted(progress: Progress, start: int, total: int) -> Progress:
    return lambda done, _, line: progress(start + done, total, line)


def _keep(file: Path, features: Float32[np.ndarray, "N D"]) -> None:
    digest = np.array([xxhash.xxh3_64_intdigest(features.data)], np.uint64)
    with suppress(OSError):
        replace_bytes(file, save({"features": features, "digest": digest}))


def _cached(file: Path, rows: int, width: int) -> Float32[np.ndarray, "N D"] | None:
    """What `_keep` wrote, if it is whole and of this shape."""
    try:
        held = load(file.read_bytes())
        features, digest = held["features"], held["digest"]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    whole = features.shape == (rows, width) and features.dtype == np.float32
    return features if whole and digest.tolist() == [xxhash.xxh3_64_intdigest(features.data)] else None


def kind_of(source: str | Path | Checkpoint) -> str:
    """What a model takes, text or image, by its class, without its weights.

    Raises CheckpointError for an encoder-decoder, and for what transformers has no class for.
    """
    import transformers

    checkpoint = Checkpoint(source)
    if checkpoint.config.get("is_encoder_decoder"):
        raise CheckpointError(f"{checkpoint} is an encoder-decoder: use an encoder or a decoder")
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
            known = transformers.MODEL_MAPPING[type(config)]
    except Exception as error:  # whatever the library raises on files it can't use
        raise CheckpointError(f"{checkpoint}: transformers can't load it ({first_line(error)})") from error
    return "image" if _sees(known[0] if isinstance(known, tuple) else known) else "text"


def _sees(model: Any) -> bool:
    """Whether a model, or its class, takes pixels, alone or (CLIP and its kin) beside text."""
    return hasattr(model, "get_image_features") or model.main_input_name == "pixel_values"


def _check_pooling(pooling: str, kind: str) -> None:
    poolings = ImageExtractor.poolings if kind == "image" else TextExtractor.poolings
    if pooling not in poolings:
        raise OptionError(f"`pooling` {pooling} doesn't go with {kind}s: give {' or '.join(poolings)}")


def _load_body(checkpoint: Checkpoint, precision: torch.dtype) -> tuple[Any, bool]:
    """The model without a head, and whether its pooler, if it has one, comes from the checkpoint."""
    from transformers import AutoModel

    checkpoint.check_readable()
    module, info = read_module(AutoModel, checkpoint, precision)
    if missing := [name for name in info["missing_keys"] if "pooler" not in name]:
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} tensors of a {type(module).__name__}, {min(missing)} first: fetch it again"
        )
    for parameter in (*module.parameters(), *module.buffers()):
        parameter.data = parameter.data.clone()  # else they are the file's own pages, and change with the file
    module.config.use_cache = False  # one pass each: a decoder needn't remember keys and values
    return module, not info["missing_keys"]


def _hash_weights(module: Any) -> str:
    """Of every tensor's name, type and content, wherever they are."""
    total = xxhash.xxh3_128()
    for name, tensor in module.state_dict().items():
        total.update(f"{name} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _stamps(checkpoint: Checkpoint) -> list[tuple[str, int, int, int]]:
    """What changes when one of the files that decide over features is written to or replaced."""
    names = {"config.json", *(file.name for file in checkpoint.files)}
    patterns = (*TextExtractor.files, *ImageExtractor.files)
    state = []
    for path in sorted(checkpoint.folder.iterdir()):
        if path.is_file() and (path.name in names or any(fnmatchcase(path.name, pattern) for pattern in patterns)):
            now = path.stat()
            state.append((path.name, now.st_mtime_ns, now.st_size, now.st_ino))
    return state


def _extractor(checkpoint: Checkpoint, module: Any, has_pooler: bool, max_length: int) -> Extractor:
    """By what the class takes: pixels, or else token ids."""
    if _sees(module):
        from transformers import AutoImageProcessor

        try:
            # Always by Pillow: torchvision's resizing gives other pixels, so features would depend on what is installed.
            processor = AutoImageProcessor.from_pretrained(
                checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the library raises on files it can't use
            raise CheckpointError(
                f"{checkpoint}: no image processor can be loaded from it ({first_line(error)})"
            ) from error
        return ImageExtractor(module, processor, has_pooler)
    if module.main_input_name != "input_ids":
        raise CheckpointError(
            f"{checkpoint}: a {type(module).__name__} takes {module.main_input_name}, neither text nor images: use another encoder"
        )
    return TextExtractor.of(module, load_tokenizer(checkpoint), max_length)
