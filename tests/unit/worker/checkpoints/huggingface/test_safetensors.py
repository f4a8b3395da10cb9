"""One safetensors file: what is read, and what is refused with the file and the reason."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.huggingface_folders import with_header, write_safetensors
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.huggingface.safetensors import MAX_HEADER_BYTES, SafetensorsFile

TENSORS = {
    "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b": torch.arange(7, dtype=torch.bfloat16),
    "c": torch.tensor(2.5, dtype=torch.float16),
    "empty": torch.empty(0, 4),
    "d": torch.arange(6, dtype=torch.float16).view(1, 2, 3),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner)
    ),
    max_leaves=8,
)


def content(file: SafetensorsFile, name: str) -> bytes:
    entry = file.entries[name]
    target = bytearray(entry.nbytes)
    file.read_into(entry, 0, memoryview(target))
    return bytes(target)


def bytes_of(tensor: Tensor) -> bytes:
    return bytes(tensor.flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, TENSORS)
    file = SafetensorsFile(path)
    assert [(entry.name, entry.shape) for entry in file.entries.values()] == [
        (name, tuple(tensor.shape)) for name, tensor in TENSORS.items()
    ]
    assert [entry.dtype for entry in file.entries.values()] == ["F32", "BF16", "F16", "F32", "F16"]
    for name, tensor in TENSORS.items():
        assert content(file, name) == bytes_of(tensor)
    part = bytearray(8)
    file.read_into(file.entries["a"], 4, memoryview(part))
    assert bytes(part) == bytes_of(TENSORS["a"])[4:12]


def test_a_header_may_have_any_order_spaces_and_types_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = (
        b'{"z":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[8,10]},"y":{"dtype":"I64","shape":[1],"data_offsets":'
    )
    path.write_bytes(with_header(header + b"[0,8]}}" + b" " * 20, bytes(range(10))))
    file = SafetensorsFile(path)
    assert (content(file, "y"), content(file, "z")) == (bytes(range(8)), bytes((8, 9)))
    assert [entry.dtype for entry in file.entries.values()] == ["F8_E4M3", "I64"]


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\x08\x00", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "run `git lfs pull`"),
        (b"PK\x03\x04" + bytes(100), "is a file of torch.save"),
        (b"\x80\x02}q\x00." + bytes(100), "is a file of torch.save"),
        (b"GGUF" + bytes(100), "`celeriac convert`"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00[[[[[[[[[[[[[[[[", "is not a safetensors file"),
        (b"\xff" * 8 + b"{}", "its header has 18,446,744,073,709,551,615 bytes"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "its header has"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "was cut off in its header, at 10 bytes"),
        (b"\x00" * 8, "its header is not valid"),
        (with_header(b'{"a": }'), "its header is not valid"),
        (with_header(b'{"a": \xff}'), "its header is not valid"),
        (with_header(b'{"a":' * 20_000), "its header is not valid"),
        (with_header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"), "its header is not valid"),
        (with_header(b'{"a":1,"a":1}'), "'a' occurs twice"),
        (with_header({"a": 1}), "tensor a is not described"),
        (with_header({"a": {"dtype": "F32", "shape": [2]}}), "tensor a is not described"),
        (with_header({"a": entry(dtype=32)}, bytes(8)), "tensor a is not described"),
        (with_header({"a": entry(shape=2)}, bytes(8)), "tensor a is not described"),
        (with_header({"a": entry(offsets=[0, 4, 8])}, bytes(8)), "tensor a is not described"),
        (with_header({"a": entry(shape=[-1, -2])}, bytes(8)), "impossible shape or place"),
        (with_header({"a": entry(shape=[True, 2])}, bytes(8)), "impossible shape or place"),
        (with_header({"a": entry(shape=[2.0])}, bytes(8)), "impossible shape or place"),
        (with_header({"a": entry(shape=[1] * 8 + [2])}, bytes(8)), "impossible shape or place"),
        (with_header({"a": entry(offsets=[-8, 0])}, bytes(8)), "impossible shape or place"),
        (with_header({"a": entry(offsets=[8, 0])}, bytes(8)), "another size than its shape"),
        (with_header({"a": entry(shape=[3])}, bytes(8)), "another size than its shape"),
        (with_header({"a": entry(shape=[1 << 60, 1 << 60])}, bytes(8)), "another size than its shape"),
        (with_header({"a": entry(), "b": entry()}, bytes(8)), "the content of tensor b overlaps"),
        (with_header({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "the content of tensor b overlaps"),
        (
            with_header({"a": entry(), "b": entry(offsets=[9, 17])}, bytes(17)),
            "tensor b does not follow the one before",
        ),
        (with_header({"a": entry(offsets=[8, 16])}, bytes(16)), "tensor a does not follow"),
        (with_header({"a": entry()}, bytes(7)), "was cut off: it has"),
        (with_header({"a": entry(dtype="NEW", offsets=[0, 1 << 62])}, bytes(8)), "was cut off: it has"),
        (with_header({"a": entry()}, bytes(9)), "1 bytes follow its last tensor"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path / "model.safetensors", data)


def test_a_huge_header_of_equal_names_is_refused_at_once(tmp_path: Path) -> None:
    """Comparing each name with each other one would take minutes."""
    names = ",".join(f'"{number}":0' for number in range(300_000))
    assert "occurs twice" in refusal(tmp_path / "model.safetensors", with_header(f'{{{names},"7":0}}'.encode()))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_change_of_a_file_does_more_than_refuse_it(data: st.DataObject) -> None:
    """A file with other bytes is refused, or its tensors have the sizes that its header says and can be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_safetensors(path, TENSORS)
        changed = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(changed) - 1))
            kind = data.draw(st.sampled_from(["set", "insert", "delete", "cut"]))
            piece = data.draw(st.binary(min_size=1, max_size=3))
            if kind == "cut" and place:
                del changed[place:]
            elif kind == "delete" and len(changed) > len(piece):
                del changed[place : place + len(piece)]
            elif kind == "insert":
                changed[place:place] = piece
            else:
                changed[place : place + len(piece)] = piece
        path.write_bytes(changed)
        try:
            file = SafetensorsFile(path)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            return
        for name in file.entries:
            content(file, name)


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_any_json_as_header_is_refused_or_empty(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(with_header({"a": value}))
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_a_file_that_is_cut_off_while_it_is_read_is_a_sentence(tmp_path: Path) -> None:
    """A process that had mapped it would end with SIGBUS."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": torch.zeros(100_000)})
    file = SafetensorsFile(path)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match=r"model.safetensors: was cut off while it was read \(in tensor a\)"):
        content(file, "a")


def test_a_file_that_is_overwritten_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": torch.zeros(1000)})
    file = SafetensorsFile(path)
    data = path.read_bytes()
    with path.open("r+b") as writer:
        writer.write(data)
    os.utime(path, ns=(0, 1))
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        content(file, "a")


def test_a_file_that_is_replaced_is_still_read(tmp_path: Path) -> None:
    path, other = tmp_path / "model.safetensors", tmp_path / "other"
    write_safetensors(path, {"a": torch.zeros(10)})
    file = SafetensorsFile(path)
    write_safetensors(other, {"a": torch.ones(10)})
    other.replace(path)
    assert content(file, "a") == bytes(40)


def test_something_else_than_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "missing", ""):
        with pytest.raises(CheckpointError, match=r"is not a regular file|No such file"):
            SafetensorsFile(tmp_path / name)


def test_metadata_is_not_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_header(json.dumps({"__metadata__": {"format": "pt"}}).encode()))
    assert SafetensorsFile(path).entries == {}
