"""The header of safetensors files, against the safetensors library and hand-made damage."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgery.checkpoints.tensorfile import DTYPES, read_header
from surgery.errors import CheckpointError
from tests.support.tiny import raw


def write(file, header, data=b"", *, length=None):
    """A safetensors file from its parts; `header` is bytes or what JSON makes of it."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return file


def line(start=0, stop=16, dtype="F32", shape=(4,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def test_entries_give_the_bytes_that_the_library_reads(file):
    tensors = {
        "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "half": torch.tensor([-0.0, 6e-8], dtype=torch.float16),
        "brain": torch.full((2, 1, 3), 1.5, dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 5),
        "flags": torch.tensor([True, False, True]),
        "double": torch.linspace(0, 1, 5, dtype=torch.float64),
    }
    save_file(tensors, file, metadata={"format": "pt", "note": "é"})
    entries, metadata = read_header(file)
    assert metadata == {"format": "pt", "note": "é"}
    assert {entry.name for entry in entries} == set(tensors)
    content = file.read_bytes()
    for entry in entries:
        expected = load_file(file)[entry.name]
        assert (entry.dtype, entry.shape, entry.file) == (expected.dtype, tuple(expected.shape), file)
        assert entry.size == expected.numel()
        assert content[entry.start : entry.stop] == raw(expected).tobytes()
    starts = [entry.start for entry in entries]
    assert starts == sorted(starts)


@pytest.mark.parametrize("code", sorted(DTYPES))
def test_every_dtype_is_the_library_s(file, code):
    save_file({"x": torch.zeros(3, dtype=DTYPES[code])}, file)
    assert read_header(file)[0][0].dtype == DTYPES[code]
    header = json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["x"]["dtype"] == code


def test_no_tensors_and_no_metadata(file):
    assert read_header(write(file, {})) == ([], {})


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\0\0", b"\xff" * 8, (9).to_bytes(8, "little") + b"{}", (10**9).to_bytes(8, "little") + b"{}"],
    ids=["empty", "shorter than its length field", "enormous length", "one byte short", "over the format's limit"],
)
def test_cut_off_within_the_header(file, content):
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no safetensors file, or is cut off"):
        read_header(file)


DAMAGED = {
    "not JSON": (b"{nonsense", "isn't a JSON table"),
    "not text": (b"\xff\xfe\xfd\xfc", "isn't a JSON table"),
    "nested without end": (b"[" * 100_000, "isn't a JSON table"),
    "a list": ([1, 2], "isn't a JSON table"),
    "metadata no table": ({"__metadata__": ["x"]}, "metadata that isn't a table"),
    "no such dtype": ({"a": line(dtype="F31")}, "tensor a can't be read"),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 16]}}, "tensor a can't be read"),
    "no line at all": ({"a": None}, "tensor a can't be read"),
    "shape of words": ({"a": line(shape=["four"])}, "tensor a can't be read"),
    "broken shape": ({"a": line(shape=[4.5])}, "tensor a can't be read"),
    "one offset": ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}, "tensor a can't be read"),
    "shape against offsets": ({"a": line(shape=[5])}, "tensor a has 16 bytes"),
    "negative shape": ({"a": line(shape=[-2, -2])}, "tensor a has 16 bytes"),
    "backwards": ({"a": line(16, 0)}, "tensor a has -16 bytes"),
    "begins late": ({"a": line(4, 20)}, "tensor a doesn't begin where"),
    "begins in the header": ({"a": line(-8, 8)}, "tensor a doesn't begin where"),
    "overlap": ({"a": line(0, 16), "b": line(8, 24)}, "tensor b doesn't begin where"),
    "gap": ({"a": line(0, 16), "b": line(20, 36)}, "tensor b doesn't begin where"),
    "the same bytes twice": ({"a": line(), "b": line()}, "tensor b doesn't begin where"),
}


@pytest.mark.parametrize(("header", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_header(file, header, message):
    write(file, header, b"\0" * 40)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"), [(15, r"truncated \(\S+ bytes instead of"), (17, "longer than its header says")]
)
def test_length_must_be_exact(file, data, message):
    write(file, {"a": line()}, b"\0" * data)
    with pytest.raises(CheckpointError, match=message):
        read_header(file)
    assert read_header(write(file, {"a": line()}, b"\0" * 16))[0][0].shape == (4,)


def test_every_truncation_is_noticed(file):
    save_file({"a": torch.ones(4), "b": torch.ones(2, dtype=torch.float16)}, file)
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(file)
