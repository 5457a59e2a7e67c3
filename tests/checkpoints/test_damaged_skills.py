"""Skill files that are damaged, or aren't skill files, are each refused with one clear sentence."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgery.checkpoints.applying import patch_folder
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import Extent, SparseDelta
from surgery.errors import SkillError
from tests.support.tiny import hashes, perturb


@pytest.fixture
def file(tiny, tmp_path):
    """A sound skill file of 40 weights over the tiny BERT."""
    perturb(tiny("bert"), tmp_path / "tuned", count=40)
    delta = SparseDelta.between(Checkpoint(tiny("bert")), Checkpoint(tmp_path / "tuned"))
    path = tmp_path / "skill.safetensors"
    path.write_bytes(delta.to_bytes())
    return path


def refused(file, message):
    with pytest.raises(SkillError, match=message) as caught:
        SparseDelta.load(file)
    sentence = str(caught.value)
    assert sentence.startswith(str(file))
    assert "\n" not in sentence


def rewrite(file, edit):
    """Change a skill file's arrays, its table of tensors and its header by `edit(arrays, table, header)`."""
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    arrays, table = load_file(file), json.loads(header.pop("tensors"))
    header["tensors"] = None
    edit(arrays, table, header)
    if header.get("tensors", "") is None:
        header["tensors"] = json.dumps(table)
    save_file(arrays, file, metadata=header)


def two(table):
    """Where in the arrays the first tensor's weights begin that has two or more."""
    return next(row[3] for row in table if row[4] - row[3] > 1)


def test_a_rewritten_file_is_sound(file):
    before = SparseDelta.load(file)
    rewrite(file, lambda arrays, table, header: None)
    assert SparseDelta.load(file).to_bytes() == before.to_bytes()


@pytest.mark.parametrize("array", ["indices", "values", "base_values"])
def test_one_flipped_bit_is_refused(file, array):
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    offset = start + json.loads(content[8:start])[array]["data_offsets"][0]
    file.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    refused(file, "doesn't match|don't match|stands twice|aren't sorted|out of range")


def test_every_truncation_is_refused(file):
    content = file.read_bytes()
    for length in [*range(32), *range(32, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        refused(file, "is damaged .*: make or fetch it again")


@pytest.mark.parametrize("content", [b"not a safetensors file at all", b"\0" * 64, b"\xff" * 64])
def test_not_safetensors(file, content):
    file.write_bytes(content)
    refused(file, "is damaged")


def test_missing_or_a_folder(tmp_path):
    refused(tmp_path / "missing.safetensors", "is missing: name a skill folder")
    refused(tmp_path, "is damaged")


def test_a_checkpoint_is_no_skill(tiny):
    refused(tiny("bert") / "model.safetensors", "is no skill file: its header doesn't say surgery.sparse-delta")


def test_an_unused_header_of_another_kind(file):
    save_file({"indices": torch.zeros(1)}, file)  # no metadata at all
    refused(file, "is no skill file")


@pytest.mark.parametrize("schema", ["2", "0", "", "one", None])
def test_another_schema(file, schema):
    def edit(arrays, table, header):
        header.pop("schema")
        if schema is not None:
            header["schema"] = schema

    rewrite(file, edit)
    refused(file, f"has schema {schema}, this version reads 1: install the version that wrote it")


def swap(arrays, table, header):
    at = two(table)
    indices = arrays["indices"].tolist()
    indices[at], indices[at + 1] = indices[at + 1], indices[at]
    arrays["indices"] = torch.tensor(indices, dtype=torch.uint32)


def repeat(arrays, table, header):
    at = two(table)
    arrays["indices"][at + 1] = int(arrays["indices"][at])


def beyond(arrays, table, header):
    row = table[0]
    arrays["indices"][row[4] - 1] = int(torch.tensor(row[2]).prod())


def each_of(name, change):
    def edit(arrays, table, header):
        arrays[name] = change(arrays[name])

    return edit


def row_of(number, column, value):
    def edit(arrays, table, header):
        table[number][column] = value

    return edit


def header_of(**fields):
    return lambda arrays, table, header: header.update(fields)


UNREADABLE, FLAT = "its header or arrays can't be read", "must be flat arrays, the latter two of one dtype"
DAMAGE = {
    "unsorted indices": (swap, r"tensor bert\S+: the indices aren't sorted"),
    "duplicate index": (repeat, r"tensor bert\S+: index \d+ stands twice"),
    "index out of range": (beyond, r"tensor bert\S+: index (\d+) is out of range for [\d,]+ weights"),
    "a value too few": (each_of("values", lambda v: v[:-1]), "40 indices, 39 values and 40 base values"),
    "a base value too few": (each_of("base_values", lambda v: v[:-1]), "40 indices, 40 values and 39 base values"),
    "an index too many": (
        each_of("indices", lambda v: v.int()[[*range(40), 39]].to(torch.uint32)),
        "41 indices, 40 values",
    ),
    "values in a column": (each_of("values", lambda v: v[:, None].contiguous()), FLAT),
    "indices in a column": (each_of("indices", lambda v: v[:, None].contiguous()), FLAT),
    "a lone value": (each_of("values", lambda v: v[0].clone()), FLAT),
    "values of another dtype": (each_of("values", lambda v: v.half()), FLAT),
    "broken indices": (each_of("indices", lambda v: v.float() + 0.5), UNREADABLE),
    "digests of another width": (each_of("digests", lambda d: d[:, :7].contiguous()), UNREADABLE),
    "digests of another dtype": (each_of("digests", lambda d: d.float()), UNREADABLE),
    "values too narrow": (
        lambda arrays, table, header: arrays.update({n: arrays[n].half() for n in ("values", "base_values")}),
        r"tensor bert\S+ is torch.float32, which the values' torch.float16 can't hold",
    ),
    "no indices": (lambda arrays, table, header: arrays.pop("indices"), UNREADABLE),
    "no digests": (lambda arrays, table, header: arrays.pop("digests"), UNREADABLE),
    "no table": (lambda arrays, table, header: header.pop("tensors"), UNREADABLE),
    "no fingerprint": (lambda arrays, table, header: header.pop("base_fingerprint"), UNREADABLE),
    "table cut off": (header_of(tensors='[["a", "F32"'), UNREADABLE),
    "table is a number": (header_of(tensors="3"), UNREADABLE),
    "table nested without end": (header_of(tensors="[" * 50_000), UNREADABLE),
    "row too short": (lambda arrays, table, header: table[0].pop(), UNREADABLE),
    "no such dtype": (row_of(0, 1, "F31"), UNREADABLE),
    "shape of words": (row_of(0, 2, ["four"]), UNREADABLE),
    "extent of words": (row_of(0, 3, "0"), UNREADABLE),
    "name is a number": (row_of(0, 0, 3), UNREADABLE),
    "a row twice": (lambda arrays, table, header: table.insert(0, table[0]), "isn't sorted by name without repeats"),
    "rows swapped": (lambda arrays, table, header: table.reverse(), "isn't sorted by name without repeats"),
    "a row missing": (lambda arrays, table, header: table.pop(0), "doesn't follow the one before"),
    "the last row missing": (lambda arrays, table, header: table.pop(), r"the tensor table covers \d+ of 40 weights"),
    "an extent beyond the end": (row_of(-1, 4, 41), "doesn't follow the one before"),
    "an empty extent": (row_of(0, 4, 0), "doesn't follow the one before"),
    "movable no number": (header_of(movable="many"), UNREADABLE),
    "movable too few": (header_of(movable="39"), "40 weights can't come from 39 movable ones"),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged(file, edit, message):
    rewrite(file, edit)
    refused(file, message)


def test_the_index_out_of_range_is_named(file):
    rewrite(file, beyond)
    with pytest.raises(SkillError) as caught:
        SparseDelta.load(file)
    index, size = re.search(r"index (\d+) is out of range for ([\d,]+) weights", str(caught.value)).groups()
    assert int(index) == int(size.replace(",", ""))


def test_indices_that_the_file_could_not_hold():
    extent = Extent("a", torch.float32, (2,), 0, 2)
    with pytest.raises(SkillError, match="index -1 is out of range for 2 weights"):
        SparseDelta((extent,), torch.tensor([-1, 1]), torch.ones(2), torch.zeros(2), 2, "")
    extent = Extent("a", torch.float32, (1 << 17, 1 << 16), 0, 1)
    with pytest.raises(SkillError, match="has 8,589,934,592 weights, more than 32-bit indices can count"):
        SparseDelta((extent,), torch.tensor([1 << 32]), torch.ones(1), torch.zeros(1), 1, "")


@pytest.mark.parametrize("array", ["base_values", "indices"])
def test_a_flipped_bit_in_what_names_the_base_is_refused_on_applying(file, copied, array):
    def edit(arrays, table, header):
        arrays[array].view(torch.int32)[table[0][4] - 1] ^= 1

    folder = copied("bert")
    before = hashes(folder)
    rewrite(file, edit)
    with pytest.raises(SkillError):
        patch_folder(SparseDelta.load(file), folder)
    assert hashes(folder) == before
