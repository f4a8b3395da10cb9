"""Reference folders in Hugging Face's form, and ways to change them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.checkpoints.checkpoint import Checkpoint
from worker.checkpoints.folder import find
from worker.checkpoints.formats import load

GOLDEN_HF = Path(__file__).parents[1] / "fixtures" / "golden-hf"
#: Every reference folder, named after its family.
FAMILIES = sorted(path.parent.name for path in GOLDEN_HF.glob("*/expected.json"))
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
#: A value for `changed`: the key is left out.
LEFT_OUT = object()

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _TYPES.items()} | {torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL"}


def expected(family: str) -> dict[str, Any]:
    """What transformers computed for a reference folder."""
    content: dict[str, Any] = json.loads((GOLDEN_HF / family / "expected.json").read_text())
    return content


def opened(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Raises CheckpointError."""
    return load(find(str(folder), folder.parent))


@cache
def golden(family: str) -> Checkpoint:
    """A reference folder, opened."""
    return opened(GOLDEN_HF / family)


def copied(family: str, folder: Path, **changes: Any) -> Path:
    """Copy a reference folder, with other values in its `config.json`. Returns the copy."""
    shutil.copytree(GOLDEN_HF / family, folder, ignore=shutil.ignore_patterns("expected.json"))
    changed(folder / CONFIG, **changes)
    return folder


def changed(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file, or leave them out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not LEFT_OUT}))


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors in all safetensors files of a folder."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:end]).items():
            if name != "__metadata__":
                begin, stop = (end + offset for offset in entry["data_offsets"])
                flat = torch.frombuffer(bytearray(data[begin:stop]), dtype=_TYPES[entry["dtype"]])
                tensors[name] = flat.view(entry["shape"])
    return tensors


def write_safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file, in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    contents = []
    end = 0
    for name, tensor in tensors.items():
        content = bytes(tensor.contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""
        begin, end = end, end + len(content)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        contents.append(content)
    file.write_bytes(with_header(header, b"".join(contents)))


def with_header(header: object, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file. The header is JSON unless it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def in_one_file(folder: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Replace the weights of a folder by one file. Returns the folder."""
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink(missing_ok=True)
    write_safetensors(folder / WEIGHTS, tensors)
    return folder
