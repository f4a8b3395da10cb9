"""The safetensors format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.gguf_files import read_safetensors
from worker.conversion.safetensors_writer import NumberFormat, PlannedTensor, write_safetensors


def planned(name: str, kind: NumberFormat, content: np.ndarray, parts: int = 1) -> PlannedTensor:
    return PlannedTensor(name, kind, content.shape, lambda: (part.data for part in np.array_split(content, parts)))


def test_tensors_are_written_in_parts_and_aligned(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    odd = random.integers(0, 1 << 16, 3, dtype=np.uint16)
    matrix = random.standard_normal((5, 3)).astype(np.float32)
    half = random.standard_normal((7, 2)).astype(np.float16)
    written: list[int] = []
    path = tmp_path / "model.safetensors"
    tensors = (planned("a.odd", "BF16", odd), planned("b.matrix", "F32", matrix, 3), planned("é", "F16", half, 2))
    write_safetensors(path, tensors, written.append)
    assert sum(written) == sum(tensor.nbytes for tensor in tensors) == 6 + 60 + 28
    assert len(written) == 6
    found = read_safetensors(path)
    assert {name: kind for name, (kind, _) in found.items()} == {"a.odd": "BF16", "b.matrix": "F32", "é": "F16"}
    for name, expected in (("a.odd", odd), ("b.matrix", matrix), ("é", half)):
        assert np.array_equal(found[name][1], expected)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert size % 8 == 0
    # transformers asks for it.
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header["b.matrix"]["data_offsets"] == [0, 60]
    assert len(data) == 8 + size + 94


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write_safetensors(path, [], lambda size: None)
    assert path.read_text() == "mine"
