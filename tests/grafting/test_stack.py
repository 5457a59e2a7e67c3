"""Stacks of skills: on in any order and off in any other, against dictionaries of bits; kills, refusals, damage."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.checkpoints.applying import patch_folder, write_patched
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint
from surgery.checkpoints.copies import STACK
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import CheckpointError, OptionError, SkillError, SurgeryError
from surgery.grafting.algebra import merge
from surgery.grafting.stack import Layer, Stack, restack
from surgery.locks import BusyError, hold
from tests.checkpoints.test_interruption import Killed, stop_at
from tests.project.test_kills import KILLS, kill_at_random
from tests.support.tiny import build, change, hashes, perturb, pickled, raw, shard, weights

NAMES = "abcd"
NAME = "bert.encoder.layer.0.output.dense.weight"  # 16 by 32


def delta_on(folder, changed):
    """The delta that gives some weights of one tensor other values, `{index: value}`."""
    base = Checkpoint(folder)
    index = torch.tensor(sorted(changed), dtype=torch.int64)
    values = torch.tensor([changed[i] for i in sorted(changed)])
    return SparseDelta.from_parts(base, {NAME: (index, values)}, movable=10_000)


def layers_on(folder):
    """Four skills that touch weights 0 to 7 of one tensor, some of them together, two with a file beside the weights."""
    places = {"a": range(4), "b": range(2, 6), "c": (0, 3, 6), "d": (3, 7)}
    return {
        name: Layer(
            name,
            delta_on(folder, {i: 10.0 * NAMES.index(name) + i + 1 for i in places[name]}),
            {f"readout-{name}.safetensors": name.encode()} if name in "ab" else {},
        )
        for name in NAMES
    }


@pytest.fixture(scope="module")
def layers(tiny):
    return layers_on(tiny("bert"))


def weights_after(folder, layers, rule="last"):
    """What a stack's files are to say: the base's tensors with the values of the layers, in turn."""
    expected = {name: tensor.clone() for name, tensor in weights(folder).items()}
    union = merge([layer.delta for layer in layers], rule) if layers else None
    if rule == "last":  # by hand
        for layer in layers:
            index, tuned, _ = layer.delta.part(NAME)
            expected[NAME].view(-1)[index] = tuned
    elif union:
        union.write_into(expected)
    return {name: raw(tensor) for name, tensor in expected.items()}


def holds(folder, base, layers, rule="last"):
    """Whether a folder holds the base with these layers, to the last bit and file."""
    found = {name: raw(tensor) for name, tensor in weights(folder).items()}
    expected = weights_after(base, layers, rule)
    assert found.keys() == expected.keys() and all(np.array_equal(found[n], expected[n]) for n in found)
    stacked = {f"{STACK}/{layer.id}.safetensors" for layer in layers} | {f"{STACK}/stack.json"}
    readouts = {name for layer in layers for name in layer.readouts}
    assert hashes(folder).keys() == hashes(base).keys() | readouts | (stacked if len(layers) > 1 else set())
    assert (folder / STACK).exists() == (len(layers) > 1)
    same = {name: digest for name, digest in hashes(base).items() if not name.endswith(".safetensors")}
    assert same.items() <= hashes(folder).items()
    return True


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


def refused(tree, error, match, *arguments, **options):
    """That a call fails with one sentence and changes nothing anywhere."""
    before = hashes(tree)
    with pytest.raises(error, match=match) as caught:
        restack(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert hashes(tree) == before


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
    refused(tmp_path, OptionError, "rule 'least' isn't one of", "revert", [b], tmp_path / "ab", in_place=True)
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


# -- kills -----------------------------------------------------------------------------------------------------------


def named(name):
    return lambda path, *_: path.name == name


# The moments, in order; True where the folder is half patched then.
MOMENTS = {
    "while the journal is written": (lambda m: stop_at(m, os, "fsync", 1), False),
    "once the journal has its name": (lambda m: stop_at(m, os, "fsync", 2), True),
    "before the first weight": (lambda m: stop_at(m, os, "pwrite", 1), True),
    "in the middle": (lambda m: stop_at(m, os, "pwrite", 5), True),
    "before the extra files": (
        lambda m: stop_at(m, sys.modules["surgery.checkpoints.applying"], "_change_extras", 1),
        True,
    ),
    "while the first of them is written": (lambda m: stop_at(m, os, "fsync", 3), True),
    "while the table is written": (
        lambda m: stop_at(m, Path, "replace", 1, lambda _, to: to.name == "stack.json"),
        True,
    ),
    "before the first file is dropped": (
        lambda m: stop_at(m, Path, "unlink", 1, lambda p, *_: p.suffix != ".tmp" and p.parent.name == STACK),
        True,
    ),
    "while the stack is cleared away": (lambda m: stop_at(m, sys.modules["shutil"], "rmtree", 1), False),
    "before the journal is removed": (lambda m: stop_at(m, Path, "unlink", 1, named(JOURNAL)), True),
}
# What the run does: direction, skills before, skills given, skills after.
RUNS = {
    "two onto the base": ("apply", "", "ab", "ab"),
    "one onto a plain graft": ("apply", "a", "ba", "ab"),
    "one onto a stack": ("apply", "ab", "c", "abc"),
    "the lowest off": ("revert", "abc", "a", "bc"),
    "one off, one left": ("revert", "ab", "a", "b"),
    "all off": ("revert", "ab", "ba", ""),
}
OPPOSITE = {"apply": "revert", "revert": "apply"}


def held(layers, names, base, folder):
    """A folder that holds some layers."""
    if len(names) > 1:
        return restack("apply", [layers[name] for name in names], base, folder).folder
    shutil.copytree(base, folder)
    for name in names:
        patch_folder(layers[name].delta, folder, add=layers[name].readouts)
    return folder


@pytest.mark.parametrize("how", ["again", "opposite"])
@pytest.mark.parametrize(("stop", "half"), MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize(("direction", "before", "given", "after"), RUNS.values(), ids=RUNS)
def test_an_interrupted_run_is_completed_or_undone(
    tiny, layers, tmp_path, monkeypatch, direction, before, given, after, stop, half, how
):
    base, skills = tiny("bert"), [layers[name] for name in given]
    folder = held(layers, before, base, tmp_path / "x")
    start = hashes(folder)
    with monkeypatch.context() as moment:
        stop(moment)
        try:
            restack(direction, skills, folder, in_place=True)
            return  # this run has no such moment
        except Killed:
            pass
    assert (folder / JOURNAL).exists() == half
    if not half:
        if stop is not MOMENTS["while the stack is cleared away"][0]:
            assert hashes(folder) == start
            return
        rest = [layers[name] for name in after]
        restack("apply", [*rest, layers["d"]], folder, in_place=True)  # any further run clears the rest away
        restack("revert", [layers["d"]], folder, in_place=True)
        assert holds(folder, base, [layers[name] for name in after])
        return
    with pytest.raises(CheckpointError, match="is half patched"):
        Checkpoint(folder)
    other = layers["d"]
    spoilt = hashes(folder)
    for call in (lambda: restack("apply", [other], folder, in_place=True), lambda: patch_folder(other.delta, folder)):
        with pytest.raises(SkillError, match="is half patched"):
            call()
    assert hashes(folder) == spoilt
    restack(direction if how == "again" else OPPOSITE[direction], skills, folder, in_place=True)
    assert holds(folder, base, [layers[name] for name in (after if how == "again" else before)])
    assert how == "again" or hashes(folder) == start


def test_interrupted_again_and_again(tiny, layers, tmp_path, monkeypatch):
    base, c = tiny("bert"), layers["c"]
    folder = held(layers, "abd", base, tmp_path / "x")
    start = hashes(folder)
    for direction, number in [("apply", 2), ("revert", 7), ("apply", 5), ("apply", 1), ("revert", 3)]:
        with monkeypatch.context() as moment:
            stop_at(moment, os, "pwrite", number)
            with pytest.raises(Killed):
                restack(direction, [c], folder, in_place=True)
    restack("revert", [c], folder, in_place=True)
    assert hashes(folder) == start
    restack("apply", [c], folder, in_place=True)
    assert holds(folder, base, [layers[name] for name in "abdc"])


def test_one_skills_half_done_patch_is_not_a_stacks(tiny, copied, layers, monkeypatch):
    folder, (a, b) = copied("bert"), (layers[name] for name in "ab")
    with monkeypatch.context() as moment:
        stop_at(moment, os, "pwrite", 2)
        with pytest.raises(Killed):
            patch_folder(a.delta, folder)
    refused(
        folder,
        SkillError,
        r"is half patched: an in-place run \(apply of one skill\)",
        "apply",
        [a, b],
        folder,
        in_place=True,
    )
    patch_folder(a.delta, folder, direction="revert")
    assert hashes(folder) == hashes(tiny("bert"))


@pytest.mark.parametrize("kills", KILLS)
def test_runs_at_once_that_are_killed_at_random(tiny, copied, tmp_path, kills):
    """Two processes put one skill on a stack and take it off again; whatever happens, the stack is whole or says it isn't."""
    base = tiny("bert")
    layers = layers_on(base)
    for number, name in enumerate("bc"):  # larger ones, so that kills hit
        perturb(base, tmp_path / name, count=300, seed=number)
        layers[name] = Layer(name, SparseDelta.between(Checkpoint(base), Checkpoint(tmp_path / name)))
    a, b, c, _ = layers.values()
    folder = restack("apply", [a, b], base, tmp_path / "ab").folder
    states = [hashes(folder)]
    states.append(hashes(restack("apply", [c], folder, tmp_path / "abc").folder))

    def change_it(number):
        restack(("apply", "revert")[number % 2], [c], folder, in_place=True)

    def check(busy):
        if not busy and not (folder / JOURNAL).exists():
            found = {n: h for n, h in hashes(folder).items() if not n.rpartition("/")[2].startswith(".")}
            assert found in states

    kill_at_random(change_it, check, kills)
    if not (folder / JOURNAL).exists() and c.id not in Stack.load(folder).ids:
        restack("apply", [c], folder, in_place=True)
    restack("revert", [c], folder, in_place=True)
    assert hashes(folder) == states[0]
    restack("apply", [c], folder, in_place=True)
    assert hashes(folder) == states[1]
