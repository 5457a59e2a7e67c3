"""Data of a bottleneck read as in its fit, and read and checked before any encoder is loaded."""

import inspect
import json
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from surgery.errors import CheckpointError, OptionError, TaskError
from surgery.tasks.examples import Columns
from surgery.unlearning import Bottleneck, Encoder, unlearn, verify
from surgery.unlearning.evaluation.verification import verify_folder
from surgery.unlearning.features import encoders
from surgery.unlearning.features.encoders import kind_of
from surgery.unlearning.settings import Settings
from tests.support.tiny import hashes

WORDS = ("film", "plot", "book", "story", "music", "actor", "food", "place")
TABLES = [
    {"text": f"the {word} was {what}", "label": label}
    for what, label in (("good", "up"), ("bad", "down"))
    for word in WORDS
]
SIZES = {"codebooks": 4, "keys": 4, "key_dim": 3, "device": "cpu"}
SMALL = ("--codebooks", 4, "--keys", 4, "--key-dim", 3, "--device", "cpu")
QUICK = {"shadows": 0, "baselines": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path_factory.mktemp("cache")))


def written(file, tables, **names):
    """A JSONL file of the tables, whose columns may be called otherwise."""
    lines = [{names.get(key, key): value for key, value in table.items()} for table in tables]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture
def unopened(monkeypatch):
    """Nothing may load a model."""

    def fail(*given, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(encoders, "_load_body", fail)


@pytest.fixture(scope="module")
def of_texts(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGERY_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Bottleneck.fit(tiny("bert-encoder"), TABLES[:6] + TABLES[8:14], **SIZES)


# -- before the encoder is loaded --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"keys": 13}, OptionError, "`keys` 13 must lie between 2 and 12: the 12 rows that place them"),
        ({"keys_from": TABLES[:3]}, OptionError, "`keys` 4 must lie between 2 and 3"),
        ({"keys_from": "nowhere.jsonl"}, TaskError, "there is no such file"),
        ({"data": "nowhere.jsonl"}, TaskError, "there is no such file"),
        ({"data": "rows.npz"}, OptionError, "holds features already"),
        ({"data": TABLES[:8]}, TaskError, "all training rows are of class 'up'"),
        ({"data": [*TABLES, {"text": "no label"}]}, TaskError, "example 16, counted from 0"),
        ({"top": 5}, OptionError, "`top` 5 is more than the 4 keys"),
        ({"top": 0}, OptionError, "`top` 0 must be at least 1"),
        ({"codebooks": 0}, OptionError, "`codebooks` 0 must be at least 1"),
        ({"values": "magic"}, OptionError, "`values` magic isn't one of sgd, counts"),
        ({"projection": "magic"}, OptionError, "`projection` magic isn't one of random, segments"),
        ({"key_init": "magic"}, OptionError, "`key_init` magic isn't one of kmeans, ema, sample"),
        ({"seed": -1}, OptionError, "`seed` -1 must be at least 0"),
        ({"device": "nonsense"}, OptionError, "`device` nonsense can't be used here"),
        ({"opening": {"pooling": "pooled"}}, OptionError, "`pooling` pooled doesn't go with texts: give mean or last"),
        ({"opening": {"dtype": "int8"}}, OptionError, "`dtype` int8"),
        ({"opening": {"batch_size": 0}}, OptionError, "`batch_size` 0"),
    ],
    ids=str,
)
def test_a_fit_that_cannot_be_is_refused_before_the_encoder_is_loaded(change, error, message, tiny, unopened):
    given = {"data": TABLES[:6] + TABLES[8:14], **SIZES, **change}
    with pytest.raises(error) as raised:
        Bottleneck.fit(tiny("bert-encoder"), given.pop("data"), **given)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_column_that_is_not_there_is_told_before_the_encoder_is_loaded(tiny, unopened, run, tmp_path):
    data = written(tmp_path / "train.jsonl", TABLES)
    fit = ("bottleneck", "fit", "--encoder", tiny("bert-encoder"), "--data", data, *SMALL, "-o", tmp_path / "bn")
    status, out, err = run(*fit, "--column", "text=utterance")
    assert (status, out) == (2, "") and "line 1: no utterance (columns here: text, label)" in err
    assert not (tmp_path / "bn").exists()


def test_too_few_features_are_told_before_anything_is_encoded(tiny, monkeypatch):
    monkeypatch.setattr(Encoder, "encode", lambda *given: pytest.fail("encoded"))
    for change, message in (
        ({"key_dim": 17}, "`key_dim` 17 is more than the 16 features"),
        ({"projection": "segments", "codebooks": 6}, "6 disjoint segments of 3 features need 18"),
    ):
        with pytest.raises(OptionError, match=message):
            Bottleneck.fit(tiny("bert-encoder"), TABLES, **{**SIZES, **change})


@pytest.mark.parametrize(
    ("tables", "options", "error", "message"),
    [
        (None, {}, TaskError, "there is no such file"),
        ([{"text": "a", "label": "sideways"}], {}, TaskError, "class 'sideways' of the test rows is none of the 2"),
        (TABLES, {"columns": Columns(text="utterance")}, TaskError, "line 1: no utterance"),
        ([{"text": "a"}], {}, TaskError, "line 1: no label"),
        (TABLES, {"shadows": 3}, OptionError, "`shadows` 3 tells nothing"),
        (TABLES, {"seed": -1}, OptionError, "`seed` -1 must be at least 0"),
        (TABLES, {"device": "nonsense"}, OptionError, "`device` nonsense can't be used here"),
    ],
    ids=str,
)
def test_test_data_that_cannot_be_are_refused_before_the_encoder_is_loaded(
    tables, options, error, message, of_texts, unopened, tmp_path
):
    of_texts.save(tmp_path / "bn")
    data = tmp_path / "test.jsonl"
    if tables:
        written(data, tables)
    with pytest.raises(error, match=message.replace("(", r"\(")):
        verify_folder(tmp_path / "bn", data, **{**QUICK, **options})


def test_what_a_model_takes_is_known_without_its_weights(kind, tiny, unopened):
    assert kind_of(tiny(kind)) == "text"


def test_settings_have_the_defaults_of_the_fit():
    defaults = {name: given.default for name, given in inspect.signature(Bottleneck.fit_rows).parameters.items()}
    assert {field.name: field.default for field in fields(Settings)}.items() <= defaults.items()


# -- as in the fit -----------------------------------------------------------------------------------------------------


def test_columns_of_the_fit_are_remembered(tiny, run, tmp_path):
    names = {"text": "utterance", "label": "intent"}
    train, test = TABLES[:6] + TABLES[8:14], TABLES[6:8] + TABLES[14:]
    decoy = [{**table, "sentence": "the same for all"} for table in train]  # a usual name, which isn't the text here
    named = ("--column", "text=utterance", "--column", "label=intent")

    def ok(*arguments):
        status, out, err = run(*arguments)
        assert status == 0, err
        return json.loads(out) if "--json" in arguments else out

    data = written(tmp_path / "train.jsonl", decoy, **names)
    ok("bottleneck", "fit", "--encoder", tiny("bert-encoder"), "--data", data, *named, *SMALL, "-o", tmp_path / "bn")
    one = written(tmp_path / "one.jsonl", [{"text": train[7]["text"], "sentence": "x"}], **names)
    edit = ok("unlearn", tmp_path / "bn", "--forget-rows", one, "-o", tmp_path / "f", "--device", "cpu", "--json")
    assert edit["rows"] == 1
    other = written(tmp_path / "other.jsonl", [{"text": train[7]["text"]}], text="phrase")
    again = ("unlearn", tmp_path / "bn", "--forget-rows", other, "-o", tmp_path / "g", "--device", "cpu", "--json")
    assert ok(*again, "--column", "text=phrase")["rows"] == 1  # what is given goes first
    written(tmp_path / "test.jsonl", [{**table, "sentence": "x"} for table in test], **names)
    verify = ("bottleneck", "verify", tmp_path / "f", "--data", tmp_path / "test.jsonl", "--shadows", 0)
    found = ok(*verify, "--no-baselines", "--device", "cpu", "-o", tmp_path / "report", "--json")
    assert found["class_rows"] == [2, 2] and found["known_test_rows"] == 0
    before = Bottleneck.load(tmp_path / "bn")
    expected = before.predict([table["text"] for table in test], device="cpu")
    assert before.predict(tmp_path / "test.jsonl", device="cpu").tolist() == expected.tolist()
    ok("bottleneck", "undo", tmp_path / "f", "--eraser", tmp_path / "f-eraser", "-o", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "bn")


def blobs(rows, seed):
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % 3
    return (np.eye(6)[targets] * 6 + random.standard_normal((rows, 6))).astype(np.float32), np.array(list("abc"))[
        targets
    ]


def test_the_tensor_of_the_fit_is_remembered(run, tmp_path):
    for name, seed in (("train", 0), ("test", 1)):
        features, labels = blobs(60, seed)
        decoy = np.random.default_rng(seed).standard_normal((60, 6)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", features=decoy, embedding=features, y=labels)
    fit = ("bottleneck", "fit", "--features", tmp_path / "train.npz", "--feature", "embedding", *SMALL)
    assert run(*fit, "-o", tmp_path / "bn")[0] == 0
    bottleneck = Bottleneck.load(tmp_path / "bn")
    assert (bottleneck.predict(tmp_path / "test.npz") == blobs(60, 1)[1]).mean() > 0.9  # of the other tensor: a third
    np.savez(tmp_path / "two.npz", features=np.zeros((2, 6), np.float32), embedding=blobs(60, 0)[0][[4, 9]])
    assert unlearn(bottleneck, examples=tmp_path / "two.npz").positions.tolist() == [4, 9]
    edit = unlearn(bottleneck, "a")
    edit.apply(bottleneck).save(tmp_path / "forgot")
    edit.save(tmp_path / "eraser")
    assert verify_folder(tmp_path / "forgot", tmp_path / "test.npz", **QUICK).before["retain_accuracy"] > 0.9


@pytest.mark.parametrize("label", ["label", "intent"])
def test_features_beside_a_file_of_labels_alone(label, run, tmp_path):
    for name, seed in (("train", 0), ("test", 1)):
        features, labels = blobs(60, seed)
        np.savez(tmp_path / f"{name}.npz", X=features)
        (tmp_path / f"{name}.csv").write_text("\n".join([label, *labels]) + "\n")
    named = ("--column", f"label={label}") if label != "label" else ()
    beside = ("--features", tmp_path / "train.npz", "--data", tmp_path / "train.csv", *named)
    status, _, err = run("bottleneck", "fit", *beside, *SMALL, "-o", tmp_path / "bn")
    assert status == 0, err
    bottleneck = Bottleneck.load(tmp_path / "bn")
    plain = Bottleneck.fit_features(*blobs(60, 0), **SIZES)
    np.testing.assert_array_equal(bottleneck.entries, plain.entries)
    np.testing.assert_array_equal(bottleneck.training.digests, plain.training.digests)
    np.savez(tmp_path / "one.npz", X=blobs(60, 0)[0][[7]])
    forget = ("unlearn", tmp_path / "bn", "--forget-rows", tmp_path / "one.npz", "-o", tmp_path / "f", "--json")
    assert json.loads(run(*forget)[1])["rows"] == 1
    beside = ("--features", tmp_path / "test.npz", "--data", tmp_path / "test.csv")
    command = ("bottleneck", "verify", tmp_path / "f", *beside, "--shadows", 0, "--no-baselines", "--json")
    status, out, err = run(*command, "-o", tmp_path / "report")
    assert status == 0, err
    assert json.loads(out)["class_rows"] == [20, 20, 20]


def test_texts_beside_features_name_rows_by_text_or_features_but_not_some_of_each(run, tmp_path):
    features, labels = blobs(60, 0)
    np.savez(tmp_path / "train.npz", X=features)
    tables = [{"text": f"row {n}", "label": label} for n, label in enumerate(labels)]
    data = written(tmp_path / "train.jsonl", tables)
    fit = ("bottleneck", "fit", "--features", tmp_path / "train.npz", "--data", data, *SMALL, "-o")
    assert run(*fit, tmp_path / "bn")[0] == 0
    bottleneck = Bottleneck.load(tmp_path / "bn")
    assert unlearn(bottleneck, examples=["row 5", "row 9"]).positions.tolist() == [5, 9]
    assert unlearn(bottleneck, examples=features[[5, 9]]).positions.tolist() == [5, 9]
    written(data, [{**tables[0], "text": ""}, *tables[1:]])
    status, out, err = run(*fit, tmp_path / "other")
    assert (status, out) == (2, "") and "example 0, counted from 0, has no text, and others do" in err


# -- rows to forget ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        [TABLES[2]["text"], TABLES[9]["text"]],
        [(TABLES[2]["text"], ""), TABLES[9]["text"]],
        [{"text": TABLES[2]["text"]}, TABLES[9]],
    ],
    ids=["texts", "pairs", "tables"],
)
def test_texts_are_found_without_an_encoder(content, of_texts, unopened):
    assert unlearn(of_texts, examples=content).positions.tolist() == [2, 7]


def test_images_are_found_by_file_and_by_pixels(of_texts, tmp_path, unopened):
    """Named by the same bytes, or the same pixels, as in training."""
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (9, 8, 3), np.uint8) for _ in range(12)]
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for items in (files, pixels):
        held = of_texts.training.__class__(**{**vars_of(of_texts.training), "digests": encoders.image_digests(items)})
        bottleneck = of_texts.__class__(
            **{**vars_of(of_texts), "training": held, "encoder": {**of_texts.encoder, "kind": "image"}}
        )
        assert unlearn(bottleneck, examples=[items[3], items[8]]).positions.tolist() == [3, 8]
        assert unlearn(bottleneck, examples=[{"image": items[3]}]).positions.tolist() == [3]


def vars_of(thing):
    return {field.name: getattr(thing, field.name) for field in fields(thing)}


def test_numbers_on_the_command_line(run, tmp_path):
    features, labels = blobs(60, 0)
    features[17] = features[3]
    Bottleneck.fit_features(features, labels, **SIZES).save(tmp_path / "bn")

    def forget(numbers, name):
        return run("unlearn", tmp_path / "bn", "--forget-rows", numbers, "-o", tmp_path / name, "--device", "cpu")

    status, out, err = forget("3, 40", "f")
    assert status == 0, err
    assert "3 single rows (1 of them the same content again) forgotten" in out
    for wrong, message in (("60", "row 60 isn't one of the 60"), (",", "no rows to forget"), ("-1", "no dataset")):
        status, out, err = forget(wrong, "g")
        assert (status, out) == (2, "") and message in err and not (tmp_path / "g").exists()


def test_integer_labels_of_tables_are_labels_zero_too(tiny):
    tables = [{**table, "label": int(table["label"] == "up")} for table in TABLES]
    bottleneck = Bottleneck.fit(tiny("bert-encoder"), tables, **SIZES)
    assert bottleneck.classes == (0, 1)
    assert verify(bottleneck, [], [{"text": "a new text", "label": 0}], **QUICK).content["class_rows"] == [1, 0]


def test_an_encoder_decoder_and_an_unknown_class_are_refused_without_their_weights(copied, unopened):
    folder = copied("bert", "model")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "mystery"}, "transformers can't load it"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            Bottleneck.fit(folder, TABLES, **SIZES)
