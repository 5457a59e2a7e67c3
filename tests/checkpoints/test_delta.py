"""The algebra of sparse deltas, against Python dictionaries of weights and numpy's view of their bits."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import Extent, SparseDelta
from surgery.errors import SkillError
from tests.support.deltas import (
    DIGESTS,
    FINGERPRINT,
    applied,
    content,
    delta_of,
    equal,
    expected_after,
    pairs,
    same,
    triples,
)
from tests.support.tiny import block_names, perturb, raw, weights

# -- the algebra -----------------------------------------------------------------------------------------------------


@given(pairs)
def test_apply_writes_the_tuned_bits_and_revert_the_base_bits(pair):
    base, changed = pair
    delta = delta_of(base, changed)
    tuned = expected_after(base, changed)
    assert delta.weights == len(changed)
    assert delta.sparsity == len(changed) / 26
    assert same(applied(base, delta), tuned)
    assert same(applied(base, delta, delta), tuned)
    worn = {name: tensor.clone() for name, tensor in base.items()}
    delta.write_into(worn)
    delta.write_into(worn, restore=True)
    assert same({name: raw(tensor) for name, tensor in worn.items()}, expected_after(base))


@given(pairs)
def test_inverse_leads_back_and_its_inverse_forth(pair):
    base, changed = pair
    delta = delta_of(base, changed)
    assert same(applied(base, delta, delta.inverse()), expected_after(base))
    assert equal(delta.inverse().inverse(), delta)
    assert delta.inverse().base_fingerprint == ""  # of the tuned checkpoint, which nobody has looked at


@given(pairs)
def test_edits_hold_the_raw_bits(pair):
    base, changed = pair
    delta = delta_of(base, changed)
    for revert in (False, True):
        edits = delta.edits(revert=revert)
        assert set(edits) == {name for name, _ in changed}
        for name, edit in edits.items():
            mine = sorted(index for n, index in changed if n == name)
            assert edit.indices.tolist() == mine
            assert edit.base.tolist() == [int(raw(base[name])[i]) for i in mine]
            assert edit.tuned.tolist() == [changed[name, i] for i in mine]
            assert edit.wanted.tolist() == (edit.base if revert else edit.tuned).tolist()


@given(triples)
def test_overlap_against_sets(triple):
    base, first, second = triple
    a, b = delta_of(base, first), delta_of(base, second)
    expected = len(first.keys() & second.keys()) / len(second) if second else 0.0
    assert a.overlap(b) == expected
    assert 0 <= a.overlap(b) <= 1
    assert a.overlap(a) == (1.0 if first else 0.0)
    assert a.overlap(b) * len(second) == pytest.approx(b.overlap(a) * len(first))


@given(pairs, st.data())
def test_keep(pair, data):
    base, changed = pair
    delta = delta_of(base, changed)
    mask = data.draw(st.lists(st.booleans(), min_size=len(changed), max_size=len(changed)))
    kept = {place for place, stays in zip(sorted(changed), mask, strict=True) if stays}
    part = delta.keep(torch.tensor(mask, dtype=torch.bool))
    assert {place: bits for place, (_, bits) in content(part).items()} == {place: changed[place] for place in kept}
    rest = delta.keep(~torch.tensor(mask, dtype=torch.bool))
    assert content(part) | content(rest) == content(delta) and part.weights + rest.weights == delta.weights


# -- the file --------------------------------------------------------------------------------------------------------


@given(pair=pairs)
def test_file_round_trip(pair, tmp_path_factory):
    base, changed = pair
    delta = delta_of(base, changed, metadata={"task": '{"name": "é"}', "note": ""})
    file = tmp_path_factory.mktemp("delta") / "skill.safetensors"
    file.write_bytes(delta.to_bytes())
    loaded = SparseDelta.load(file)
    assert equal(loaded, delta)
    for field in ("movable", "base_fingerprint", "base_digests", "metadata"):
        assert getattr(loaded, field) == getattr(delta, field)
    assert delta.to_bytes() == delta.to_bytes() == loaded.to_bytes()
    assert SparseDelta.load(str(file)).inverse().to_bytes() == delta.inverse().to_bytes()


def test_file_is_what_the_format_says(tmp_path):
    base = {"b": torch.zeros(2, 3), "a": torch.ones(4)}
    delta = delta_of(base, {("b", 5): 1, ("a", 3): 2, ("a", 0): 3}, metadata={"task": "t"})
    file = tmp_path / "skill.safetensors"
    file.write_bytes(delta.to_bytes())
    arrays = load_file(file)
    assert arrays["indices"].dtype == torch.uint32
    assert arrays["indices"].tolist() == [0, 3, 5]
    assert raw(arrays["values"]).tolist() == [3, 2, 1]
    assert arrays["base_values"].tolist() == [1, 1, 0]
    assert ["".join(f"{byte:02x}" for byte in row) for row in arrays["digests"].tolist()] == list(DIGESTS)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert json.loads(header.pop("tensors")) == [["a", "F32", [4], 0, 2], ["b", "F32", [2, 3], 2, 3]]
    assert int(header.pop("checksum"), 16) > 0
    assert header == {
        "format": "surgery.sparse-delta",
        "schema": "1",
        "movable": "26",
        "base_fingerprint": FINGERPRINT,
        "task": "t",
    }


@pytest.mark.parametrize("weights_in_it", [0, 1, 1000, 50_000])
def test_size_is_twelve_bytes_a_weight_and_a_little(weights_in_it):
    """At the size of roberta-base: 16 tensors in each of 12 layers, 202 tensors in the base, all of them touched."""
    names = [
        f"roberta.encoder.layer.{layer}.attention.output.LayerNorm.{part:06}"
        for layer in range(12)
        for part in range(16)
    ]
    names.sort()
    generator = np.random.default_rng(0)
    places = generator.choice(len(names) * 590_000, weights_in_it, replace=False)
    extents, indices = [], []
    for number, name in enumerate(names):
        mine = np.sort(places[places // 590_000 == number] % 590_000)
        if len(mine):
            extents.append(Extent(name, torch.float32, (768, 3072), len(indices), len(indices) + len(mine)))
            indices += mine.tolist()
    delta = SparseDelta(
        extents=tuple(extents),
        indices=torch.tensor(indices, dtype=torch.int64),
        values=torch.ones(weights_in_it),
        base_values=torch.zeros(weights_in_it),
        movable=85_000_000,
        base_fingerprint=FINGERPRINT,
        base_digests=DIGESTS * 101,
    )
    assert 12 * weights_in_it <= len(delta.to_bytes()) <= 12 * weights_in_it + 32 * 1024


# -- from checkpoints ------------------------------------------------------------------------------------------------


def test_between_finds_what_was_changed(tiny, tmp_path, kind):
    touched = perturb(tiny(kind), tmp_path / "tuned", count=60)
    base, tuned = Checkpoint(tiny(kind)), Checkpoint(tmp_path / "tuned")
    delta = SparseDelta.between(base, tuned)
    before, after = weights(tiny(kind)), weights(tmp_path / "tuned")
    expected = {
        (name, i): (int(raw(before[name])[i]), int(raw(after[name])[i]))
        for name, indices in touched.items()
        for i in indices
    }
    assert content(delta) == expected
    assert delta.movable == sum(before[name].numel() for name in block_names(tiny(kind)))
    assert delta.base_fingerprint == base.fingerprint
    assert delta.base_digests == tuple(base.digests[name] for name in sorted(before))
    assert same(applied(before, delta), {name: raw(tensor) for name, tensor in after.items()})


def test_between_compares_bits_within_the_names_given(copied, tmp_path):
    name, other = "a", "b"
    for folder, values in [("base", [0.0, 1.0]), ("tuned", [-0.0, 1.0])]:
        save_file(
            {name: torch.tensor(values), other: torch.tensor(values)}, copied("bert", folder) / "model.safetensors"
        )
    base, tuned = Checkpoint(tmp_path / "base"), Checkpoint(tmp_path / "tuned")
    delta = SparseDelta.between(base, tuned, [name])
    assert content(delta) == {(name, 0): (0, 1 << 31)}
    assert delta.movable == 2
    assert SparseDelta.between(base, tuned, ()).sparsity == 0
    assert SparseDelta.between(base, base, (name, other)).weights == 0


def test_from_parts_sorts_casts_and_drops_the_empty(tiny):
    base = Checkpoint(tiny("bert"))
    first, second = block_names(tiny("bert"))[:2]
    parts = {
        second: (torch.tensor([5, 0, 3]), torch.tensor([5.5, 0.5, 3.5], dtype=torch.float64)),
        first: (torch.tensor([], dtype=torch.int64), torch.tensor([])),
    }
    delta = SparseDelta.from_parts(base, parts, movable=100, metadata={"note": "x"})
    assert list(delta.tensors) == [second]
    index, tuned, before = delta.part(second)
    assert (index.tolist(), tuned.tolist(), tuned.dtype) == ([0, 3, 5], [0.5, 3.5, 5.5], torch.float32)
    assert torch.equal(before, weights(tiny("bert"))[second].reshape(-1)[[0, 3, 5]])
    assert (delta.movable, delta.metadata, delta.sparsity) == (100, {"note": "x"}, 0.03)


@pytest.mark.parametrize("indices", [[1, 1], [-1, 2], [0, 10**6]], ids=["twice", "negative", "beyond the end"])
def test_from_parts_refuses_impossible_indices(tiny, indices):
    name = block_names(tiny("bert"))[0]
    with pytest.raises((SkillError, IndexError)):
        SparseDelta.from_parts(Checkpoint(tiny("bert")), {name: (torch.tensor(indices), torch.ones(2))}, movable=9)
