"""A bottleneck fitted, asked, saved and loaded."""

import inspect
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.card import bottleneck_card
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import CLOSED
from surgery.unlearning.keys import fit_keys
from surgery.unlearning.values import Sgd
from tests.support.tiny import hashes

SIZES = {"codebooks": 8, "keys": 12, "key_dim": 3}


def blobs(rows=60, seed=0):
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % 3
    return (np.eye(6)[targets] * 6 + random.standard_normal((rows, 6))).astype(np.float32), targets


X, Y = blobs()
NAMES = np.array(["ash", "oak", "fir"])[Y]


@pytest.fixture(scope="module")
def bottleneck():
    return Bottleneck.fit_features(X, NAMES, **SIZES)


@pytest.fixture
def folder(bottleneck, tmp_path):
    return bottleneck.save(tmp_path / "bn")


# -- fitting and asking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({}, 0.93),
        ({"values": "counts"}, 0.9),
        ({"top": 2}, 0.93),
        ({"key_init": "ema"}, 0.9),
        ({"key_init": "sample"}, 0.9),
        ({"projection": "segments", "codebooks": 8, "key_dim": 8}, 0.85),
    ],
    ids=str,
)
def test_digits_are_told_apart(settings, least):
    pixels, digits = load_digits(return_X_y=True)
    sizes = {"codebooks": 32, "keys": 64, "key_dim": 8, **settings}
    found = Bottleneck.fit_features(pixels[:1000], digits[:1000], **sizes)
    assert (found.predict(pixels[1000:]) == digits[1000:]).mean() >= least


def test_labels_and_features_of_any_kind_give_the_same(bottleneck):
    numbers = Bottleneck.fit_features(X, Y, **SIZES)
    assert numbers.classes == (0, 1, 2) and bottleneck.classes == ("ash", "fir", "oak")
    for features, labels in ((torch.from_numpy(X), torch.from_numpy(Y)), (X.reshape(60, 2, 3), Y.tolist())):
        same = Bottleneck.fit_features(features, labels, **SIZES)
        np.testing.assert_array_equal(same.entries, numbers.entries)
        np.testing.assert_array_equal(same.predict(features), numbers.predict(X))
    assert (numbers.predict(X) == Y).all() and numbers.predict(X).dtype.kind == "i"
    assert (bottleneck.predict(X) == NAMES).all() and bottleneck.predict(X[:1])[0] == "ash"
    assert (bottleneck.predict(Rows.of(X)) == NAMES).all() and (bottleneck.predict(X.tolist()) == NAMES).all()


def test_same_seed_same_bits(bottleneck):
    assert Bottleneck.fit_features(X, NAMES, **SIZES).fingerprint == bottleneck.fingerprint
    other = Bottleneck.fit_features(X, NAMES, **SIZES, seed=1)
    assert other.fingerprint != bottleneck.fingerprint
    assert not np.array_equal(other.selector.projections, bottleneck.selector.projections)


def test_labels_have_no_way_into_the_keys(bottleneck):
    mixed = Bottleneck.fit_features(X, np.random.default_rng(0).permutation(NAMES), **SIZES)
    for name in ("center", "projections", "keys", "states"):
        assert getattr(mixed.selector, name).tobytes() == getattr(bottleneck.selector, name).tobytes()
    assert mixed.training.ids.tobytes() == bottleneck.training.ids.tobytes()
    assert not {"labels", "targets", "y"} & set(inspect.signature(fit_keys).parameters)


def test_keys_from_other_rows(bottleneck):
    others = blobs(40, seed=5)[0]
    found = Bottleneck.fit_features(X, NAMES, keys_from=others, **SIZES)
    placed = Bottleneck.fit_features(others, blobs(40)[1], **SIZES)
    assert found.selector.keys.tobytes() == placed.selector.keys.tobytes()
    assert found.training.placed.tolist() == sorted(Rows.of(others).digests.tolist())
    assert bottleneck.training.placed.tolist() == sorted(Rows.of(X).digests.tolist())
    assert (found.predict(X) == NAMES).all()
    assert found.settings["keys_from"] == "other rows" and bottleneck.settings["keys_from"] == "training rows"
    rows = np.arange(0, 60, 2)
    assert not found.training.saw(rows) and bottleneck.training.saw(rows) == 30


def test_cached_ids_are_those_that_rows_select(bottleneck):
    np.testing.assert_array_equal(bottleneck.select(X), bottleneck.training.ids)
    top = Bottleneck.fit_features(X, Y, top=3, **SIZES)
    np.testing.assert_array_equal(top.select(X), top.training.ids)
    np.testing.assert_array_equal(top.training.ids[:, :, :1], bottleneck.training.ids)


def test_rows_that_abstain_are_none_and_the_others_labels(bottleneck):
    alone = bottleneck.training.ids[0, :, 0] + np.arange(8) * 12
    some = bottleneck.masked(np.sort(alone.astype(np.int64)), "drop")
    answer, found = some.answer(X), some.predict(X)
    assert found[0] is None and answer.targets[0] == -1 and not answer.logits[0].any()
    assert [label is None for label in found] == answer.abstained.tolist()
    assert {type(label) for label in found[~answer.abstained]} <= {str, np.str_}
    assert 0 < answer.abstained.sum() < 60
    assert None not in bottleneck.predict(X)


# -- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"values": "counts", "top": 2}, {"projection": "segments", "codebooks": 2}], ids=str
)
def test_a_saved_one_is_the_same_in_every_byte(settings, tmp_path):
    found = Bottleneck.fit_features(X, Y, **{**SIZES, **settings}, sgd=Sgd(epochs=2))
    again = Bottleneck.load(found.save(tmp_path / "one"))
    assert again.fingerprint == found.fingerprint and again.recipe == found.recipe
    np.testing.assert_array_equal(again.answer(X).logits, found.answer(X).logits)
    np.testing.assert_array_equal(again.predict(X), found.predict(X))
    again.save(tmp_path / "two")
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
    assert set(hashes(tmp_path / "one")) == {
        "README.md", "config.json", "model.safetensors", "report.json", "training.safetensors",
    }  # fmt: skip
    edited = unlearn(again, 1).apply(again)
    loaded = Bottleneck.load(edited.save(tmp_path / "three"))
    assert loaded.fingerprint == edited.fingerprint and loaded.history == edited.history
    assert loaded.predict(X).tolist() == edited.predict(X).tolist()


def test_another_folder_is_only_replaced_when_asked(bottleneck, folder):
    before = hashes(folder)
    with pytest.raises(Exception, match="exists already"):
        bottleneck.save(folder)
    other = Bottleneck.fit_features(X, Y, **SIZES)
    other.save(folder, overwrite=True)
    assert hashes(folder) != before and Bottleneck.load(folder).fingerprint == other.fingerprint


def test_without_its_training_rows_it_answers_and_refuses_edits(bottleneck, folder):
    (folder / "training.safetensors").unlink()
    found = Bottleneck.load(folder)
    np.testing.assert_array_equal(found.predict(X), bottleneck.predict(X))
    for do in (lambda: unlearn(found, "oak"), found.refit_entries, found.current_ids, lambda: unlearn(found, rows=[1])):
        with pytest.raises(BottleneckError, match="comes without its training rows"):
            do()


def test_the_fingerprint_sees_every_array_and_setting(bottleneck):
    seen = {bottleneck.fingerprint}

    def changed(array):
        other = array.copy()
        other.reshape(-1).view(np.uint8)[0] ^= 1
        return other

    selector, training = bottleneck.selector, bottleneck.training
    for name in ("center", "projections", "keys", "states"):
        seen.add(
            replace(bottleneck, selector=replace(selector, **{name: changed(getattr(selector, name))})).fingerprint
        )
    for name in ("features", "ids", "targets", "digests", "placed"):
        seen.add(
            replace(bottleneck, training=replace(training, **{name: changed(getattr(training, name))})).fingerprint
        )
    for change in (
        {"entries": changed(bottleneck.entries)},
        {"classes": ("ash", "fir", "elm")},
        {"settings": {**bottleneck.settings, "seed": 5}},
        {"encoder": {"folder": "x"}},
        {"history": ({"hash": "1"},)},
        {"training": None},
    ):
        seen.add(replace(bottleneck, **change).fingerprint)
    assert len(seen) == 1 + 4 + 5 + 6
    assert replace(bottleneck, report={"time": 1}).fingerprint == bottleneck.fingerprint


def rewrite(file, **changes):
    arrays = {name: array.copy() for name, array in load_file(file).items()}
    for name, change in changes.items():
        arrays[name] = np.ascontiguousarray(change(arrays[name]))
    save_file(arrays, file)


def set_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), r"holds no config\.json"),
    "no report": (lambda f: (f / "report.json").unlink(), r"holds no report\.json"),
    "no model": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "cut model": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "can't be read"),
    "cut training": (lambda f: (f / "training.safetensors").write_bytes(b"1"), "can't be read"),
    "cut config": (lambda f: (f / "config.json").write_text('{"format": '), "can't be read"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "can't be read"),
    "list": (lambda f: (f / "config.json").write_text("[1]"), "isn't a JSON table"),
    "format": (lambda f: set_json(f / "config.json", format="surgery skill 1"), "isn't a surgery bottleneck 1's"),
    "classes": (lambda f: set_json(f / "config.json", classes=["ash", "fir"]), "is damaged"),
    "settings": (lambda f: set_json(f / "config.json", settings={}), "is damaged"),
    "no history": (lambda f: set_json(f / "config.json", history=None), "is damaged"),
    "top": (lambda f: set_json(f / "config.json", settings={**json.loads((f / "config.json").read_text())["settings"], "top": 2}), "is damaged"),
    "keys": (lambda f: rewrite(f / "model.safetensors", keys=lambda a: a[:, :-1]), "is damaged"),
    "flat keys": (lambda f: rewrite(f / "model.safetensors", keys=lambda a: a.reshape(-1)), "is damaged"),
    "table": (lambda f: rewrite(f / "model.safetensors", table=lambda a: a.astype(np.float64)), "is damaged"),
    "width": (lambda f: rewrite(f / "model.safetensors", center=lambda a: a[:-1]), "is damaged"),
    "rows": (lambda f: rewrite(f / "training.safetensors", digests=lambda a: a[:-1]), "is damaged"),
    "ids": (lambda f: rewrite(f / "training.safetensors", ids=lambda a: a + 20), "is damaged"),
    "targets": (lambda f: rewrite(f / "training.safetensors", targets=lambda a: a + 1), "is damaged"),
    "target type": (lambda f: rewrite(f / "training.safetensors", targets=lambda a: a.astype(np.float32)), "is damaged"),
}  # fmt: skip


def unsealed(folder):
    """The folder as earlier versions wrote it: without checksums."""
    for file in folder.glob("*.json"):
        table = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in table.items() if key != "checksum"}))
    for file in folder.glob("*.safetensors"):
        save_file(load_file(file), file)
    return folder


@pytest.mark.parametrize("sealed", [True, False], ids=["with checksums", "without"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_in_a_sentence(name, sealed, folder):
    change, message = DAMAGE[name]
    change(folder if sealed else unsealed(folder))
    with pytest.raises(BottleneckError, match=message) as error:
        Bottleneck.load(folder)
    assert not str(error.value).endswith(".") and ": " in str(error.value)


def flipped(file, random):
    raw = bytearray(file.read_bytes())
    raw[random.integers(len(raw))] ^= 1 << random.integers(8)
    file.write_bytes(raw)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "config.json", "report.json"])
def test_no_flipped_bit_is_loaded(name, bottleneck, folder):
    """Refused, or a bit that means nothing, such as a space in JSON."""
    random, refused, whole = np.random.default_rng(0), 0, (folder / name).read_bytes()
    for _ in range(200):
        flipped(folder / name, random)
        try:
            found = Bottleneck.load(folder)
        except BottleneckError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert found.fingerprint == bottleneck.fingerprint and found.report == bottleneck.report
        (folder / name).write_bytes(whole)
    assert refused >= (200 if name == "training.safetensors" else 160)


def test_a_checksum_that_went_missing_is_damage(folder):
    for file in ("config.json", "model.safetensors", "training.safetensors", "report.json"):
        other = shutil.copytree(folder, folder.parent / file)
        one = folder.parent / "one" / file
        one.mkdir(parents=True)
        shutil.copyfile(folder / file, one / file)
        shutil.copyfile(unsealed(one) / file, other / file)
        with pytest.raises(BottleneckError, match="a file has lost its checksum"):
            Bottleneck.load(other)


def test_older_folders_are_loaded_and_said_to_be_unchecked(bottleneck, folder, caplog):
    Bottleneck.load(folder)
    assert not caplog.messages
    edit = unlearn(bottleneck, "oak")
    found = Bottleneck.load(unsealed(folder))
    assert caplog.messages == [
        f"{folder} has no checksums, as an earlier version wrote it: whether a file is damaged can't be checked"
    ]
    assert found.fingerprint == bottleneck.fingerprint  # so that erasers made for it still fit
    assert edit.undo(edit.apply(found)).fingerprint == bottleneck.fingerprint
    Bottleneck.load(found.save(folder, overwrite=True))
    assert len(caplog.messages) == 1


def test_training_rows_left_out_leave_no_hash_of_them(bottleneck, folder):
    told = load_file(folder / "training.safetensors")
    with safe_open(folder / "training.safetensors", "np") as opened:
        checksum = opened.metadata()["checksum"]
    (folder / "training.safetensors").unlink()
    left = b"".join(file.read_bytes() for file in folder.iterdir())
    assert checksum.encode() not in left and told["features"].tobytes() not in left
    assert Bottleneck.load(folder).training is None


def test_a_file_or_nothing_is_no_bottleneck(folder, tmp_path):
    for wrong in (tmp_path / "nowhere", folder / "config.json"):
        with pytest.raises(BottleneckError, match=r"holds no config\.json"):
            Bottleneck.load(wrong)


def test_an_array_missing_from_a_file(folder):
    for file in ("model.safetensors", "training.safetensors"):
        for name in load_file(folder / file):
            other = shutil.copytree(folder, folder.parent / name)
            save_file({key: array for key, array in load_file(folder / file).items() if key != name}, other / file)
            with pytest.raises(BottleneckError, match="is damaged"):
                Bottleneck.load(other)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": None}, TaskError, "the training rows have no labels"),
        ({"labels": np.zeros(60, int)}, TaskError, "all training rows are of class 0: two classes are needed"),
        ({"labels": Y[:-1]}, TaskError, "60 feature rows and 59 labels"),
        ({"labels": 5}, TaskError, "labels are '5': give a list of integers or strings, one a row"),
        ({"labels": "a" * 60}, TaskError, "give a list of integers or strings"),
        ({"features": [[1, 2], [3]]}, TaskError, "features aren't rows of one length"),
        ({"seed": -1}, OptionError, "`seed` -1 must be at least 0"),
        ({"features": np.where(X[7, 2] == X, np.nan, X)}, TaskError, "feature row 7, counted from 0, holds NaN"),
        ({"features": np.where(X[7, 2] == X, np.inf, X)}, TaskError, "holds infinity"),
        ({"keys": 61}, OptionError, "`keys` 61 must lie between 2 and 60"),
        ({"keys": 1}, OptionError, "`keys` 1 must lie between 2 and 60"),
        ({"top": 13}, OptionError, "`top` 13 is more than the 12 keys"),
        ({"top": 0}, OptionError, "`top` 0 must be at least 1"),
        ({"codebooks": 0}, OptionError, "`codebooks` 0 must be at least 1"),
        ({"key_dim": 0}, OptionError, "`key_dim` 0 must be at least 1"),
        ({"key_dim": 7}, OptionError, "`key_dim` 7 is more than the 6 features"),
        ({"projection": "segments"}, OptionError, "8 disjoint segments of 3 features need 24, and there are 6"),
        ({"projection": "none"}, OptionError, "`projection` none isn't one of"),
        ({"values": "none"}, OptionError, "`values` none isn't one of"),
        ({"keys_from": X[:, :5]}, TaskError, "have 5 features, the training rows 6"),
        ({"keys_from": X[:10]}, OptionError, "`keys` 12 must lie between 2 and 10"),
        ({"keys_from": X * np.nan}, TaskError, "holds NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_sentence(change, error, message):
    given = {"features": X, "labels": NAMES, **SIZES, **change}
    with pytest.raises(error) as raised:
        Bottleneck.fit_features(**given)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (X[:, :5], "the rows have 5 features, and this bottleneck takes 6"),
        (X[0], "aren't rows"),
        (X[:0], "aren't rows"),
        (X * np.nan, "feature row 0, counted from 0, holds NaN"),
        ([[1.0, 2.0], [3.0]], "features aren't rows of one length"),
        ([], "aren't rows"),
        (["a text"], "was fitted on features, so it can't read texts"),
        ([("a", "pair")], "was fitted on features, so it can't read texts"),
        ("nowhere.npz", "there is no such file"),
    ],
    ids=["width", "one row", "none", "nan", "ragged", "empty", "texts", "pairs", "file"],
)
def test_rows_that_do_not_fit_are_refused(bottleneck, rows, message):
    with pytest.raises(TaskError, match=message):
        bottleneck.predict(rows)


# -- from cached ids -------------------------------------------------------------------------------------------------


def test_ids_and_selections_after_keys_are_closed(bottleneck):
    pairs = np.array([0, 5, 13, 40, 41, 42, 95])
    closed = bottleneck.masked(pairs, "next")
    ids = closed.current_ids()
    for row in range(60):
        for codebook in range(8):
            place = (X[row] - bottleneck.selector.center).astype(np.float64) @ bottleneck.selector.projections[codebook]
            away = ((bottleneck.selector.keys[codebook] - place) ** 2).sum(1)
            away[closed.selector.states[codebook] == CLOSED] = np.inf
            assert ids[row, codebook, 0] == away.argmin()
    np.testing.assert_array_equal(closed.current_ids(np.array([4, 9])), ids[[4, 9]])
    expected = np.zeros((8, 12), int)
    for row in ids[:, :, 0]:
        expected[np.arange(8), row] += 1
    np.testing.assert_array_equal(closed.current_selections(), expected)
    dropped = bottleneck.masked(pairs, "drop")
    np.testing.assert_array_equal(dropped.current_ids(), bottleneck.training.ids)
    np.testing.assert_array_equal(bottleneck.current_ids(np.array([4, 9])), bottleneck.training.ids[[4, 9]])


def test_refitting_from_ids_is_fitting(bottleneck):
    np.testing.assert_array_equal(bottleneck.refit_entries(), bottleneck.entries)
    everything = bottleneck.masked(np.arange(20), "next").refitted(np.arange(60))
    np.testing.assert_array_equal(everything.entries, bottleneck.entries)
    assert not everything.selector.states.any() and everything.history == () and everything.training is None


def test_cards_name_an_encoder_without_saying_where_it_lies(bottleneck):
    spec = {"kind": "text", "pooling": "mean", "width": 6, "fingerprint": "0" * 64}
    for source, shown in (
        ("/home/me/models/bert", "bert"),
        ("~/models/bert", "bert"),
        ("../models/bert", "bert"),
        ("org/bert", "org/bert"),
    ):
        card = bottleneck_card(replace(bottleneck, encoder={**spec, "source": source}).facts)
        assert f"encoder: `{shown}` (text" in card and "models" not in card


def test_examples_in_memory_are_as_those_of_a_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    examples = [
        {"text": text, "label": label} for text, label in zip(("good film", "bad film") * 6, "ab" * 6, strict=True)
    ]
    examples[0]["text"], examples[1]["text_pair"] = "great story", "boring"
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(example) for example in examples))
    sizes = {"codebooks": 4, "keys": 4, "key_dim": 3, "device": "cpu"}
    ours, theirs = (Bottleneck.fit(tiny("bert-encoder"), data, **sizes) for data in (examples, tmp_path / "data.jsonl"))
    assert ours.fingerprint == theirs.fingerprint
    with pytest.raises(TaskError, match="example 1, counted from 0"):
        Bottleneck.fit(tiny("bert-encoder"), [examples[0], {"text": "no label"}], **sizes)
