"""Texts, and image models of random weights, for tests of encoders."""

import json

import numpy as np
import torch
import transformers

from tests.support.tiny import _quiet

TEXTS = [
    "It was great",
    "The film was terrible and the acting was not good , but I liked the music and the story",
    "fun",
    ("a book", "It was boring and so was the music"),
    "we saw it and loved it",
]

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}

_CONV = {"hidden_sizes": [8, 16], "depths": [1, 1]}

_CROP = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}

_SQUARE = {"size": {"height": 16, "width": 16}}

# kind -> class, its config, its image processor and that one's sizes
IMAGE_KINDS = {
    "clip": (
        "CLIPModel",
        {"text_config": {**_VIT, "vocab_size": 9}, "vision_config": _VIT, "projection_dim": 12},
        "CLIP",
        _CROP,
    ),
    "clip-tower": ("CLIPVisionModel", _VIT, "CLIP", _CROP),
    "vit": ("ViTModel", _VIT, "ViT", _SQUARE),
    "vit-classifier": ("ViTForImageClassification", _VIT, "ViT", _SQUARE),
    "dinov2": ("Dinov2Model", _VIT, "Bit", _CROP),
    "resnet": ("ResNetModel", {**_CONV, "embedding_size": 8}, "ConvNext", {"size": {"shortest_edge": 16}}),
    "convnext": ("ConvNextModel", {**_CONV, "num_stages": 2}, "ConvNext", {"size": {"shortest_edge": 16}}),
    "mae": ("ViTMAEModel", {**_VIT, "patch_size": 2}, "ViT", _SQUARE),
}


def one_by_one(folder, texts, pooling):
    """Features by the library alone: the whole model as it was saved, one text at a time, nothing padded."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    with _quiet(), torch.no_grad():
        model = getattr(transformers, name).from_pretrained(folder).eval()
        rows = []
        for text in texts:
            batch = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
            hidden = model(**batch, output_hidden_states=True).hidden_states[-1][0]
            rows.append((hidden.mean(0) if pooling == "mean" else hidden[-1]).numpy())
    return np.stack(rows)
