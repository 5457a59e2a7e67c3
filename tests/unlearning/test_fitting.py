"""The three ways to fit: one set of settings, shown in each signature and heeded by each."""

import inspect
from dataclasses import fields

import numpy as np
import pytest

from surgery.unlearning import Bottleneck, Rows
from surgery.unlearning.settings import Settings
from surgery.unlearning.values import Sgd

WAYS = ("fit", "fit_features", "fit_rows")
# Of each setting, one that isn't the default.
OTHERS = {
    "codebooks": 4,
    "keys": 7,
    "key_dim": 4,
    "top": 3,
    "projection": "segments",
    "key_init": "sample",
    "values": "counts",
    "sgd": Sgd(epochs=2),
    "seed": 4,
}
SMALL = {"codebooks": 3, "keys": 6, "key_dim": 2, "device": "cpu"}


def data():
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    return (np.eye(12)[labels] * 3 + random.standard_normal((40, 12))).astype(np.float32), labels


def test_each_signature_shows_every_setting_with_the_same_default():
    settings = {one.name: one.default for one in fields(Settings)}
    assert settings.keys() == OTHERS.keys() | {"device"}
    for way in WAYS:
        shown = inspect.signature(getattr(Bottleneck, way)).parameters
        assert {name: shown[name].default for name in settings} == settings
        assert all(one.kind != one.VAR_KEYWORD for one in shown.values())


@pytest.mark.parametrize("name", OTHERS)
def test_each_setting_is_heeded_alike_by_every_way(name):
    features, labels = data()
    asked = {**SMALL, name: OTHERS[name]}
    by_features = Bottleneck.fit_features(features, labels, **asked)
    by_rows = Bottleneck.fit_rows(Rows.of(features, labels), **asked)
    usual = Bottleneck.fit_rows(Rows.of(features, labels), **SMALL)
    assert by_features.fingerprint == by_rows.fingerprint != usual.fingerprint
    told = {**by_rows.facts.content(), **by_rows.settings}
    assert told[name] == (OTHERS[name] if name != "sgd" else {"rate": 0.3, "epochs": 2, "batch": 256, "smoothing": 0.1})


def test_texts_are_fitted_with_the_settings_that_were_asked_for(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path))
    rows = [{"text": f"{word} {'the ' * n}", "label": word} for word in ("good", "bad") for n in range(8)]
    asked = {**OTHERS, "projection": "random"}
    by_texts = Bottleneck.fit(tiny("bert-encoder"), rows, device="cpu", **asked)
    training = by_texts.need_training()
    labels = [by_texts.classes[target] for target in training.targets]
    by_features = Bottleneck.fit_features(training.features, labels, device="cpu", **asked)
    assert by_texts.entries.tobytes() == by_features.entries.tobytes()
    assert by_texts.settings == by_features.settings
    np.testing.assert_array_equal(by_texts.selector.keys, by_features.selector.keys)
