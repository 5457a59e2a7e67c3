"""Frozen encoders: features against the library run on one input at a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from surgery import Checkpoint
from surgery.errors import CheckpointError, OptionError, TaskError
from surgery.grafting.example import minilm
from surgery.unlearning.features.encoders import Encoder, cached_features
from tests.support import architectures
from tests.support.encoders import IMAGE_KINDS, TEXTS, one_by_one
from tests.support.tiny import _quiet, change, pickled

CAUSAL = ("gpt2", "opt", "llama", "llama-tied")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache, in the test's own folder."""
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_are_encoded_as_if_each_were_alone(kind, tiny, pooling):
    encoder = Encoder.open(tiny(kind), pooling=pooling, batch_size=3)
    features = encoder.encode(TEXTS)
    np.testing.assert_allclose(features, one_by_one(tiny(kind), TEXTS, pooling), atol=1e-5)
    assert features.dtype == np.float32 and features.shape == (5, encoder.width) == (5, 16)


def test_the_default_pooling_is_that_of_the_family(kind, tiny):
    encoder = Encoder.open(str(tiny(kind)))
    assert (encoder.source, encoder.kind) == (str(tiny(kind)), "text")
    assert encoder.pooling == ("last" if kind in CAUSAL else "mean")
    assert not encoder.module.training and not any(p.requires_grad for p in encoder.module.parameters())


def test_long_texts_are_cut_at_what_is_asked_for_and_at_the_positions_there_are(tiny):
    long = "the film was good and " * 40
    cut = Encoder.open(tiny("bert"), max_length=8)
    expected = one_by_one(tiny("bert"), ["the film was good and the"], "mean")
    np.testing.assert_allclose(cut.encode([long]), expected, atol=1e-5)
    for name in ("roberta", "gpt2"):
        assert Encoder.open(tiny(name), max_length=500).max_length == 64
        assert np.isfinite(Encoder.open(tiny(name), max_length=500).encode([long])).all()


def test_half_precision_computes_near_and_returns_float32(tiny):
    features = Encoder.open(tiny("bert"), dtype="bfloat16").encode(TEXTS)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, one_by_one(tiny("bert"), TEXTS, "mean"), atol=0.15)


def test_a_pickled_checkpoint_gives_the_same_features(tiny, tmp_path):
    encoder = Encoder.open(Checkpoint(pickled(tiny("bert-encoder"), tmp_path / "old")))
    np.testing.assert_array_equal(encoder.encode(TEXTS), Encoder.open(tiny("bert-encoder")).encode(TEXTS))


IMAGE_WIDTHS = {"clip": 12, "clip-tower": 16, "vit": 16, "dinov2": 16, "resnet": 16, "convnext": 16}


@pytest.mark.parametrize("name", IMAGE_WIDTHS)
def test_images_are_encoded_as_the_library_encodes_each(name, tiny_image, images):
    folder = tiny_image(name)
    encoder = Encoder.open(folder, batch_size=2)
    assert (encoder.kind, encoder.pooling, encoder.width, encoder.max_length) == (
        "image",
        "pooled",
        IMAGE_WIDTHS[name],
        None,
    )
    processor = getattr(transformers, f"{IMAGE_KINDS[name][2]}ImageProcessorPil").from_pretrained(folder)
    pooled, mean = [], []
    with _quiet(), torch.no_grad():
        model = getattr(transformers, IMAGE_KINDS[name][0]).from_pretrained(folder).eval()
        for path in images:
            pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
            if name == "clip":
                ids = torch.ones((1, 3), dtype=torch.int64)
                run = model(input_ids=ids, pixel_values=pixels)
                tower = run.vision_model_output.last_hidden_state
                # The model's own answer is scaled to length 1.
                pooled.append(run.image_embeds[0].numpy())
            else:
                run = model(pixel_values=pixels)
                tower = run.last_hidden_state
                pooled.append(run.pooler_output.flatten().numpy())
            # Two by two patches, behind one class token, or a map.
            mean.append((tower[0, 1:5].mean(0) if tower.ndim == 3 else tower[0].flatten(1).mean(1)).numpy())
    features = encoder.encode(images)
    if name == "clip":
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(features, np.stack(pooled), atol=1e-5)
    np.testing.assert_allclose(Encoder.open(folder, pooling="mean").encode(images), np.stack(mean), atol=1e-5)


def test_an_image_is_the_same_as_a_file_opened_or_as_pixels(tiny_image, images):
    encoder = Encoder.open(tiny_image("dinov2"))
    opened = [Image.open(path) for path in images]
    arrays = [np.array(image) for image in opened]
    from_files = encoder.encode([str(path) for path in images])
    np.testing.assert_array_equal(encoder.encode(opened), from_files)
    np.testing.assert_array_equal(encoder.encode(arrays), from_files)


def test_an_image_is_turned_upright(tiny_image, images, tmp_path):
    turned = Image.open(images[0]).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    encoder = Encoder.open(tiny_image("vit"))
    given = [images[0], tmp_path / "turned.png", Image.open(tmp_path / "turned.png")]
    upright, from_file, opened = encoder.encode(given)
    np.testing.assert_array_equal(from_file, upright)
    np.testing.assert_array_equal(opened, upright)


def test_a_classifier_without_pooler_is_read_by_the_mean_and_never_by_a_random_pooler(tiny_image):
    assert Encoder.open(tiny_image("vit-classifier")).pooling == "mean"
    with pytest.raises(CheckpointError, match="no pooled output: give `pooling` mean"):
        Encoder.open(tiny_image("vit-classifier"), pooling="pooled")


def test_a_model_that_drops_patches_at_random_is_refused(tiny_image):
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="ViTMAEModel gives other features each time"):
        Encoder.open(tiny_image("mae"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "pooled"}, "`pooling` pooled doesn't go with texts: give mean or last"),
        ({"max_length": 3}, "`max_length` 3 leaves no room"),
        ({"batch_size": 0}, "`batch_size` 0"),
        ({"dtype": "int8"}, "`dtype` int8"),
        ({"device": "nonsense"}, "`device` nonsense"),
    ],
)
def test_options_out_of_range_are_refused(tiny, options, message):
    with pytest.raises(OptionError, match=message):
        Encoder.open(tiny("bert"), **options)


def test_folders_that_are_no_encoders_are_refused(tiny, tiny_image, copied, tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        Encoder.open(tmp_path / "nowhere")
    bare = copied("bert", "bare")
    for file in bare.glob("token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer can be loaded"):
        Encoder.open(bare)
    blind = shutil.copytree(tiny_image("vit"), tmp_path / "blind")
    (blind / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no image processor can be loaded"):
        Encoder.open(blind)
    torn = copied("bert", "torn")
    tensors = load_file(torn / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of a BertModel, encoder.layer.1.output.dense.weight"):
        Encoder.open(torn)
    unknown = copied("bert", "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "mystery"}))
    with pytest.raises(CheckpointError, match="transformers can't load it"):
        Encoder.open(unknown)
    (unknown / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    with pytest.raises(CheckpointError, match="encoder-decoder"):
        Encoder.open(unknown)
    broken = change(tiny("bert"), tmp_path / "nan", lambda name, tensor: tensor * float("nan"))
    with pytest.raises(CheckpointError, match="features of NaN"):
        Encoder.open(broken)


def test_inputs_that_cannot_be_read_are_named(tiny, tiny_image, images, tmp_path):
    with pytest.raises(TaskError, match="'' has no tokens"):
        Encoder.open(tiny("gpt2")).encode(["fun", ""])
    with pytest.raises(TaskError, match="not PosixPath"):
        Encoder.open(tiny("gpt2")).encode([Path("a.png")])
    encoder = Encoder.open(tiny_image("vit"))
    (tmp_path / "torn.png").write_bytes(images[0].read_bytes()[:200])
    for given, message in [
        (tmp_path / "torn.png", "torn.png can't be read"),
        (tmp_path / "none.png", "none.png can't be read"),
        (np.zeros((4, 4, 3), np.float32), "dtype is float32, not uint8"),
        (("a", "b"), "it is no path"),
    ]:
        with pytest.raises(TaskError, match=message):
            encoder.encode([images[0], given])
    with pytest.raises(TaskError, match=r"none.png can't be read \(No such file"):
        encoder.digests([tmp_path / "none.png"])


def test_the_fingerprint_follows_whatever_changes_features(tiny, tmp_path):
    base = Encoder.open(tiny("bert"))
    moved = change(
        tiny("bert"), tmp_path / "moved", lambda name, tensor: tensor + 1e-3 if "layer.0" in name else tensor
    )
    recoded = Path(shutil.copytree(tiny("bert"), tmp_path / "recoded"))
    (recoded / "tokenizer.json").write_text((recoded / "tokenizer.json").read_text().replace('"great"', '"grand"'))
    bent = Path(shutil.copytree(tiny("bert"), tmp_path / "bent"))
    (bent / "config.json").write_text((bent / "config.json").read_text().replace('"gelu"', '"relu"'))
    merged = Path(shutil.copytree(tiny("bert"), tmp_path / "merged"))
    (merged / "bpe.codes").write_text("a b 1")
    prints = [
        encoder.fingerprint
        for encoder in (
            base,
            Encoder.open(merged),
            Encoder.open(tiny("bert"), pooling="last"),
            Encoder.open(tiny("bert"), max_length=16),
            Encoder.open(tiny("bert"), dtype="bfloat16"),
            Encoder.open(moved),
            Encoder.open(recoded),
            Encoder.open(bent),
        )
    ]
    assert len(set(prints)) == len(prints) and all(len(p) == 64 for p in prints)
    assert Encoder.open(Checkpoint(tiny("bert")), batch_size=1).fingerprint == base.fingerprint


def test_an_image_encoders_fingerprint_follows_its_processor(tiny_image, tmp_path):
    copy = Path(shutil.copytree(tiny_image("vit"), tmp_path / "copy"))
    same = Encoder.open(copy).fingerprint
    assert same == Encoder.open(tiny_image("vit")).fingerprint
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0, 0, 0]}))
    assert Encoder.open(copy).fingerprint != same


@pytest.mark.parametrize("name", ["bert", "llama", "vit"])
def test_a_spec_opens_the_same_encoder_and_refuses_another(name, tiny, tiny_image, tmp_path):
    folder = (tiny_image if name == "vit" else tiny)(name)
    encoder = Encoder.open(folder, dtype="float64", max_length=9)
    spec = json.loads(json.dumps(encoder.spec()))
    again = Encoder.from_spec(spec, device="cpu")
    assert again.spec() == spec and again.fingerprint == encoder.fingerprint
    other = change(folder, tmp_path / "other", lambda name, tensor: tensor * 2)
    with pytest.raises(CheckpointError, match="isn't the encoder used before"):
        Encoder.from_spec(spec, source=other)
    with pytest.raises(CheckpointError, match="lacks 'fingerprint'"):
        Encoder.from_spec({key: value for key, value in spec.items() if key != "fingerprint"})


def test_nothing_to_encode_is_no_error(tiny):
    assert cached_features(Encoder.open(tiny("bert")), []).shape == (0, 16)


def test_digests_tell_contents_apart(tiny, tiny_image, images):
    encoder = Encoder.open(tiny("bert"))
    texts = ["ab", "a", ("a", "b"), ("ab", ""), ("b", "a"), ("a", "")]
    digests = encoder.digests(texts)
    assert digests.dtype == np.uint64 and digests.shape == (6,)
    assert digests[0] == digests[3] and digests[1] == digests[5] and len(set(digests.tolist())) == 4
    encoder = Encoder.open(tiny_image("vit"))
    shutil.copyfile(images[0], images[0].with_name("copy.png"))
    digests = encoder.digests([*images, images[0].with_name("copy.png"), Image.open(images[0])])
    assert digests[0] == digests[5] and len(set(digests.tolist())) == 6


@pytest.mark.real
def test_minilm_gives_the_mean_over_its_tokens():
    folder = minilm().folder
    encoder = Encoder.open(folder)
    assert (encoder.pooling, encoder.width, encoder.max_length) == ("mean", 384, 128)
    texts = ["A man is playing a guitar.", "Someone plays music on an instrument, slowly and well.", "Taxes rose."]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        wanted = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    features = encoder.encode(texts)
    np.testing.assert_allclose(features, torch.stack(wanted).numpy(), atol=1e-5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.4 > 0.2 > unit[0] @ unit[2]


@pytest.mark.parametrize("name", ["fnet", "convbert", "yoso", "mobilebert"])
def test_features_of_models_whose_places_mix_are_those_of_a_text_alone(tmp_path, name):
    folder = architectures.build(architectures.classes("encoder")[name], tmp_path / name, "encoder")
    encoder = Encoder.open(folder, device="cpu")
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)
