"""Writes the safetensors format part by part, so that no tensor need be in memory as a whole.

The format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

NumberFormat = Literal["F32", "F16", "BF16"]
#: Bytes of a number.
WIDTHS: dict[NumberFormat, int] = {"F32": 4, "F16": 2, "BF16": 2}
#: The data begins at a multiple of this many bytes.
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that is to be written."""

    name: str
    format: NumberFormat
    shape: tuple[int, ...]
    #: Makes the numbers in parts, row after row, little-endian. It is called once.
    parts: Callable[[], Iterable[memoryview]]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * WIDTHS[self.format]


def write_safetensors(path: Path, tensors: Iterable[PlannedTensor], progress: Callable[[int], None]) -> None:
    """Write a new file, and wait until it is on the disk. Raises OSError.

    `progress` is called with the number of bytes of each part that was written.
    """
    # Wider numbers come first, so that each tensor begins at a multiple of its numbers' width.
    ordered = sorted(tensors, key=lambda tensor: (-WIDTHS[tensor.format], tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.format, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            written = 0
            for part in tensor.parts():
                size = file.write(part)
                written += size
                progress(size)
            assert written == tensor.nbytes, f"{tensor.name} has {written} bytes instead of {tensor.nbytes}"
        file.flush()
        os.fsync(file.fileno())
