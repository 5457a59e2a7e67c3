"""Unlearning on Fashion-MNIST and on trec with MiniLM: what the README promises, on one seed and some classes.

MiniLM comes from its package; text and the script that makes Fashion-MNIST's features from the folder `shared` beside the checkout.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from surgery.grafting.example import minilm
from surgery.unlearning import Bottleneck, unlearn
from surgery.unlearning.features.rows import read_rows

pytestmark = pytest.mark.real
SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.mark.parametrize(("tensor", "keys", "accuracy"), [("pixels", 256, 0.845), ("features", 64, 0.86)])
def test_a_class_of_clothes_is_forgotten_and_the_rest_is_as_after_refitting(made, tensor, keys, accuracy):
    fashion = made("fashion")  # 10,000 training and 2,000 test images
    train, test = (read_rows(fashion / f"{split}.safetensors", features=tensor) for split in ("train", "test"))
    bottleneck = Bottleneck.fit_rows(train, codebooks=256, keys=keys)
    labels = np.array(test.labels)
    assert np.mean(bottleneck.predict(test) == labels) >= accuracy
    for name in ("sandal", "coat"):
        eraser = unlearn(bottleneck, name)
        stay = np.flatnonzero(np.array(train.labels) != name)
        said, refitted = (model.predict(test) for model in (eraser.apply(bottleneck), bottleneck.refitted(stay)))
        gone = labels == name
        assert np.mean(said[gone] == name) <= 0.005
        assert np.mean(said[~gone] == labels[~gone]) >= np.mean(refitted[~gone] == labels[~gone]) - 0.02


def test_a_question_type_is_forgotten_from_the_shell(tmp_path, monkeypatch):
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no labelled text at {SHARED / 'data'}")
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    train, test = (SHARED / "data" / "trec" / f"{split}.jsonl" for split in ("train", "test"))

    def surgery(*arguments):
        run = subprocess.run(
            [sys.executable, "-m", "cli.main", *map(str, arguments), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    bn, forgot, eraser = (tmp_path / name for name in ("bn", "forgot", "eraser"))
    encoder = ("--encoder", minilm().folder)
    surgery("bottleneck", "fit", *encoder, "--data", train, "--codebooks", 512, "--keys", 64, "-o", bn)
    label = json.loads(test.read_text().splitlines()[0])["label"]
    edit = surgery("unlearn", bn, "--forget", label, "-o", forgot, "--eraser", eraser)
    assert 0 < edit["masked"] < edit["active"]
    report = surgery("bottleneck", "verify", forgot, "--data", test, "--shadows", 4, "-o", tmp_path / "report")
    points = report["points"]
    assert points["before"]["retain_accuracy"] > 0.85
    assert points["after"]["forget_accuracy"] <= 0.005
    assert points["after"]["retain_accuracy"] >= points["refitted"]["retain_accuracy"] - 0.045
    surgery("bottleneck", "undo", forgot, "--eraser", eraser, "-o", tmp_path / "again")
    for file in bn.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
