"""Stores of features: the sketch, the bits kept, the same bytes after a kill and from several processes, and streamed scores."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from surgery.errors import OptionError, SelectionError
from surgery.quiet import quiet
from surgery.selecting import Features, Warmup, collecting
from surgery.selecting.capture import stacked
from surgery.selecting.collecting import open_instrument
from surgery.selecting.maps import GradientMap
from surgery.selecting.opening import Instrument
from surgery.selecting.scoring import Target, best, score_rows
from surgery.selecting.shards import GRADIENT, pack, unpack
from surgery.selecting.sketch import CountSketch
from surgery.tasks.rows import read_rows
from tests.selecting.conftest import raw_rows
from tests.support.tiny import hashes

WARMUP = Warmup(share=0.5, epochs=2, rank=2, batch_size=4)
SMALL = {"warmup": WARMUP, "sketch": 64, "shard_rows": 8, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Features of 21 rows with all coordinates kept."""
    folder = tmp_path_factory.mktemp("whole") / "features"
    return Features.collect(tiny("llama"), list(raw_rows(21)), folder=folder, **{**SMALL, "sketch": 0})


@pytest.mark.parametrize("precision", ["float16", "int8", "bit"])
def test_kept_features_are_near_what_they_were(precision):
    features = torch.randn(5, 403, generator=torch.Generator().manual_seed(0))
    features[3] = 0
    kept, norms = pack(features, precision)
    found = unpack(kept[""], kept.get(".scale"), 403)
    assert torch.allclose(norms, features.norm(dim=1))
    unit = torch.nn.functional.normalize(features, dim=1)
    if precision == "bit":
        assert (found[unit < 0] < 0).all()
        assert kept[""].shape == (5, 51)
        assert torch.equal(found[unit > 0] > 0, torch.ones(int((unit > 0).sum()), dtype=torch.bool))
        assert torch.allclose(found.norm(dim=1), torch.ones(5))
    else:
        assert (found - unit).abs().max() <= (2.0**-12 if precision == "float16" else unit.abs().max() / 250)
        assert not found[3].any()


@pytest.mark.parametrize("precision", ["float16", "int8", "bit"])
@pytest.mark.parametrize("size", [1e-24, 1e-38, 1e30])
def test_features_of_any_size_are_kept(precision, size):
    features = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    (kept, _), (wanted, _) = pack(features * size, precision), pack(features, precision)
    scales = [each.get(".scale") for each in (kept, wanted)]
    found, plain = unpack(kept[""], scales[0], 50), unpack(wanted[""], scales[1], 50)
    assert torch.allclose(found, plain, atol=0.01)


def test_a_target_with_small_gradients_counts_as_much(whole, tiny, monkeypatch):
    rows = read_rows(list(raw_rows(3, seed=9)))
    instrument = open_instrument(whole.store.folder, tiny("llama"), whole.store.header, 4, "cpu")
    plain, own = Target.of(instrument, rows, False), Instrument.features
    small = lambda *given: {name: 1e-24 * each for name, each in own(*given).items()}  # noqa: E731 (a function to put in place)
    monkeypatch.setattr(Instrument, "features", small)
    for one, other in zip(plain.gradients, Target.of(instrument, rows, False).gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def broken(monkeypatch, rows):
    """Have a row's gradients be NaN and another's zero, by their first numbers."""
    own = Instrument.features

    def features(self, lessons, *given):
        found = own(self, lessons, *given)
        if len(lessons) > max(rows):
            for each in found.values():
                each[rows[0]] = float("nan")
            for name in ("sgd", GRADIENT):
                found[name][rows[1]] = 0.0
        return found

    monkeypatch.setattr(Instrument, "features", features)


@pytest.mark.parametrize("precision", ["float16", "bit"])
def test_rows_whose_gradients_are_no_numbers_are_said_and_never_chosen(tiny, tmp_path, monkeypatch, precision):
    broken(monkeypatch, (1, 6))
    rows, folder = list(raw_rows(8)), tmp_path / "features"
    made = Features.collect(tiny("llama"), rows, folder=folder, precision=precision, maps=("sgd", "adam"), **SMALL)
    monkeypatch.undo()
    remarks = " ".join(made.store.header["remarks"])
    assert "1 rows have no gradient: by plain gradients their scores are 0" in remarks
    assert "gradients of 1 rows are NaN or infinite: they are never chosen" in remarks
    assert made.store.broken.tolist() == [number == 1 for number in range(8)]
    _, chunk = next(made.store.chunks("sgd.0"))
    assert [bool(row.any()) for row in chunk] == [number not in (1, 6) for number in range(8)]
    assert [bool(made.store.row("sgd.0", number).any()) for number in (5, 6)] == [True, False]
    for by in ("sgd", "less", "length"):
        found = made.select(list(raw_rows(2, seed=9)), share=1.0, by=by, device="cpu")
        assert sorted(found.numbers) == [0, 2, 3, 4, 5, 6, 7]
        assert "Only 7 rows are left" in " ".join(found.remarks)


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40))
def test_a_sketch_is_the_sum_of_signed_coordinates(first, second, width, seed):
    """By a plain loop, and the same for rows together and alone."""
    made = CountSketch({"a": first, "b": second}, width, seed)
    values = {"a": torch.randn(2, first), "b": torch.randn(2, second)}
    out, wanted = torch.zeros(2, width), np.zeros((2, width))
    for name, each in values.items():
        made.add(name, each, out)
        for place, slot in enumerate(made.slots(name).tolist()):
            assert 0 <= slot >> 1 < width
            wanted[:, slot >> 1] += each[:, place].numpy() * (-1 if slot & 1 else 1)
    assert np.allclose(out.numpy(), wanted, atol=1e-4)


def test_a_sketch_keeps_inner_products():
    """Without bias, with a standard deviation of about 1 / sqrt(width); layers have other words."""
    draw = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(1, 4000, generator=draw), dim=1)
    other = torch.nn.functional.normalize(one + 0.02 * torch.randn(1, 4000, generator=draw), dim=1)
    found = []
    for seed in range(200):
        made, out = CountSketch({"x": 4000}, 256, seed), torch.zeros(2, 256)
        made.add("x", torch.cat([one, other]), out)
        found.append(float(out[0] @ out[1]))
    error = np.array(found) - float(one[0] @ other[0])
    assert abs(error.mean()) < 4 * error.std() / 200**0.5
    assert 0.4 < error.std() * 16 < 1.6
    made = CountSketch({"x": 100, "y": 100}, 256, 0)
    assert not torch.equal(made.slots("x"), made.slots("y"))


def test_features_are_the_mapped_gradients(whole, tiny):
    """Whole coordinates against gradients taken by the same capture, mapped and normalised by hand."""
    store = whole.store
    instrument = open_instrument(store.folder, tiny("llama"), store.header, device="cpu")
    lessons = [instrument.objective.encode(row) for row in read_rows(list(raw_rows(21)))]
    for at in range(2):
        moments = instrument.adapter.load(store.checkpoints.place(at))
        assert any(bool(each["exp_avg_sq"].any()) for each in moments.values())
        gradients = stacked(instrument.model, instrument.objective, lessons, instrument.adapter.layers)
        for kind in ("sgd", "adam"):
            change = GradientMap(kind, moments)
            wanted = torch.cat([change(name, each) for name, each in gradients.items()], 1)
            wanted = torch.nn.functional.normalize(wanted, dim=1)
            found = torch.cat([chunk for _, chunk in store.chunks(f"{kind}.{at}")])
            assert found.shape == wanted.shape == (21, store.header["weights"])
            assert (torch.nn.functional.cosine_similarity(found, wanted) > 0.9999).all()
            assert torch.equal(store.row(f"{kind}.{at}", 13), found[13])


def test_scores_are_those_of_arrays_in_memory(whole, tiny):
    """LESS, plain and centred cosines, streamed, against numpy on whole arrays; mean in a subtask, the largest of them."""
    store = whole.store
    rows = [{**row, "subtask": "ab"[number % 3 == 0]} for number, row in enumerate(raw_rows(6, seed=5))]
    target = Target.of(open_instrument(store.folder, tiny("llama"), store.header, device="cpu"), read_rows(rows), True)
    unit = lambda array: array / np.linalg.norm(array, axis=1, keepdims=True)  # noqa: E731
    weights = store.checkpoints.weights
    assert sum(weights) == pytest.approx(1) and weights[0] > weights[1] > 0
    for by, kind, centred in (
        ("less", "adam", False),
        ("sgd", "sgd", False),
        ("centred", "sgd", True),
        ("less-centred", "adam", True),
    ):
        total = np.zeros((21, 2))
        for at, weight in enumerate(weights):
            pool, plain = (
                torch.cat([c for _, c in store.chunks(f"{name}.{at}")]).double().numpy() for name in (kind, "sgd")
            )
            other = target.gradients[at].double().numpy()
            if centred:
                pool, other = unit(pool - pool.mean(0)), unit(other - plain.mean(0))
            cosines = pool @ other.T
            total += weight * np.stack([cosines[:, [1, 2, 4, 5]].mean(1), cosines[:, [0, 3]].mean(1)], 1)
        found = score_rows(store, target, by)
        assert np.allclose(found, total.max(1), atol=1e-5)
        assert set(best(found, 5, np.zeros(21, bool))) == set(np.argsort(-total.max(1))[:5])


def test_the_best_are_first_and_of_equal_ones_the_earlier():
    scores = np.array([1.0, 3.0, 2.0, 3.0, 0.0])
    assert best(scores, 3, np.zeros(5, bool)).tolist() == [1, 3, 2]
    assert best(scores, 5, np.array([False, True, False, False, True])).tolist() == [3, 2, 0]
    assert best(np.array([np.nan, 1.0, 2.0]), 2, np.array([False, False, True])).tolist() == [1, 0]


def collected(base, folder, **more):
    return Features.collect(base, list(raw_rows(21)), folder=folder, **{**SMALL, **more})


def shards(folder):
    return {name: each for name, each in hashes(folder).items() if name != "report.json"}


def test_a_killed_run_goes_on_to_the_same_bytes(tiny, tmp_path, monkeypatch):
    collected(tiny("gpt2"), tmp_path / "whole")
    written, real = [], collecting.replace_bytes

    def killed(path, content):
        if path.name == "features-00001.safetensors":
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, content)

    monkeypatch.setattr(collecting, "replace_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        collected(tiny("gpt2"), tmp_path / "again")
    monkeypatch.undo()
    assert "features-00000.safetensors" in written
    assert not (tmp_path / "again").exists()
    trained = collecting.warm_up
    monkeypatch.setattr(collecting, "warm_up", lambda *given, **more: pytest.fail("warmed up again"))
    collected(tiny("gpt2"), tmp_path / "again")
    assert shards(tmp_path / "again") == shards(tmp_path / "whole")
    assert len([name for name in shards(tmp_path / "whole") if name.startswith("features-")]) == 3
    assert not (tmp_path / "again.partial").exists() and trained


@pytest.mark.real
def test_several_processes_write_the_same_bytes(tiny, tmp_path):
    collected(tiny("gpt2"), tmp_path / "one", hidden=False)
    collected(tiny("gpt2"), tmp_path / "three", hidden=False, processes=3)
    assert shards(tmp_path / "three") == shards(tmp_path / "one")


def test_the_same_call_opens_what_is_there_and_another_is_refused(tiny, tmp_path, monkeypatch):
    collected(tiny("gpt2"), tmp_path / "f")
    before = hashes(tmp_path / "f")
    monkeypatch.setattr(collecting, "load_model", lambda *given, **more: pytest.fail("loaded"))
    assert len(collected(tiny("gpt2"), tmp_path / "f")) == 21
    assert hashes(tmp_path / "f") == before
    with pytest.raises(OptionError, match="holds features of another pool, base or options"):
        collected(tiny("gpt2"), tmp_path / "f", precision="int8")


def test_a_missing_file_is_named(tiny, tmp_path):
    collected(tiny("gpt2"), tmp_path / "f", warmup=Warmup(share=0.5, epochs=1, rank=2))
    for name in (
        "pool.jsonl",
        "rows.safetensors",
        "features-00000.safetensors",
        "warmup/checkpoint-1/optimizer.safetensors",
    ):
        (tmp_path / "f" / name).rename(tmp_path / "aside")
        with pytest.raises(SelectionError, match=re.escape(name)):
            Features.load(tmp_path / "f").select(list(raw_rows(3, seed=7)), device="cpu")
        (tmp_path / "aside").rename(tmp_path / "f" / name)


def test_a_changed_byte_anywhere_is_found_and_named(tiny, tmp_path):
    collected(tiny("gpt2"), tmp_path / "f", warmup=Warmup(share=0.5, epochs=1, rank=2))
    target, draw = list(raw_rows(3, seed=7)), np.random.default_rng(0)
    whole = Features.load(tmp_path / "f").select(target, device="cpu").numbers
    files = [*sorted((tmp_path / "f").rglob("*.safetensors")), tmp_path / "f" / "pool.jsonl"]
    assert {file.name for file in files} >= {
        "rows.safetensors",
        "adapter_model.safetensors",
        "features-00000.safetensors",
    }
    for file in files:
        sound = file.read_bytes()
        for place in [3, 9, *draw.integers(0, len(sound), 10).tolist()]:
            changed = bytearray(sound)
            changed[place] ^= 1 << int(draw.integers(8))
            file.write_bytes(changed)
            with pytest.raises(SelectionError, match=re.escape(str(file))):
                Features.load(tmp_path / "f").select(target, device="cpu")
        file.write_bytes(sound)
    assert Features.load(tmp_path / "f").select(target, device="cpu").numbers == whole
    for file in files:  # as an earlier version wrote them
        if file.parent == tmp_path / "f" and file.suffix == ".safetensors":
            file.write_bytes(save(load_file(file)))
    assert Features.load(tmp_path / "f").select(target, device="cpu").numbers == whole


def test_a_warm_up_is_taken_over_and_another_adapters_state_is_refused(tiny, tmp_path):
    made = collected(tiny("gpt2"), tmp_path / "first")
    taken = collected(tiny("gpt2"), tmp_path / "second", warmup=tmp_path / "first")
    assert {n: h for n, h in shards(taken.store.folder).items() if n.startswith("features")} == {
        n: h for n, h in shards(made.store.folder).items() if n.startswith("features")
    }
    with pytest.raises(SelectionError, match="was made with another base"):
        collected(tiny("llama"), tmp_path / "third", warmup=tmp_path / "first" / "warmup")
    # The optimiser's state of an adapter of another rank.
    shutil.copytree(tmp_path / "first" / "warmup", tmp_path / "mixed")
    other = collected(tiny("gpt2"), tmp_path / "other", warmup=Warmup(share=0.5, epochs=2, rank=3, batch_size=4))
    shutil.copy(
        other.store.folder / "warmup" / "checkpoint-1" / "optimizer.safetensors", tmp_path / "mixed" / "checkpoint-1"
    )
    with pytest.raises(SelectionError, match=r"optimizer\.safetensors isn't what the warm-up wrote: warm up again"):
        collected(tiny("gpt2"), tmp_path / "fourth", warmup=tmp_path / "mixed")
    note = json.loads((tmp_path / "mixed" / "warmup.json").read_text())
    del note["digests"]  # as an earlier version wrote it
    (tmp_path / "mixed" / "warmup.json").write_text(json.dumps(note))
    with pytest.raises(SelectionError, match=r"optimizer\.safetensors is of another adapter"):
        collected(tiny("gpt2"), tmp_path / "fourth", warmup=tmp_path / "mixed")
    adapter = json.loads((tmp_path / "first" / "warmup" / "checkpoint-1" / "adapter_config.json").read_text())
    assert adapter["r"] == 2 and adapter["peft_type"] == "LORA"


def test_the_warm_ups_adapters_are_read_by_peft(whole, tiny):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    store = whole.store
    instrument = open_instrument(store.folder, tiny("llama"), store.header, device="cpu")
    instrument.adapter.load(store.checkpoints.place(1))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), quiet():
        plain = AutoModelForCausalLM.from_pretrained(tiny("llama"))
        base = plain(ids).logits
        found = PeftModel.from_pretrained(plain, store.checkpoints.place(1)).eval()(ids).logits
        assert torch.allclose(found, instrument.model.module(ids).logits, atol=1e-5)
    assert not torch.allclose(found, base, atol=1e-3)
