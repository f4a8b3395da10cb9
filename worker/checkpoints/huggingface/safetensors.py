"""Reads one safetensors file (https://github.com/huggingface/safetensors, "Format").

The file is a length, a header in JSON with the name, type, shape and place of each tensor, and the contents. It is read
with `pread` and not mapped, as the package `safetensors` does: a process that has mapped a file ends with SIGBUS when
the file becomes shorter, as it does while another process copies a new one over it.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.regular_file import GIT_LFS, IS_POINTER, fill_at, open_regular

#: The largest header that is read, in bytes: that of 100,000 tensors. The format allows three times as much.
MAX_HEADER_BYTES = 32 << 20
_LENGTH_BYTES = 8
#: A shape has at most this many dimensions.
_MAX_DIMENSIONS = 8
#: Bits of a number of each type of the format.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_ZIP, _PICKLE, _GGUF = b"PK\x03\x04", b"\x80", b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a tensor is in its file, and what it is. The numbers are in row-major order."""

    name: str
    #: As the format spells it: `F32`, `BF16`.
    dtype: str
    shape: tuple[int, ...]
    #: The position of the content in the file, in bytes.
    start: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file. It stays the same file when another one takes its name. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its header. Raises CheckpointError if it is not a complete safetensors file."""
        self.path = path
        self._file = open_regular(path)
        self._close = weakref.finalize(self, self._file.close)
        #: By name, in the order of the header.
        self.entries: dict[str, Entry] = {}
        try:
            self._state = self._current_state()
            self.entries = {entry.name: entry for entry in self._read_header()}
        except OSError as error:
            self.close()
            raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
        except CheckpointError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. It is also closed when this object is garbage-collected."""
        self._close()

    @property
    def state(self) -> tuple[int, ...]:
        """Device, inode, size, and time of the last change of the content in ns, as they were when it was opened."""
        return self._state

    def read_into(self, entry: Entry, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes of a tensor from `offset` on.

        Raises CheckpointError, also if the file was cut off or changed since it was opened.
        """
        try:
            if fill_at(self._file, entry.start + offset, target) < target.nbytes:
                raise CheckpointError(
                    self.path, f"was cut off while it was read (in tensor {entry.name}): copy it again"
                )
            if self._current_state() != self._state:
                raise CheckpointError(self.path, f"was changed while it was read (in tensor {entry.name})")
        except OSError as error:
            raise CheckpointError(self.path, f"cannot be read: {error.strerror}") from error

    def _current_state(self) -> tuple[int, ...]:
        found = os.fstat(self._file.fileno())
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _read_header(self) -> list[Entry]:
        beginning = self._file.read(len(GIT_LFS))
        size = self._state[2]
        length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
        data_start = _LENGTH_BYTES + length
        if len(beginning) < _LENGTH_BYTES or beginning[_LENGTH_BYTES : _LENGTH_BYTES + 1] not in (b"{", b""):
            raise CheckpointError(self.path, _why_no_header(beginning))
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                self.path, f"is damaged: its header has {length:,} bytes; {MAX_HEADER_BYTES:,} are read"
            )
        if data_start > size:
            raise CheckpointError(self.path, f"was cut off in its header, at {size:,} bytes: copy it again")
        self._file.seek(_LENGTH_BYTES)
        content = self._parsed(self._file.read(length))
        entries = [self._entry(name, value, data_start) for name, value in content.items() if name != "__metadata__"]
        self._check_places(entries, data_start, size)
        return entries

    def _parsed(self, header: bytes) -> dict[str, Any]:
        try:
            content = json.loads(header.decode(), object_pairs_hook=_without_duplicates)
        # RecursionError: arrays or objects are nested too deeply.
        except (ValueError, RecursionError) as error:
            raise CheckpointError(self.path, f"is damaged: its header is not valid: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(self.path, "is damaged: its header is not a JSON object")
        return content

    def _entry(self, name: str, value: object, data_start: int) -> Entry:
        match value:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
                pass
            case _:
                raise CheckpointError(
                    self.path, f"is damaged: tensor {name} is not described by dtype, shape and data_offsets"
                )
        if len(shape) > _MAX_DIMENSIONS or any(type(one) is not int or one < 0 for one in (*shape, begin, end)):
            raise CheckpointError(self.path, f"is damaged: tensor {name} has an impossible shape or place")
        bits = _BITS.get(dtype)
        if end < begin or (bits is not None and 8 * (end - begin) != -(-prod(shape) * bits // 8) * 8):
            raise CheckpointError(
                self.path, f"is damaged: the content of tensor {name} has another size than its shape and type"
            )
        return Entry(name=name, dtype=dtype, shape=tuple(shape), start=data_start + begin, nbytes=end - begin)

    def _check_places(self, entries: Iterable[Entry], data_start: int, size: int) -> None:
        """The contents lie one behind the other, from the header to the end of the file, as the format requires."""
        position = data_start
        for entry in sorted(entries, key=lambda entry: (entry.start, entry.nbytes)):
            if entry.start != position:
                how = "overlaps another one" if entry.start < position else "does not follow the one before it"
                raise CheckpointError(self.path, f"is damaged: the content of tensor {entry.name} {how}")
            position += entry.nbytes
        if position > size:
            raise CheckpointError(
                self.path,
                f"was cut off: it has {size:,} bytes of {position:,}. Copy it again, and wait until it is done",
            )
        if position < size:
            raise CheckpointError(self.path, f"is damaged: {size - position:,} bytes follow its last tensor")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{name!r} occurs twice")
        content[name] = value
    return content


def _why_no_header(beginning: bytes) -> str:
    if not beginning:
        return "is empty: copy it again"
    if beginning == GIT_LFS:
        return IS_POINTER
    if beginning.startswith(_GGUF):
        return "is a GGUF file: turn it into a folder with `celeriac convert`"
    if beginning.startswith((_ZIP, _PICKLE)):
        return "is a file of torch.save and not of safetensors"
    return "is not a safetensors file, or its beginning is damaged"
