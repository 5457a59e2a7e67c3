"""How features are read off a frozen model: what it takes, how inputs are put before it, what is pooled of its answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float, UInt64
from PIL import Image, ImageOps
from torch import Tensor

from surgery.checkpoints.checkpoint import TOKENIZER_FILES
from surgery.errors import CheckpointError, OptionError, TaskError
from surgery.tasks.readout import position_limit

# A text, a pair of texts, an image file, or an image in memory.
Input = str | tuple[str, str] | Path | Image.Image | np.ndarray

_ALIKE = 1e-3  # of the norm: two runs over the same shapes differ by less


@dataclass(frozen=True, eq=False)
class TextExtractor:
    """Texts and pairs of texts: the last hidden state's mean over the text's tokens, or its last token.

    Attributes:
        max_length: tokens after which a text is cut.
        poolings: what there is to choose from.
        files: patterns of the files that decide over what the model is given.
        trial: an input to try the model on.
    """

    module: Any
    tokenizer: Any
    max_length: int
    kind = "text"
    poolings = ("mean", "last")
    files = TOKENIZER_FILES
    trial = "It was good, and so was everything else."

    @classmethod
    def of(cls, module: Any, tokenizer: Any, max_length: int) -> "TextExtractor":
        """`max_length` is lowered to what the model has positions for."""
        positions = position_limit(module) or max_length
        # The library leaves texts whole, without a word, when nothing but special tokens fits.
        least = tokenizer.num_special_tokens_to_add(pair=True) + 3
        if max_length < least:
            raise OptionError(f"`max_length` {max_length} leaves no room for a text: give {least} or more")
        return cls(module, tokenizer, min(max_length, positions, tokenizer.model_max_length))

    def pick_pooling(self, asked: str | None) -> str:
        """By default last where the first token's state ignores what follows (no config says so of every family)."""
        if asked is not None:
            return asked
        row = self.prepare([self.trial])[0]
        first, second, *rest = row["input_ids"]
        other = row | {"input_ids": [first, second] + [second] * len(rest)}
        hidden, _ = self._last_hidden([row, other])
        return "last" if alike(hidden[0, 0], hidden[1, 0]) else "mean"

    def prepare(self, inputs: Sequence[Input]) -> list[Any]:
        """Rows of token ids: what the tokenizer gives, not yet padded. Pairs and single texts may be mixed."""
        texts = [as_pair(given) for given in inputs]
        rows: list[dict[str, list[int]]] = [{}] * len(texts)
        for paired in (False, True):
            numbers = [number for number, (_, second) in enumerate(texts) if bool(second) == paired]
            if not numbers:
                continue
            firsts, seconds = [texts[n][0] for n in numbers], [texts[n][1] for n in numbers]
            coded = self.tokenizer(firsts, seconds if paired else None, truncation=True, max_length=self.max_length)
            for place, number in enumerate(numbers):
                rows[number] = {key: coded[key][place] for key in coded}
                if not rows[number]["input_ids"]:
                    raise TaskError(f"the text {firsts[place]!r} has no tokens for this encoder: leave it out")
        return rows

    def size(self, row: Any) -> int:
        """Tokens."""
        return len(row["input_ids"])

    def features(self, rows: Sequence[Any], pooling: str) -> Float[Tensor, "batch width"]:
        """Pooled in float32; padding takes no part. Where it would, rows of one length go through the model together."""
        sizes = [self.size(row) for row in rows]
        if len(set(sizes)) > 1 and self.padding_matters:
            parts = [[n for n, size in enumerate(sizes) if size == one] for one in set(sizes)]
            features = torch.cat([self.features([rows[n] for n in part], pooling) for part in parts])
            return features[torch.tensor([n for part in parts for n in part], device=features.device).argsort()]
        hidden, kept = self._last_hidden(rows)
        if pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), kept.sum(1) - 1]
        return (hidden * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True)

    @cached_property
    def padding_matters(self) -> bool:
        """Whether masked places behind a text change its states, as in models that mix places by more than attention."""
        row = self.prepare([self.trial])[0]
        longer = {key: [*values, *values[-1:] * 7] for key, values in row.items()}
        alone, padded = self._last_hidden([row])[0], self._last_hidden([row, longer])[0]
        return not alike(padded[0, : self.size(row)], alone[0])

    def _last_hidden(self, rows: Sequence[dict[str, list[int]]]) -> tuple[Tensor, Tensor]:
        """States [batch, tokens, width] and which are real [batch, tokens]; padded on the right, where causal models don't look."""
        longest = max(len(row["input_ids"]) for row in rows)
        pad = {"input_ids": self.tokenizer.pad_token_id or 0}  # masked, so any token does
        batch = {
            key: torch.tensor(
                [row[key] + [pad.get(key, 0)] * (longest - len(row[key])) for row in rows], device=self.module.device
            )
            for key in rows[0]
        }
        return self.module(**batch).last_hidden_state.float(), batch["attention_mask"]


@dataclass(frozen=True, eq=False)
class ImageExtractor:
    """Images: the model's own pooled output (for CLIP and its kin, the image embedding), or the mean over patches.

    Attributes:
        has_pooler: False if the model has a pooler whose weights the checkpoint lacks.
    """

    module: Any
    processor: Any
    has_pooler: bool
    kind = "image"
    poolings = ("pooled", "mean")
    files = ("preprocessor_config.json", "processor_config.json")
    max_length = None
    trial = Image.linear_gradient("L")

    def pick_pooling(self, asked: str | None) -> str:
        """By default pooled where the checkpoint has it."""
        if asked == "mean" or (self.has_pooler and self._pooled(self._pixels(self.trial)) is not None):
            return asked or "pooled"
        if asked == "pooled":
            raise CheckpointError("it has no pooled output: give `pooling` mean")
        return "mean"

    def prepare(self, inputs: Sequence[Input]) -> list[Any]:
        """As they are: pixels take much memory, so they are read a batch at a time."""
        return list(inputs)

    def size(self, row: Any) -> int:
        """The same for all."""
        return 0

    def features(self, rows: Sequence[Any], pooling: str) -> Float[Tensor, "batch width"]:
        """Each image is prepared by itself; those that processors leave in their own size also run by themselves."""
        pixels = [self._pixels(row) for row in rows]
        alone = len({image.shape for image in pixels}) > 1
        read = self._pooled if pooling == "pooled" else self._mean
        return torch.cat([read(part).flatten(1).float() for part in (pixels if alone else [torch.cat(pixels)])])

    def _pixels(self, image: Input) -> Tensor:
        pixels = self.processor(open_image(image), return_tensors="pt")["pixel_values"]
        return pixels.to(self.module.device, self.module.dtype)

    def _pooled(self, pixels: Tensor) -> Any:
        run = getattr(self.module, "get_image_features", self.module)
        return getattr(run(pixel_values=pixels), "pooler_output", None)

    def _mean(self, pixels: Tensor) -> Tensor:
        tower = getattr(self.module, "vision_model", self.module)
        hidden = tower(pixel_values=pixels).last_hidden_state
        if hidden.ndim == 4:  # a map [batch, channels, height, width]
            return hidden.mean((2, 3))
        patch = getattr(tower.config, "patch_size", None)
        patches = (pixels.shape[2] // patch) * (pixels.shape[3] // patch) if isinstance(patch, int) else hidden.shape[1]
        return hidden[:, max(0, hidden.shape[1] - patches) :].mean(1)  # class and register tokens stand in front


Extractor = TextExtractor | ImageExtractor


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two of a model's answers are the same up to rounding."""
    return bool((one - other).float().norm() <= _ALIKE * other.float().norm())


def text_digests(texts: Sequence[Input]) -> UInt64[np.ndarray, " N"]:
    """A hash of each text or pair (xxh3-64); a pair whose second text is empty is a single text."""
    return np.array([xxhash.xxh3_64_intdigest(json.dumps(as_pair(text)).encode()) for text in texts], np.uint64)


def image_digests(images: Sequence[Input]) -> UInt64[np.ndarray, " N"]:
    """A hash of each image (xxh3-64): of the file's bytes, or of the pixels of one in memory."""
    return np.array([xxhash.xxh3_64_intdigest(_image_bytes(image)) for image in images], np.uint64)


def _image_bytes(image: Input) -> bytes:
    if isinstance(image, str | Path):
        try:
            return Path(image).expanduser().read_bytes()
        except OSError as error:
            raise TaskError(f"the image {image} can't be read ({error.strerror}): leave it out or mend it") from error
    opened = open_image(image)
    return f"{opened.size}".encode() + opened.tobytes()


def open_image(image: Input) -> Image.Image:
    """An image in RGB, upright; raises TaskError, naming it, for what is none."""
    try:
        if isinstance(image, str | Path):
            with Image.open(Path(image).expanduser()) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise TypeError(f"its dtype is {image.dtype}, not uint8")
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise TypeError("it is no path, PIL image or array")
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # the decoders raise a dozen types on damaged files
        named = image if isinstance(image, str | Path) else f"of type {type(image).__name__}"
        raise TaskError(f"the image {named} can't be read ({error}): leave it out or mend it") from error


def as_pair(text: Input) -> tuple[str, str]:
    """A text and its second, which is empty for a single one; raises TaskError for anything else."""
    if isinstance(text, str):
        return text, ""
    if isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return text
    raise TaskError(f"a text encoder takes strings and pairs of strings, not {type(text).__name__}")
