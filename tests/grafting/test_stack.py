"""Stacks of skills: on in any order and off in any other, against dictionaries of bits; refusals and damage."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.checkpoints.applying import write_patched
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.copies import STACK
from surgery.errors import CheckpointError, OptionError, SkillError, SurgeryError
from surgery.grafting.stack import Layer, restack
from surgery.locks import BusyError, hold
from tests.support.stacks import NAME, NAMES, delta_on, holds, layers_on, refused
from tests.support.tiny import build, change, hashes, pickled, shard, weights


@pytest.fixture(scope="module")
def layers(tiny):
    return layers_on(tiny("bert"))


# -- on and off ------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(orders=st.tuples(st.permutations(NAMES), st.permutations(NAMES)), in_place=st.booleans(), at_once=st.booleans())
def test_on_in_any_order_and_off_in_any_other(tiny, layers, tmp_path_factory, orders, in_place, at_once):
    base, folder = tiny("bert"), tmp_path_factory.mktemp("stack")
    on, off = ([layers[name] for name in order] for order in orders)
    current = shutil.copytree(base, folder / "0")

    def step(number, direction, given):
        if in_place:
            return restack(direction, given, current, in_place=True).folder
        return restack(direction, given, current, folder / f"{direction}-{number}").folder

    for number, part in enumerate([on] if at_once else [on[:2], on[2:3], on[3:]]):
        current = step(number, "apply", part)
        held = on if at_once else on[: number + 2]
        assert holds(current, base, held)
    for number, layer in enumerate(off):
        current = step(number, "revert", [layer])
        held.remove(layer)
        assert holds(current, base, held)
    assert hashes(current) == hashes(base)


def test_several_come_off_at_once(tiny, layers, tmp_path):
    base = tiny("bert")
    restack("apply", list(layers.values()), base, tmp_path / "all")
    restack("revert", [layers["d"], layers["a"]], tmp_path / "all", tmp_path / "two")
    assert holds(tmp_path / "two", base, [layers["b"], layers["c"]])
    done = restack("revert", [layers["b"], layers["c"]], tmp_path / "two", tmp_path / "none")
    assert hashes(tmp_path / "none") == hashes(base)
    assert done.changed == len({i for name in "bc" for i in layers[name].delta.indices.tolist()})


@pytest.mark.parametrize("rule", ["mean", "sum", "first"])
def test_other_rules_are_kept_and_can_be_changed(tiny, layers, tmp_path, rule):
    base, (a, b, c) = tiny("bert"), (layers[name] for name in "abc")
    restack("apply", [a, b], base, tmp_path / "ab", rule=rule)
    assert holds(tmp_path / "ab", base, [a, b], rule)
    restack("apply", [c], tmp_path / "ab", tmp_path / "abc")
    assert holds(tmp_path / "abc", base, [a, b, c], rule)
    restack("revert", [a], tmp_path / "abc", tmp_path / "bc")
    assert holds(tmp_path / "bc", base, [b, c], rule)
    restack("apply", [c], tmp_path / "abc", in_place=True, rule="last")
    assert holds(tmp_path / "abc", base, [a, b, c])
    with pytest.raises(SkillError, match="a and b disagree on tensor"):
        restack("apply", [a, b], base, tmp_path / "out", rule="error")


def test_a_skill_goes_onto_a_plain_graft_that_is_named_too(tiny, layers, tmp_path):
    base, (a, b) = tiny("bert"), (layers[name] for name in "ab")
    write_patched(a.delta, Checkpoint(base), tmp_path / "a", add=a.readouts)
    assert holds(tmp_path / "a", base, [a])
    done = restack("apply", [b, a], tmp_path / "a", tmp_path / "ab")
    assert done.before.ids == [a.id] and done.after.ids == [a.id, b.id]
    assert holds(tmp_path / "ab", base, [a, b])
    restack("revert", [b], tmp_path / "ab", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "a")
    write_patched(a.delta, Checkpoint(tmp_path / "again"), tmp_path / "base", direction="revert", drop=a.readouts)
    assert hashes(tmp_path / "base") == hashes(base)
    with pytest.raises(SkillError, match="is not the skill's base"):  # which would hide a
        restack("apply", [b, layers["c"]], tmp_path / "a", tmp_path / "out")


def test_of_two_skills_that_a_plain_graft_could_hold_the_larger_is_taken_for_it(tiny, layers, tmp_path):
    a = layers["a"]
    part = Layer("part", a.delta.keep(torch.tensor([True, False, True, False])))
    write_patched(a.delta, Checkpoint(tiny("bert")), tmp_path / "a", add=a.readouts)
    done = restack("apply", [part, a], tmp_path / "a", tmp_path / "both")
    assert (done.before.ids, done.after.ids, done.changed) == ([a.id], [a.id, part.id], 0)
    restack("revert", [a], tmp_path / "both", in_place=True)
    assert holds(tmp_path / "both", tiny("bert"), [part])


def test_applying_again_changes_nothing(tiny, layers, tmp_path):
    base, (a, b) = tiny("bert"), (layers[name] for name in "ab")
    restack("apply", [a, b], base, tmp_path / "ab")
    before = hashes(tmp_path / "ab")
    assert restack("apply", [b, a], tmp_path / "ab", in_place=True).changed == 0
    assert hashes(tmp_path / "ab") == before
    assert restack("apply", [a], tmp_path / "ab", tmp_path / "again").changed == 0
    assert hashes(tmp_path / "again") == before


@pytest.mark.parametrize("layout", ["sharded", "bin"])
def test_other_layouts(tiny, layers, tmp_path, layout):
    base = shard(tiny("bert"), tmp_path / "base") if layout == "sharded" else pickled(tiny("bert"), tmp_path / "base")
    on = [layers[name] for name in "cab"]
    restack("apply", on, base, tmp_path / "out")
    restack("revert", on[:1], tmp_path / "out", in_place=True)
    restack("revert", on[1:], tmp_path / "out", in_place=True)
    expected = weights(tiny("bert"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())
    if layout == "sharded":
        assert hashes(tmp_path / "out") == hashes(base)
    else:
        with pytest.raises(CheckpointError, match="pickled weights"):
            restack("apply", on, base, in_place=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    base = build("bert", tmp_path / "base", dtype=dtype)
    on = list(layers_on(base).values())
    restack("apply", on, base, tmp_path / "out", rule="mean")
    for layer in (on[2], on[0], on[3], on[1]):
        restack("revert", [layer], tmp_path / "out", in_place=True)
    assert hashes(tmp_path / "out") == hashes(base)


def test_what_is_made_of_a_stacked_checkpoint_has_no_stack(tiny, layers, tmp_path):
    restack("apply", [layers["a"], layers["b"]], tiny("bert"), tmp_path / "ab")
    (tmp_path / "new").mkdir()
    Checkpoint(tmp_path / "ab").copy_other_files(tmp_path / "new")
    assert not (tmp_path / "new" / STACK).exists()
    assert Checkpoint(tmp_path / "ab").other_copies == ()


def test_two_skills_may_share_a_readout(tiny, tmp_path):
    base = tiny("bert")
    shared = {"readout-x.safetensors": b"x"}
    one, two = (Layer(f"x{i}", delta_on(base, {i: 1.0, 9: float(i)}), shared) for i in (1, 2))
    restack("apply", [one, two], base, tmp_path / "both")
    restack("revert", [one], tmp_path / "both", in_place=True)
    assert (tmp_path / "both" / "readout-x.safetensors").read_bytes() == b"x"
    restack("revert", [two], tmp_path / "both", tmp_path / "none")
    assert hashes(tmp_path / "none") == hashes(base)
    other = Layer("x3", delta_on(base, {3: 1.0}), {"readout-x.safetensors": b"y"})
    with pytest.raises(SkillError, match=r"x1 and x3 bring different files readout-x\.safetensors"):
        restack("apply", [one, other], base, tmp_path / "out")
    restack("apply", [one, two], base, tmp_path / "again")
    with pytest.raises(SkillError, match=r"x1 and x3 bring different files readout-x\.safetensors"):
        restack("apply", [other], tmp_path / "again", in_place=True)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_refusals(tiny, layers, tmp_path, in_place):
    a, b, c, _ = layers.values()
    restack("apply", [a, b], tiny("bert"), tmp_path / "ab")
    stranger = build("bert", tmp_path / "stranger", seed=1)
    alien = Layer("alien", delta_on(stranger, {1: 1.0}))
    ab = tmp_path / "ab"
    place = {"in_place": True} if in_place else {"output": tmp_path / "out"}
    for error, match, *call in (
        (OptionError, "the skill c is given twice", "apply", [c, a, c], ab),
        (OptionError, "no skill is given", "apply", [], ab),
        (SkillError, "doesn't hold the skill c, but a, b: name one that it holds", "revert", [c], ab),
        (SkillError, "doesn't hold the skill c, but a, b", "revert", [a, c], ab),
        (SkillError, r"the skills \(a and alien\) start from different bases", "apply", [alien], ab),
        (SkillError, r"the skills \(a and alien\) start from different bases", "apply", [a, alien], stranger),
        (SkillError, "is not the skill's base", "apply", [a, b], stranger),
        (SkillError, "doesn't hold the skill a, but no skill", "revert", [a, b], stranger),
    ):
        refused(tmp_path, error, match, *call, **place)
    for folder in (ab, ab / "in"):
        refused(tmp_path, SurgeryError, "lie one inside the other", "apply", [c], ab, folder)
    refused(tmp_path, OptionError, "one of the two", "apply", [c], ab)
    refused(tmp_path, SurgeryError, "exists already", "apply", [c], ab, stranger)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_checkpoint_that_was_changed_under_its_stack(tiny, layers, tmp_path, in_place):
    a, b, c, _ = layers.values()
    restack("apply", [a, b], tiny("bert"), tmp_path / "ab")
    place = {"in_place": True} if in_place else {"output": tmp_path / "out"}
    for number, index in enumerate((0, 5, 100)):  # of a alone, of b alone, of none

        def spoil(name, tensor, index=index):
            if name == NAME:
                tensor.view(-1)[index] += 1
            return tensor

        wrong = change(tmp_path / "ab", tmp_path / f"wrong-{number}", spoil)
        for direction, layer in (("revert", a), ("apply", c)):
            refused(tmp_path, SkillError, f"first differing tensor {NAME}", direction, [layer], wrong, **place)
    # Another config computes something else.
    config = json.loads((tmp_path / "ab" / "config.json").read_text())
    (tmp_path / "ab" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    refused(tmp_path, SkillError, "config.json says hidden_act", "revert", [a], tmp_path / "ab", **place)


def test_a_stack_that_is_damaged_or_another_checkpoints(tiny, layers, tmp_path):
    a, b, c, d = layers.values()
    restack("apply", [a, b], tiny("bert"), tmp_path / "ab")
    table, file = tmp_path / "ab" / STACK / "stack.json", tmp_path / "ab" / STACK / f"{a.id}.safetensors"
    text, content = table.read_text(), file.read_bytes()

    def check(match, folder="ab"):
        for direction, layer in (("revert", b), ("apply", c)):
            refused(tmp_path, SkillError, match, direction, [layer], tmp_path / folder, in_place=True)
            refused(tmp_path, SkillError, match, direction, [layer], tmp_path / folder, tmp_path / "out")

    for damaged in ("", "{", "[]", "{}", text.replace('"rule"', '"role"'), text.replace('"id"', '"di"')):
        table.write_text(damaged)
        check(r"stack\.json can't be read")
    table.write_text(text.replace('"schema": 1', '"schema": 2'))
    check("has schema 2, this version reads 1")
    table.write_text(text.replace(a.id, "../" + a.id))
    check("names files elsewhere")
    table.unlink()
    check(r"stack\.json can't be read")
    table.write_text(text.replace('"rule": "last"', '"rule": "least"'))
    refused(tmp_path, OptionError, "`rule` 'least' isn't one of", "revert", [b], tmp_path / "ab", in_place=True)
    table.write_text(text)
    file.unlink()
    check(r"the skill a of its stack can't be read .* is missing")
    file.write_bytes(content[:-1])
    check("the skill a of its stack can't be read .* is damaged")
    file.write_bytes(d.delta.to_bytes())
    check(r"isn't the skill a of its stack")
    file.write_bytes(content)
    # A stack that came with another checkpoint's folder.
    shutil.copytree(tmp_path / "ab" / STACK, shutil.copytree(tiny("bert"), tmp_path / "base") / STACK)
    foreign = shutil.copytree(tmp_path / "ab" / STACK, build("bert", tmp_path / "other", seed=3) / STACK).parent
    check("is not the skill's base", foreign)
    refused(tmp_path, SkillError, "is not the skill's base", "apply", [c], foreign, tmp_path / "out")


def test_two_runs_at_once(tiny, copied, layers):
    folder = copied("bert")
    with hold(folder):
        refused(
            folder,
            BusyError,
            "is being written by another run",
            "apply",
            [layers["a"], layers["b"]],
            folder,
            in_place=True,
        )


def test_further_copies_of_the_weights_stop_a_stack_in_place(copied, layers):
    folder = copied("bert")
    (folder / "model.onnx").write_bytes(b"")
    refused(
        folder, CheckpointError, "copies of the weights", "apply", [layers["a"], layers["b"]], folder, in_place=True
    )


def test_a_strangers_file_in_the_way(copied, layers):
    folder = copied("bert")
    (folder / "readout-a.safetensors").write_bytes(b"mine")
    refused(folder, SkillError, "is there already", "apply", [layers["a"], layers["b"]], folder, in_place=True)
