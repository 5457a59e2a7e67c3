"""Bottlenecks, reports and tiny image models that tests of unlearning share."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from surgery.unlearning import Bottleneck, unlearn, verify
from tests.support.encoders import IMAGE_KINDS
from tests.support.tiny import _quiet


def blobs(rows, seed, classes=4, width=10):
    """Overlapping Gaussian classes with names."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(size=(classes, width)) * 1.2
    targets = random.integers(0, classes, rows)
    return (middles[targets] + random.normal(size=(rows, width))).astype(np.float32), np.array(list("abcd"))[targets]


@pytest.fixture(scope="module")
def data():
    return blobs(240, 0), blobs(160, 1)


@pytest.fixture(scope="module")
def fitted(data):
    return Bottleneck.fit_features(*data[0], codebooks=12, keys=16, key_dim=4, device="cpu")


@pytest.fixture(scope="module")
def counted(data):
    (features, labels), _ = data
    return Bottleneck.fit_features(
        features[:160],
        labels[:160],
        keys_from=features[160:],
        codebooks=12,
        keys=16,
        key_dim=4,
        values="counts",
        device="cpu",
    )


@pytest.fixture(scope="module")
def report(fitted, data):
    return verify(fitted, unlearn(fitted, "b"), data[1], shadows=4, device="cpu")


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory):
    """`tiny_image(kind)`: the folder of a tiny image model of random weights, made once a session."""
    made = {}

    def get(kind):
        if kind not in made:
            name, sizes, processor, options = IMAGE_KINDS[kind]
            folder = tmp_path_factory.mktemp("image") / kind
            model_class = getattr(transformers, name)
            torch.manual_seed(0)
            with _quiet():
                model = model_class(model_class.config_class(**sizes))
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, std=0.2)
                model.save_pretrained(folder)
                getattr(transformers, f"{processor}ImageProcessorPil")(**options).save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return get


@pytest.fixture
def images(tmp_path):
    """Images of several sizes and modes, on disk."""
    random = np.random.default_rng(0)
    shapes = {
        "a.png": (40, 30, 3),
        "b.jpg": (16, 64, 3),
        "c.png": (20, 20),
        "d.webp": (33, 21, 3),
        "e.bmp": (17, 17, 3),
    }
    for name, shape in shapes.items():
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(tmp_path / name)
    return [tmp_path / name for name in shapes]
