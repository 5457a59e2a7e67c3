"""The cache of features: each input encoded once, and filed under the weights and the content that made it."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery import Checkpoint
from surgery.errors import CheckpointError, TaskError
from surgery.unlearning.features import encoders
from surgery.unlearning.features.encoders import Encoder, cached_features
from tests.support.encoders import TEXTS, one_by_one


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache, in the test's own folder."""
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def encoded(monkeypatch):
    """How many inputs were really encoded since."""
    counted, encode = [], Encoder.encode

    def counting(self, inputs, progress=encoders.silent):
        features = encode(self, inputs, progress)
        counted.extend(inputs)
        return features

    monkeypatch.setattr(Encoder, "encode", counting)
    return counted


def test_features_are_computed_once(tiny, encoded, cache):
    encoder = Encoder.open(tiny("bert"))
    first = cached_features(encoder, TEXTS)
    np.testing.assert_allclose(first, one_by_one(tiny("bert"), TEXTS, "mean"), atol=1e-5)
    assert len(encoded) == 5 and len(list(cache.iterdir())) == 1
    second = cached_features(Encoder.open(tiny("bert")), TEXTS)
    np.testing.assert_array_equal(first, second)
    assert len(encoded) == 5 and second.dtype == np.float32 and second.flags.writeable
    cached_features(encoder, TEXTS[::-1])
    cached_features(Encoder.open(tiny("bert"), pooling="last"), TEXTS)
    assert len(encoded) == 15


def in_place(folder, factor=2):
    """Double the weights in the very file, as a patch in place does."""
    with (folder / "model.safetensors").open("r+b") as file:
        for entry in Checkpoint(folder).entries.values():
            file.seek(entry.start)
            values = np.frombuffer(file.read(entry.stop - entry.start), np.float32)
            file.seek(entry.start)
            file.write((values * np.float32(factor)).tobytes())


def replaced(folder):
    """Other weights under the same name, as saving again does."""
    other = {name: tensor * 2 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "other.safetensors", metadata={"format": "pt"})
    (folder / "other.safetensors").replace(folder / "model.safetensors")


@pytest.mark.parametrize("asked", ["before", "after"], ids=lambda when: f"fingerprint asked for {when}")
@pytest.mark.parametrize("write", [in_place, replaced])
def test_an_open_encoder_stays_as_it_was_when_its_files_change(write, asked, copied, encoded):
    folder = copied("bert", "model")
    expected, encoder = one_by_one(folder, TEXTS, "mean"), Encoder.open(folder)
    fingerprint = Encoder.open(folder).fingerprint if asked == "after" else encoder.fingerprint
    write(folder)
    np.testing.assert_allclose(cached_features(encoder, TEXTS), expected, atol=1e-5)
    assert encoder.fingerprint == fingerprint == encoder.spec()["fingerprint"]
    again = Encoder.open(folder)
    assert again.fingerprint != fingerprint
    np.testing.assert_allclose(cached_features(again, TEXTS), one_by_one(folder, TEXTS, "mean"), atol=1e-5)
    assert len(encoded) == 10


def test_a_checkpoint_opened_before_its_files_changed_is_read_again(copied):
    folder = copied("bert", "model")
    early = Checkpoint(folder)
    assert early.fingerprint
    replaced(folder)
    encoder = Encoder.open(early)
    assert encoder.fingerprint == Encoder.open(folder).fingerprint
    np.testing.assert_allclose(encoder.encode(TEXTS), one_by_one(folder, TEXTS, "mean"), atol=1e-5)


def test_files_that_change_while_they_are_read_are_refused(copied, monkeypatch):
    folder, load = copied("bert", "model"), encoders._load_body

    def slow(*given):
        found = load(*given)
        in_place(folder)
        return found

    monkeypatch.setattr(encoders, "_load_body", slow)
    with pytest.raises(CheckpointError, match="model changed while it was read"):
        Encoder.open(folder)


def test_weights_changed_in_memory_have_a_place_of_their_own_and_no_spec(tiny, encoded):
    encoder = Encoder.open(tiny("bert"))
    first = cached_features(encoder, TEXTS)
    with torch.no_grad():
        encoder.module.encoder.layer[1].output.dense.weight.mul_(2)
    second = cached_features(encoder, TEXTS)
    np.testing.assert_array_equal(second, encoder.encode(TEXTS))
    assert np.abs(second - first).max() > 1e-3
    np.testing.assert_array_equal(cached_features(Encoder.open(tiny("bert")), TEXTS), first)
    assert len(encoded) == 15
    with pytest.raises(CheckpointError, match="were changed in memory since it was opened: save it"):
        encoder.spec()


def test_an_image_that_changes_while_it_is_encoded_is_refused_and_not_kept(tiny_image, images, cache, monkeypatch):
    encoder, encode = Encoder.open(tiny_image("vit")), Encoder.encode

    def slow(self, inputs, progress=encoders.silent):
        found = encode(self, inputs, progress)
        shutil.copyfile(images[1], images[0])
        return found

    monkeypatch.setattr(Encoder, "encode", slow)
    with pytest.raises(TaskError, match=r"a\.png changed while it was encoded"):
        cached_features(encoder, images)
    assert not cache.exists()


def test_an_image_file_with_other_content_is_encoded_again(tiny_image, images, encoded):
    encoder = Encoder.open(tiny_image("vit"))
    first = cached_features(encoder, images)
    shutil.copyfile(images[1], images[4])
    second = cached_features(encoder, images)
    assert len(encoded) == 10
    np.testing.assert_array_equal(second[4], first[1])
    np.testing.assert_array_equal(cached_features(encoder, images), second)
    assert len(encoded) == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-7],
        lambda raw: b"",
        lambda raw: raw[:-40] + bytes([raw[-40] ^ 1]) + raw[-39:],
        lambda raw: b"nonsense" * 50,
    ],
)
def test_a_damaged_cache_is_computed_again(tiny, encoded, cache, damage):
    encoder = Encoder.open(tiny("bert"))
    first = cached_features(encoder, TEXTS)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(cached_features(encoder, TEXTS), first)
    assert len(encoded) == 10 and file.read_bytes() == whole


def test_an_interrupted_run_goes_on_where_it_stopped(tiny, encoded, cache, monkeypatch):
    monkeypatch.setattr(encoders, "_CHUNK", 4)
    encoder = Encoder.open(tiny("bert"), batch_size=2)
    texts = [f"{first} {second}" for first in ("good", "bad", "fun") for second in ("film", "book", "plot", "story")]
    seen = []

    def stop(done, total, line):
        seen.append((done, total))
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(encoder, texts[:11], stop)
    assert seen == [(2, 11), (4, 11), (6, 11), (8, 11), (10, 11)]
    assert encoded == texts[:8] and len(list(cache.iterdir())) == 2
    features = cached_features(encoder, texts[:11])
    assert encoded == texts[:11] and len(list(cache.iterdir())) == 1
    np.testing.assert_allclose(features, one_by_one(tiny("bert"), texts[:11], "mean"), atol=1e-5)


def test_without_a_cache_that_can_be_written_features_come_all_the_same(tiny, encoded, tmp_path, monkeypatch):
    encoder = Encoder.open(tiny("bert"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "file"))
    first = cached_features(encoder, TEXTS)

    def refuse(path, content):
        raise PermissionError(13, "read-only", str(path))

    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "readonly"))
    monkeypatch.setattr(encoders, "replace_bytes", refuse)
    np.testing.assert_array_equal(cached_features(encoder, TEXTS), first)
    assert len(encoded) == 10 and not (tmp_path / "readonly").exists()
