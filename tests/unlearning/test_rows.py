"""Labelled feature rows: from arrays, features files, and texts and images by way of an encoder."""

import json

import numpy as np
import pytest
import torch
import transformers
import xxhash
from PIL import Image
from safetensors.torch import save_file

from surgery.errors import OptionError, TaskError
from surgery.tasks.examples import Columns
from surgery.unlearning.features.encoders import Encoder
from surgery.unlearning.features.rows import Rows, read_rows
from tests.support.tiny import _quiet

NUMBERS = np.arange(12, dtype=np.float32).reshape(4, 3) - 2.5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def texts(tiny):
    return Encoder.open(tiny("bert"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An encoder of images."""
    folder = tmp_path_factory.mktemp("image")
    with _quiet():
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        transformers.ResNetModel(config).save_pretrained(folder)
        transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return Encoder.open(folder)


def lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


EXAMPLES = [{"text": "good film", "label": "pos"}, {"text": "bad book", "label": "neg"}, {"text": "fun", "label": 7}]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8, ">f4"])
def test_arrays_of_any_numbers_become_float32_and_digests_are_of_what_was_given(dtype):
    given = np.arange(12).reshape(4, 3).astype(dtype)
    rows = Rows.of(given, [3, 1, 1, 3])
    assert rows.features.dtype == np.float32 and len(rows) == 4 and rows.labels == (3, 1, 1, 3)
    np.testing.assert_array_equal(rows.features, np.arange(12).reshape(4, 3))
    assert rows.digests.tolist() == [xxhash.xxh3_64_intdigest(row.tobytes()) for row in given]


def test_tensors_images_and_strided_arrays_are_taken_row_by_row():
    pixels = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4) * 10
    rows = Rows.of(pixels)
    assert rows.labels is None and rows.features.max() == 230
    np.testing.assert_array_equal(rows.features, pixels.reshape(2, 12).numpy().astype(np.float32))
    np.testing.assert_array_equal(Rows.of(pixels.numpy()).digests, rows.digests)
    half = torch.tensor([[1.5, -2.0], [0.25, 8.0]], dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(Rows.of(half).features, [[1.5, -2], [0.25, 8]])
    turned = np.asfortranarray(NUMBERS)[:, ::-1]
    np.testing.assert_array_equal(Rows.of(turned).digests, Rows.of(turned.copy()).digests)
    assert len(set(Rows.of(NUMBERS).digests.tolist())) == 4


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (np.array([1, 0, 2, 1], np.uint8), (1, 0, 2, 1)),
        (torch.tensor([1, 0, 2, 1]), (1, 0, 2, 1)),
        ([np.int64(1), 0, 2, 1], (1, 0, 2, 1)),
        (np.array(["b", "a", "b", "b"]), ("b", "a", "b", "b")),
        (np.array(["b", "a", "b", "b"], object), ("b", "a", "b", "b")),
        (("b", np.str_("a"), "b", "b"), ("b", "a", "b", "b")),
    ],
)
def test_labels_become_plain_integers_or_strings(given, labels):
    found = Rows.of(NUMBERS, given).labels
    assert found == labels and {type(label) for label in found} <= {int, str}


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (NUMBERS[0], None, r"shape \(3,\) aren't rows"),
        (NUMBERS[:0], None, r"shape \(0, 3\) aren't rows"),
        (NUMBERS[:, :0], None, r"shape \(4, 0\) aren't rows"),
        (NUMBERS > 0, None, "type bool aren't numbers"),
        (np.array([["a"]]), None, "aren't numbers"),
        (np.array([[None]]), None, "type object aren't numbers"),
        (np.where(NUMBERS == 3.5, np.nan, NUMBERS), None, "feature row 2, counted from 0, holds NaN"),
        (np.where(NUMBERS == 0.5, -np.inf, NUMBERS), None, "feature row 1, counted from 0, holds infinity"),
        (np.full((2, 2), 1e300), None, "feature row 0, counted from 0, holds infinity"),
        (NUMBERS, [1, 2, 3], "4 feature rows and 3 labels"),
        (NUMBERS, [True, False, True, True], "label 0, counted from 0, is True: labels are integers or strings"),
        (NUMBERS, np.array([1.0, 2, 3, 4]), "label 0, counted from 0, is 1.0"),
        (NUMBERS, [0, 1, None, 1], "label 2, counted from 0, is None"),
        (NUMBERS, np.zeros((4, 1), int), r"label 0, counted from 0, is \[0\]"),
        (NUMBERS, ["a", "b", 1, "a"], "labels are 'a' and 1"),
    ],
)
def test_arrays_that_are_no_rows_are_refused(features, labels, message):
    with pytest.raises(TaskError, match=message):
        Rows.of(features, labels)


def test_taking_rows():
    rows = Rows.of(NUMBERS, list("abca"))
    taken = rows.take(np.array([3, 0]))
    np.testing.assert_array_equal(taken.features, NUMBERS[[3, 0]])
    assert taken.labels == ("a", "a") and taken.digests.tolist() == rows.digests[[3, 0]].tolist()
    assert Rows.of(NUMBERS).take([1]).labels is None
    with pytest.raises(TaskError, match="at least one"):
        rows.take([])


# Features files


def held(folder, ending, **arrays):
    """A features file of these arrays."""
    if ending == "npz":
        np.savez_compressed(folder / "held.npz", **arrays)
    else:
        save_file({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, folder / "held.safetensors")
    return folder / f"held.{ending}"


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_features_files_are_read(tmp_path, ending):
    y = np.array([1, 0, 1, 1])
    for label in ("label", "labels", "y"):
        rows = read_rows(held(tmp_path, ending, features=NUMBERS, **{label: y}))
        np.testing.assert_array_equal(rows.features, NUMBERS)
        assert rows.labels == (1, 0, 1, 1)
        np.testing.assert_array_equal(rows.digests, Rows.of(NUMBERS).digests)
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 2, 2)
    both = held(tmp_path, ending, features=NUMBERS, pixels=pixels, y=y)
    np.testing.assert_array_equal(read_rows(both).features, NUMBERS)
    np.testing.assert_array_equal(read_rows(both, features="pixels").features, np.arange(16).reshape(4, 4))
    np.testing.assert_array_equal(
        read_rows(held(tmp_path, ending, A=NUMBERS, X=NUMBERS + 1, y=y)).features, NUMBERS + 1
    )
    only = held(tmp_path, ending, states=NUMBERS, y=y, ids=np.zeros((4, 9), np.int64), norm=NUMBERS[0])
    np.testing.assert_array_equal(read_rows(str(only)).features, NUMBERS)
    assert read_rows(held(tmp_path, ending, X=NUMBERS), labels_needed=False).labels is None


def test_half_precision_and_string_labels(tmp_path):
    save_file({"X": torch.ones(2, 2, dtype=torch.bfloat16), "y": torch.tensor([0, 1])}, tmp_path / "a.safetensors")
    assert read_rows(tmp_path / "a.safetensors").features.tolist() == [[1, 1], [1, 1]]
    assert read_rows(held(tmp_path, "npz", X=NUMBERS, y=np.array(list("abca")))).labels == tuple("abca")


def test_classes_beside_the_file_name_the_labels(tmp_path):
    file = held(tmp_path, "safetensors", features=NUMBERS, label=np.array([2, 0, 1, 2]))
    classes = tmp_path / "classes.json"
    classes.write_text('["cat", "dog", "ox"]')
    assert read_rows(file).labels == ("ox", "cat", "dog", "ox")
    assert read_rows(held(tmp_path, "npz", X=NUMBERS, y=np.array(list("abca")))).labels == tuple("abca")
    for content, message in [
        ('["cat", "dog"]', "holds the label 2, but .*classes.json names only 0 to 1"),
        ('{"0": "cat"}', "isn't a list of names"),
        ("[1, 2, 3]", "isn't a list of names"),
        ("[", "isn't readable JSON"),
    ]:
        classes.write_text(content)
        with pytest.raises(TaskError, match=message):
            read_rows(file)
    classes.write_text('["cat", "dog", "ox"]')
    with pytest.raises(TaskError, match="holds the label -1"):
        read_rows(held(tmp_path, "safetensors", features=NUMBERS, label=np.array([2, 0, -1, 2])))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("arrays", "features", "message"),
    [
        ({"features": NUMBERS}, None, r"holds no labels, only features \(4, 3\)"),
        ({"A": NUMBERS, "B": NUMBERS, "y": np.arange(4)}, None, r"holds A \(4, 3\), B \(4, 3\), y \(4,\), and no name"),
        ({"y": np.arange(4)}, None, r"holds y \(4,\), and no name"),
        ({"X": NUMBERS, "y": np.arange(4)}, "Z", r"holds no tensor Z, only X \(4, 3\), y \(4,\)"),
        ({"X": NUMBERS, "y": np.arange(3)}, None, "held.*: there are 4 feature rows and 3 labels"),
        ({"X": NUMBERS, "y": NUMBERS[:, 0].copy()}, None, "held.*: label 0, counted from 0, is -2.5"),
        ({"X": NUMBERS * np.float32(np.inf), "y": np.arange(4)}, None, "held.*: feature row 0"),
    ],
)
def test_features_files_that_do_not_fit_are_refused(tmp_path, ending, arrays, features, message):
    with pytest.raises(TaskError, match=message):
        read_rows(held(tmp_path, ending, **arrays), features=features)


def test_damaged_features_files_are_refused_and_nothing_pickled_is_run(tmp_path):
    for ending in ("npz", "safetensors"):
        file = held(tmp_path, ending, X=NUMBERS, y=np.arange(4))
        whole = file.read_bytes()
        for raw in (b"", whole[:-30], b"nonsense" * 9):
            file.write_bytes(raw)
            with pytest.raises(TaskError, match="can't be read as a features file"):
                read_rows(file)
        file.unlink()
        with pytest.raises(TaskError, match="no such file"):
            read_rows(file)
    np.savez(tmp_path / "objects.npz", X=np.array([[{}]], object), y=np.arange(1))
    with pytest.raises(TaskError, match="can't be read as a features file"):
        read_rows(tmp_path / "objects.npz")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, NUMBERS)
    with pytest.raises(TaskError, match="can't be read as a features file"):
        read_rows(tmp_path / "one.npz")


# Examples and an encoder


def test_texts_are_encoded_and_found_again_in_another_file(tmp_path, texts):
    rows = read_rows(lines(tmp_path / "a.jsonl", EXAMPLES), encoder=texts)
    assert rows.labels == ("pos", "neg", "7")
    np.testing.assert_array_equal(rows.features, texts.encode(["good film", "bad book", "fun"]))
    (tmp_path / "b.csv").write_text("review,stars\nfun,1\n")
    other = read_rows(tmp_path / "b.csv", encoder=texts, columns=Columns("review", "", "stars"))
    assert other.digests.tolist() == [rows.digests[2]]
    np.testing.assert_allclose(other.features[0], rows.features[2], atol=1e-5)


def test_pairs_keep_both_texts(tmp_path, texts):
    pairs = [{"text": "a film", "text_pair": "so good", "label": "x"}, {"text": "a film", "label": "y"}]
    rows = read_rows(lines(tmp_path / "a.jsonl", pairs), encoder=texts)
    np.testing.assert_array_equal(rows.features, texts.encode([("a film", "so good"), "a film"]))
    assert len(set(rows.digests.tolist())) == 2


def test_labels_may_be_missing_only_if_none_are_needed(tmp_path, texts):
    bare = lines(tmp_path / "bare.jsonl", [{"text": "fun"}, {"text": "bad", "label": "neg"}])
    with pytest.raises(TaskError, match="line 1: no label"):
        read_rows(bare, encoder=texts)
    rows = read_rows(bare, encoder=texts, labels_needed=False)
    assert len(rows) == 2 and rows.labels is None
    labelled = lines(tmp_path / "full.jsonl", EXAMPLES)
    assert read_rows(labelled, encoder=texts, labels_needed=False).labels == ("pos", "neg", "7")
    with pytest.raises(TaskError, match="line 1: no text"):
        read_rows(lines(tmp_path / "empty.jsonl", [{"label": "x"}]), encoder=texts, labels_needed=False)


def test_features_of_one_file_go_with_the_labels_of_another(tmp_path, texts):
    data = lines(tmp_path / "a.jsonl", EXAMPLES)
    file = held(tmp_path, "npz", X=NUMBERS[:3], Z=NUMBERS[1:])
    rows = read_rows(data, features_file=file)
    np.testing.assert_array_equal(rows.features, NUMBERS[:3])
    assert rows.labels == ("pos", "neg", "7")
    np.testing.assert_array_equal(rows.digests, read_rows(data, encoder=texts).digests)
    np.testing.assert_array_equal(read_rows(data, features_file=file, features="Z").features, NUMBERS[1:])
    with pytest.raises(TaskError, match=r"holds 4 feature rows, but .*a.jsonl has 3 examples"):
        read_rows(data, features_file=held(tmp_path, "npz", X=NUMBERS))


def test_arguments_that_do_not_go_together_are_refused(tmp_path, texts):
    data, file = lines(tmp_path / "a.jsonl", EXAMPLES), held(tmp_path, "npz", X=NUMBERS, y=np.arange(4))
    for source, options, message in [
        (data, {}, "a.jsonl holds no features: give `encoder`, or a .safetensors or .npz file"),
        (file, {"encoder": texts}, "held.npz holds features already"),
        (data, {"encoder": texts, "features_file": file}, "held.npz holds features already"),
        (data, {"encoder": texts, "features": "X"}, "a.jsonl is no features file that could hold a tensor X"),
        (file, {"features_file": file}, "give no other one"),
        (file, {"columns": Columns("a")}, "no columns"),
    ]:
        with pytest.raises(OptionError, match=message):
            read_rows(source, **options)


# Images


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 7, 3), value, np.uint8)).save(path)
    return path


def test_a_folder_of_classes_is_read(tmp_path, images):
    names = ["cat/1.png", "cat/2.JPG", "dog/1.webp", "ox/0.bmp", "ox/7.jpeg"]
    files = [picture(tmp_path / "pets" / name, 40 * number) for number, name in enumerate(names)]
    (tmp_path / "pets/cat/notes.txt").write_text("no image")
    picture(tmp_path / "pets/.trash/9.png", 1)
    rows = read_rows(tmp_path / "pets", encoder=images)
    assert rows.labels == ("cat", "cat", "dog", "ox", "ox")
    np.testing.assert_array_equal(rows.features, images.encode(files))
    assert rows.digests.tolist() == [xxhash.xxh3_64_intdigest(file.read_bytes()) for file in files]
    (tmp_path / "pets/dog/0.png").write_bytes(b"nonsense")
    with pytest.raises(TaskError, match=r"dog/0.png can't be read"):
        read_rows(tmp_path / "pets", encoder=images)
    (tmp_path / "flat").mkdir()
    with pytest.raises(TaskError, match=r"flat holds no images: put .png"):
        read_rows(tmp_path / "flat", encoder=images)


def test_a_file_names_images_beside_it_or_elsewhere(tmp_path, images):
    near, far = picture(tmp_path / "data/in/a.png", 10), picture(tmp_path / "else/b.png", 200)
    table = [{"image": "in/a.png", "label": "dark", "text": "not this"}, {"image": str(far), "label": "light"}]
    rows = read_rows(lines(tmp_path / "data/a.jsonl", table), encoder=images)
    assert rows.labels == ("dark", "light")
    np.testing.assert_array_equal(rows.features, images.encode([near, far]))
    (tmp_path / "data/b.csv").write_text("photo\nin/a.png\n")
    bare = read_rows(tmp_path / "data/b.csv", encoder=images, columns=Columns("photo"), labels_needed=False)
    assert bare.labels is None and bare.digests.tolist() == [rows.digests[0]]
    with pytest.raises(TaskError, match=r"in/none.png can't be read \(No such file"):
        read_rows(lines(tmp_path / "data/c.jsonl", [{"image": "in/none.png", "label": "x"}]), encoder=images)
    with pytest.raises(TaskError, match="line 1: no image"):
        read_rows(lines(tmp_path / "data/d.jsonl", [{"text": "fun", "label": "x"}]), encoder=images)
    with pytest.raises(TaskError, match="images come as a folder of classes"):
        read_rows("owner/dataset", encoder=images)
