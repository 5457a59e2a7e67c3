"""Erasers: edits in a chain, saved, damaged, and the way back, bit for bit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.eraser import Eraser
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import OPEN, SILENT
from tests.support.edits import MASKS, NAMES, REST, fitted, flat
from tests.support.tiny import hashes

CHAINS = {
    "sgd": [
        {"forget": "ant"},
        {"rows": [3, 17], "method": "refit"},
        {"forget": "cat", "method": "examples", "answer": "drop"},
    ],
    "counts": [
        {"rows": [9], "method": "counts"},
        {"forget": "dog", "answer": "drop"},
        {"forget": "bee", "method": "counts"},
    ],
}


@pytest.mark.parametrize("values", ["sgd", "counts"])
def test_edits_chain_and_are_undone_in_order_to_the_same_files(values, tmp_path):
    fitted(values).save(tmp_path / "0")
    now, previous = Bottleneck.load(tmp_path / "0"), ""
    for number, how in enumerate(CHAINS[values]):
        edit = unlearn(now, **how)
        assert edit.previous == previous
        edit.save(tmp_path / f"eraser{number}")
        now = Eraser.load(tmp_path / f"eraser{number}").apply(now)
        now.save(tmp_path / f"{number + 1}")
        now, previous = Bottleneck.load(tmp_path / f"{number + 1}"), edit.hash
    erasers = [Eraser.load(tmp_path / f"eraser{number}") for number in range(3)]
    assert [one["hash"] for one in now.history] == [eraser.hash for eraser in erasers]
    for number, count in ((0, "2 later edits"), (1, "1 later edit ")):
        with pytest.raises(BottleneckError, match=f"{count}.*must be undone first") as error:
            erasers[number].undo(now)
        assert str(error.value).count(". ") == 0
    for number in (2, 1, 0):
        now = erasers[number].undo(now)
        now.save(tmp_path / f"back{number}")
        assert hashes(tmp_path / f"back{number}") == hashes(tmp_path / f"{number}")
        with pytest.raises(BottleneckError, match="undone already"):
            erasers[number].undo(now)


STEPS = st.fixed_dictionaries(
    {
        "how": st.sampled_from([*MASKS, *REST]),
        "names": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        "rows": st.lists(st.integers(0, 60), min_size=1, max_size=5),
        "whole": st.booleans(),
    }
)


@settings(max_examples=30)
@given(st.sampled_from(["sgd", "counts"]), st.sampled_from([1, 2]), st.lists(STEPS, min_size=1, max_size=4))
def test_any_edits_undone_in_reverse_leave_no_trace(values, top, steps):
    start = now = fitted(values, top)
    done = []
    for step in steps:
        what = {"forget": step["names"]} if step["whole"] else {"rows": step["rows"]}
        try:
            edit = unlearn(now, **what, **step["how"])
        except (TaskError, OptionError):  # nothing left of it, or nothing that it could be done by
            continue
        after = edit.apply(now)
        assert (after.values == after.values).all() and (after.entries >= 0).all() | (values == "sgd")
        assert not flat(after.entries)[flat(after.selector.states)[:, 0] != OPEN].any()
        done.append((edit, now.fingerprint))
        now = after
    for edit, fingerprint in reversed(done):
        now = edit.undo(now)
        assert now.fingerprint == fingerprint
    assert now.fingerprint == start.fingerprint


def test_an_eraser_fits_one_bottleneck_once():
    before, other = fitted(), fitted("counts")
    edit = unlearn(before, "ant")
    after = edit.apply(before)
    with pytest.raises(BottleneckError, match="is applied already: undo it first"):
        edit.apply(after)
    with pytest.raises(BottleneckError, match="isn't applied to this bottleneck"):
        edit.undo(before)
    with pytest.raises(BottleneckError, match="belongs to another bottleneck"):
        edit.apply(other)
    with pytest.raises(BottleneckError, match=r"can be taken back from .* after its edit"):
        edit.undo(unlearn(other, "ant").apply(other))
    alone = replace(after, training=None)
    with pytest.raises(BottleneckError, match="comes without its training rows"):
        edit.undo(alone)


def tampered(bottleneck, name):
    selector, training = bottleneck.selector, bottleneck.training
    open_pair = np.flatnonzero(selector.states.reshape(-1) == OPEN)[0]
    if name == "table":
        table = bottleneck.entries.copy()
        flat(table)[open_pair, 0] += 1
        return replace(bottleneck, entries=table)
    if name == "keys":
        return replace(bottleneck, selector=replace(selector, keys=selector.keys + 1))
    if name == "states":
        states = selector.states.copy()
        states.reshape(-1)[open_pair] = SILENT
        return replace(bottleneck, selector=replace(selector, states=states))
    if name == "fewer":
        return replace(bottleneck, training=training.without(np.arange(30)))
    if name == "none":
        return replace(bottleneck, training=training.without(np.arange(len(training))))
    return replace(bottleneck, training=replace(training, features=training.features + 1))


@pytest.mark.parametrize("name", ["table", "keys", "states", "fewer", "none", "features"])
def test_a_bottleneck_changed_since_is_refused(name):
    before = fitted()
    edit = unlearn(before, "ant", keys=10)
    with pytest.raises(BottleneckError, match="doesn't give back the bottleneck"):
        edit.undo(tampered(edit.apply(before), name))


def test_erasers_are_saved_whole_and_damaged_ones_refused(tmp_path):
    before = fitted()
    edit = unlearn(before, "ant")
    edit.save(tmp_path / "eraser")
    again = Eraser.load(tmp_path / "eraser")
    again.save(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "eraser") and again.hash == edit.hash

    def broken(name, change):
        folder = shutil.copytree(tmp_path / "eraser", tmp_path / name)
        change(folder)
        with pytest.raises(BottleneckError) as error:
            Eraser.load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    def edit_array(name):
        def change(folder):
            arrays = {key: array.copy() for key, array in load_file(folder / "eraser.safetensors").items()}
            arrays[name].reshape(-1).view(np.uint8)[0] ^= 1
            save_file(arrays, folder / "eraser.safetensors")

        return change

    def edit_json(key, value):
        def change(folder):
            report = json.loads((folder / "report.json").read_text())
            report[key] = value
            (folder / "report.json").write_text(json.dumps(report))

        return change

    for name in load_file(tmp_path / "eraser" / "eraser.safetensors"):
        assert "was changed since" in broken(name, edit_array(name))
    assert "was changed since" in broken("json", edit_json("bottleneck", "0" * 64))
    assert "was changed since" in broken("edit", edit_json("edit", {**edit.edit, "forget": ["bee"]}))
    assert "isn't an eraser's folder" in broken("format", edit_json("format", "other"))
    assert "is damaged" in broken("keys", edit_json("edit", None))
    assert "is missing" in broken("gone", lambda folder: (folder / "eraser.safetensors").unlink())
    assert "holds no report.json" in broken("bare", lambda folder: (folder / "report.json").unlink())
    assert "can't be read" in broken("cut", lambda folder: (folder / "eraser.safetensors").write_bytes(b"12345"))
    assert "can't be read" in broken("text", lambda folder: (folder / "report.json").write_text("{"))
    assert "isn't a JSON table" in broken("list", lambda folder: (folder / "report.json").write_text("[]"))
    before.save(tmp_path / "bn")
    with pytest.raises(BottleneckError, match="isn't an eraser's folder"):
        Eraser.load(tmp_path / "bn")
    with pytest.raises(BottleneckError, match=r"holds no config\.json"):
        Bottleneck.load(tmp_path / "eraser")


def test_no_flipped_bit_of_an_eraser_is_loaded(tmp_path):
    edit = unlearn(fitted(), "ant")
    edit.save(tmp_path / "eraser")
    random, refused = np.random.default_rng(0), 0
    for name in ("eraser.safetensors", "report.json"):
        file = tmp_path / "eraser" / name
        whole = file.read_bytes()
        for _ in range(100):
            raw = bytearray(whole)
            raw[random.integers(len(raw))] ^= 1 << random.integers(8)
            file.write_bytes(raw)
            try:
                found = Eraser.load(tmp_path / "eraser")
            except BottleneckError:
                refused += 1
            else:  # a space in JSON, or the name of the checksum itself, which the hash makes up for
                assert found.hash == edit.hash
        file.write_bytes(whole)
    assert refused >= 180
