"""Applying and reverting in checkpoints' files, refusals, and what is left behind; files compared by SHA-256."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgery.checkpoints.applying import patch_folder, write_patched
from surgery.checkpoints.checkpoint import JOURNAL, Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.errors import CheckpointError, SkillError, SurgeryError
from tests.support.tiny import KINDS, build, change, expected_fingerprint, hashes, perturb, pickled, shard, weights


def same_tensors(left, right):
    left, right = weights(left), weights(right)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def listing(folder):
    """Everything below a folder with its hash; empty folders, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")), hashes(folder)


def others(folder):
    """Hashes of the files that hold no weights."""
    return {name: digest for name, digest in hashes(folder).items() if "model" not in name}


@pytest.fixture
def delta(tiny, tmp_path_factory):
    """A delta over the tiny BERT that touches 40 weights."""
    folder = tmp_path_factory.mktemp("pair")
    perturb(tiny("bert"), folder / "tuned", count=40)
    return SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(folder / "tuned"))


def pair(base, tuned, **options):
    """A delta from `base`, and the checkpoint `tuned` that it must lead to."""
    perturb(base, tuned, **options)
    return SparseDelta.between(Checkpoint(base), Checkpoint(tuned))


# -- into a new folder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_apply_then_revert(tiny, tmp_path, kind, sharded):
    base = shard(tiny(kind), tmp_path / "sharded") if sharded else tiny(kind)
    delta = pair(base, tmp_path / "tuned", count=60)
    write_patched(delta, Checkpoint(base), tmp_path / "once")
    assert same_tensors(tmp_path / "once", tmp_path / "tuned")
    assert others(tmp_path / "once") == others(base)
    assert Checkpoint(tmp_path / "once").fingerprint == expected_fingerprint(weights(tmp_path / "tuned"))

    assert write_patched(delta, Checkpoint(tmp_path / "once"), tmp_path / "twice") == tmp_path / "twice"
    assert hashes(tmp_path / "twice") == hashes(tmp_path / "once") != hashes(base)
    write_patched(delta, Checkpoint(tmp_path / "twice"), tmp_path / "back", direction="revert")
    write_patched(delta, Checkpoint(tmp_path / "back"), tmp_path / "back2", direction="revert")
    assert hashes(tmp_path / "back") == hashes(tmp_path / "back2") == hashes(base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    base = build("opt", tmp_path / "base", dtype=dtype)
    delta = pair(base, tmp_path / "tuned")
    write_patched(delta, Checkpoint(base), tmp_path / "out")
    assert same_tensors(tmp_path / "out", tmp_path / "tuned")
    write_patched(delta, Checkpoint(tmp_path / "out"), tmp_path / "back", direction="revert")
    assert hashes(tmp_path / "back") == hashes(base)


@pytest.mark.parametrize("layout", ["bin", "legacy bin", "sharded bin"])
def test_pickled_weights_become_safetensors(tiny, tmp_path, layout):
    plain = shard(tiny("bert"), tmp_path / "plain") if "sharded" in layout else tiny("bert")
    delta = pair(plain, tmp_path / "tuned")
    base = pickled(plain, tmp_path / "bin", legacy="legacy" in layout)
    before = hashes(base)
    write_patched(delta, Checkpoint(base), tmp_path / "out")
    assert same_tensors(tmp_path / "out", tmp_path / "tuned")
    assert not list((tmp_path / "out").glob("pytorch_model*"))
    assert others(tmp_path / "out") == others(base)
    write_patched(delta, Checkpoint(tmp_path / "out"), tmp_path / "back", direction="revert")
    assert same_tensors(tmp_path / "back", plain)
    assert hashes(base) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_beyond_the_first_chunk(copied, tmp_path, dtype):
    base, big = copied("bert"), copied("bert", "big")
    long = torch.arange(700_001).to(dtype)
    tuned = long.clone()
    for index in (0, 131_071, 131_072, 262_143, 262_144, 524_287, 524_288, 700_000):  # a chunk is 2 ** 20 bytes
        tuned[index] = -1
    save_file({"long": long}, base / "model.safetensors", metadata={"format": "pt"})
    save_file({"long": tuned}, big / "model.safetensors", metadata={"format": "pt"})
    delta = SparseDelta.between(Checkpoint(base), Checkpoint(big), ["long"])
    write_patched(delta, Checkpoint(base), tmp_path / "out")
    assert hashes(tmp_path / "out") == hashes(big)
    patch_folder(delta, tmp_path / "out", direction="revert")
    assert hashes(tmp_path / "out") == hashes(base)


def test_progress_counts_to_the_end(tiny, tmp_path, delta):
    calls = []
    write_patched(delta, Checkpoint(tiny("bert")), tmp_path / "out", progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert {call[1] for call in calls} == {done[-1]} == {sum(t.nbytes for t in weights(tiny("bert")).values())}


def test_extra_files_are_added_and_dropped_only_unchanged(tiny, tmp_path, delta):
    extra = {"readout.bin": b"readout", "other.bin": b"other"}
    base = Checkpoint(tiny("bert"))
    write_patched(delta, base, tmp_path / "out", add=extra, drop=extra)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in extra} == extra
    (tmp_path / "out" / "other.bin").write_bytes(b"the user's")
    write_patched(delta, Checkpoint(tmp_path / "out"), tmp_path / "back", direction="revert", add=extra, drop=extra)
    kept = {"other.bin": hashes(tmp_path / "out")["other.bin"]}
    assert hashes(tmp_path / "back") == hashes(tiny("bert")) | kept


# -- in place --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_place(tiny, copied, tmp_path, kind, sharded):
    folder = shard(tiny(kind), tmp_path / "base") if sharded else copied(kind)
    delta = pair(folder, tmp_path / "tuned", count=60)
    before, extra = hashes(folder), {"readout.bin": b"readout"}
    inodes = {file: file.stat().st_ino for file in folder.iterdir()}
    for _ in range(2):
        assert patch_folder(delta, folder, add=extra, drop=extra) == folder
        assert same_tensors(folder, tmp_path / "tuned")
        assert set(hashes(folder)) == {*before, "readout.bin"}
    for _ in range(2):
        patch_folder(delta, folder, direction="revert", add=extra, drop=extra)
        assert hashes(folder) == before
    assert {file: file.stat().st_ino for file in folder.iterdir()} == inodes


def test_in_place_writes_only_the_touched_bytes(copied, tmp_path, monkeypatch):
    folder = copied("bert")
    touched = perturb(folder, tmp_path / "tuned", count=25)
    delta = SparseDelta.between(Checkpoint(folder), Checkpoint(tmp_path / "tuned"))
    written, real = [], os.pwrite
    monkeypatch.setattr("os.pwrite", lambda fd, data, at: written.append((at, len(data))) or real(fd, data, at))
    patch_folder(delta, folder)
    assert len(set(written)) == len(written) == sum(map(len, touched.values())) == 25
    assert {length for _, length in written} == {4}


def test_in_place_refuses_links_pickles_and_what_is_no_folder(copied, tmp_path, delta):
    real = copied("bert")
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in real.iterdir():
        (linked / file.name).symlink_to(file)
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link, as in the hub's cache"):
        patch_folder(delta, linked)
    with pytest.raises(CheckpointError, match="only a checkpoint on this disk can be patched in place"):
        patch_folder(delta, "someone/model")
    assert listing(tmp_path) == before
    write_patched(delta, Checkpoint(linked), tmp_path / "out")  # a new folder from links is fine, and holds none
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())

    twin = copied("bert", "twin")
    os.link(twin / "model.safetensors", tmp_path / "hard.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link"):
        patch_folder(delta, twin)

    bin_folder = pickled(real, tmp_path / "bin")
    before = listing(bin_folder)
    with pytest.raises(CheckpointError, match="pickled weights, which can't be patched in place"):
        patch_folder(delta, bin_folder)
    assert listing(bin_folder) == before


def test_in_place_refuses_files_that_cannot_be_written(copied, delta, monkeypatch):
    folder = copied("bert")
    before = listing(folder)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the superuser may write anything
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be written to"):
        patch_folder(delta, folder)
    assert listing(folder) == before


# -- wrong base ------------------------------------------------------------------------------------------------------


def flip(tensor, index=0):
    """Flip the lowest bit of one weight."""
    bits = tensor.view(-1).view(torch.int32)
    bits[index] ^= 1


def untouched(delta, name, size):
    taken = set(delta.part(name)[0].tolist()) if name in delta.tensors else set()
    return next(index for index in range(size) if index not in taken)


# What is wrong -> (which tensor, whether the touched weight itself, whether the skill is in it already)
WRONG = {
    "a tensor before all touched ones": ("bert.embeddings.LayerNorm.bias", False, False),
    "a tensor after all touched ones": ("cls.predictions.transform.dense.weight", False, False),
    "another weight of a touched tensor": (None, False, False),
    "a touched weight": (None, True, False),
    "a tensor after all touched ones, with the skill applied": ("cls.predictions.transform.dense.weight", False, True),
    "a touched weight, with the skill applied": (None, True, True),
}


@pytest.mark.parametrize("how", ["new folder", "sharded", "bin", "in place"])
@pytest.mark.parametrize("direction", ["apply", "revert"])
@pytest.mark.parametrize(("where", "touched", "grafted"), WRONG.values(), ids=WRONG)
def test_wrong_base_is_refused_by_name(tiny, tmp_path, delta, where, touched, grafted, direction, how):
    name = where or list(delta.tensors)[-1]
    start = write_patched(delta, Checkpoint(tiny("bert")), tmp_path / "grafted") if grafted else tiny("bert")

    def spoil(tensor_name, tensor):
        if tensor_name == name:
            flip(tensor, int(delta.part(name)[0][-1]) if touched else untouched(delta, name, tensor.numel()))
        return tensor

    wrong = change(start, tmp_path / "wrong", spoil)
    found = expected_fingerprint(weights(wrong))
    if how == "sharded":
        wrong = shard(wrong, tmp_path / "sharded")
    elif how == "bin":
        wrong = pickled(wrong, tmp_path / "bin")
    before = listing(tmp_path)
    with pytest.raises(SkillError) as caught:
        if how == "in place":
            patch_folder(delta, wrong, direction=direction, add={"x": b"x"}, drop={"config.json": b"x"})
        else:
            write_patched(delta, Checkpoint(wrong), tmp_path / "new" / "out", direction=direction)
    message = str(caught.value)
    assert f"{wrong} is not the skill's base: fingerprint {found[:16]} instead of " in message
    assert expected_fingerprint(weights(tiny("bert")))[:16] in message
    assert f"first differing tensor {name};" in message
    assert listing(tmp_path) == before


@pytest.mark.parametrize("in_place", [False, True])
def test_checkpoints_of_other_shapes_are_refused(tiny, tmp_path, delta, in_place):
    first = next(iter(delta.tensors))
    deep = build("bert", tmp_path / "deep", layers=3)
    disguised = shutil.copytree(deep, tmp_path / "disguised")
    shutil.copy(tiny("bert") / "config.json", disguised)
    cases = {
        f"touches tensor {first}, which .* doesn't hold": build("roberta", tmp_path / "roberta"),
        rf"tensor {first} is torch\.float16 .* but torch\.float32": build(
            "bert", tmp_path / "half", dtype=torch.float16
        ),
        "its config.json says num_hidden_layers 3 instead of 2": deep,
        r"first differing tensor unknown, since it holds \d+ tensors and the base": disguised,
    }
    before = listing(tmp_path)
    for message, folder in cases.items():
        with pytest.raises(SkillError, match=message):
            patch_folder(delta, folder) if in_place else write_patched(delta, Checkpoint(folder), tmp_path / "out")
    assert listing(tmp_path) == before


def test_an_inverse_checks_only_the_weights_it_touches(tiny, tmp_path, delta):
    grafted = write_patched(delta, Checkpoint(tiny("bert")), tmp_path / "grafted")
    write_patched(delta.inverse(), Checkpoint(grafted), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(tiny("bert"))
    name = list(delta.tensors)[1]
    index = int(delta.part(name)[0][0])
    wrong = change(grafted, tmp_path / "wrong", lambda n, t: (flip(t, index), t)[1] if n == name else None)
    with pytest.raises(
        SkillError, match=f"instead of one that holds the skill's values, first differing tensor {name};"
    ):
        write_patched(delta.inverse(), Checkpoint(wrong), tmp_path / "out")


# -- the output folder -----------------------------------------------------------------------------------------------


def test_output_that_exists(tiny, tmp_path, delta):
    base, out = Checkpoint(tiny("bert")), tmp_path / "out"
    out.mkdir()
    write_patched(delta, base, out)  # an empty folder will do
    applied = hashes(out)
    (out / "note.txt").write_text("mine")
    (tmp_path / "file").write_text("a file")
    before = listing(tmp_path)
    with pytest.raises(SurgeryError, match=r"out exists already: name another output or add `overwrite`"):
        write_patched(delta, base, out)
    for overwrite in (False, True):
        with pytest.raises(SurgeryError, match="file is a file, not a folder"):
            write_patched(delta, base, tmp_path / "file", overwrite=overwrite)
    assert listing(tmp_path) == before
    write_patched(delta, base, out, overwrite=True)
    assert hashes(out) == applied
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_output_inside_or_around_the_checkpoint(copied, tmp_path, delta):
    base = copied("bert")
    before = listing(tmp_path)
    for output in (base, base / "out", base / "deep" / "out", tmp_path, base / ".." / "base" / "out"):
        with pytest.raises(SurgeryError, match="lie one inside the other"):
            write_patched(delta, Checkpoint(base), output, overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("point", ["wrong base", "write", "swap", "swap back"])
def test_overwrite_keeps_the_old_folder_when_the_new_one_fails(tiny, tmp_path, delta, monkeypatch, point):
    out, source = tmp_path / "out", tiny("bert")
    out.mkdir()
    (out / "note.txt").write_text("mine")
    (out / "config.json").write_text("{}")
    if point == "wrong base":
        source = build("bert", tmp_path / "wrong", seed=1)
    before, real = listing(tmp_path), Path.rename
    fails = {
        "swap": lambda path: path == out,
        "swap back": lambda path: path.name.startswith(".out.") and not out.exists(),
    }
    fails = fails.get(point)

    def rename(path, target):
        if fails(path):
            raise OSError(errno.EIO, "no luck")
        return real(path, target)

    if point == "write":
        monkeypatch.setattr("surgery.checkpoints.applying.hash_and_patch", full_disk)
    elif fails:
        monkeypatch.setattr("surgery.files.exchange", lambda *_: False)  # as on systems that can't
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SkillError if point == "wrong base" else OSError):
        write_patched(delta, Checkpoint(source), out, overwrite=True)
    assert listing(tmp_path) == before


def test_overwrite_spares_folders_that_are_not_ours(tiny, tmp_path, delta):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(SurgeryError, match="isn't overwritten"):
        write_patched(delta, Checkpoint(tiny("bert")), out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_way_of_the_skills_own_is_kept(copied, tmp_path, delta):
    base = copied("bert")
    (base / "readout.bin").write_bytes(b"another")
    with pytest.raises(SkillError, match="is there already, and isn't the skill's"):
        write_patched(delta, Checkpoint(base), tmp_path / "out", add={"readout.bin": b"the skill's"})
    assert not (tmp_path / "out").exists()


def test_a_strangers_file_is_refused_before_the_first_write_in_place(copied, delta):
    folder, extra = copied("bert"), {"readout.bin": b"the skill's"}
    (folder / "readout.bin").write_bytes(b"another")
    before = listing(folder)
    with pytest.raises(SkillError, match="is there already, and isn't the skill's"):
        patch_folder(delta, folder, add=extra, drop=extra)
    assert listing(folder) == before  # and not half patched
    (folder / "readout.bin").unlink()
    patch_folder(delta, folder, add=extra, drop=extra)
    (folder / "readout.bin").write_bytes(b"another")
    patch_folder(delta, folder, direction="revert", add=extra, drop=extra)
    assert listing(folder) == before


# -- a full disk -----------------------------------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("part", ["surgery.checkpoints.applying.hash_and_patch", "shutil.copyfile", "os.fsync"])
def test_disk_full_while_writing_a_new_folder(tiny, tmp_path, delta, monkeypatch, part):
    monkeypatch.setattr(part, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_patched(delta, Checkpoint(tiny("bert")), tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


def test_disk_full_before_the_journal_is_written(copied, tmp_path, delta, monkeypatch):
    folder = copied("bert")
    before = listing(folder)
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        patch_folder(delta, folder)
    assert listing(folder) == before
    assert not (folder / JOURNAL).exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 KB, less than the tiny BERT takes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("no permission to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(tiny, small_disk, delta):
    with pytest.raises(OSError, match="No space left"):
        write_patched(delta, Checkpoint(tiny("bert")), small_disk / "out")
    assert list(small_disk.iterdir()) == []
