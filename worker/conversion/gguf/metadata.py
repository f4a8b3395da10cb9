"""Parses a GGUF file: metadata, and where its tensors are. A damaged file cannot make it read or allocate more than the
file has.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

#: Versions with 64-bit lengths. The first one is from 2023.
_VERSIONS = (2, 3)
_NUMBERS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "u1",
    GGUFValueType.INT8: "i1",
    GGUFValueType.UINT16: "u2",
    GGUFValueType.INT16: "i2",
    GGUFValueType.UINT32: "u4",
    GGUFValueType.INT32: "i4",
    GGUFValueType.UINT64: "u8",
    GGUFValueType.INT64: "i8",
    GGUFValueType.FLOAT32: "f4",
    GGUFValueType.FLOAT64: "f8",
    GGUFValueType.BOOL: "?",
}
#: Types of tensors whose content is numbers as they are; all others are blocks of bytes.
_PLAIN: dict[GGMLQuantizationType, type[np.generic]] = {
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F16: np.float16,
}
_MAX_DIMENSIONS = 4
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the metadata."""

    #: Of the value, or of the elements of a list.
    type: GGUFValueType
    is_list: bool
    content: Any


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in the file."""

    name: str
    format: GGMLQuantizationType
    #: As PyTorch orders them: rows first.
    shape: tuple[int, ...]
    #: The content as it is in the file, which is mapped: numbers, or the bytes of the blocks of each row.
    data: np.ndarray


def parse(data: mmap.mmap) -> tuple[dict[str, Value], dict[str, GgufTensor]]:
    """The metadata by key and the tensors by name, in the order of the file. Raises ValueError, with the reason."""
    cursor = _Cursor(data)
    cursor.take(4)
    version = cursor.integer("I")
    if version not in _VERSIONS:
        # The bytes of a small number are at the other end.
        swapped = version & 0xFFFF == 0
        kind = "was written for a processor with another byte order" if swapped else f"is of version {version}"
        raise ValueError(f"{kind}, which is not supported")
    tensors, values = cursor.integer("Q"), cursor.integer("Q")
    metadata: dict[str, Value] = {}
    for _ in range(values):
        key = cursor.text()
        if metadata.setdefault(key, value := cursor.value()) is not value:
            raise ValueError(f"is damaged: it has {key} twice")
    places = [cursor.place() for _ in range(tensors)]
    alignment = metadata.get("general.alignment")
    step = _ALIGNMENT if alignment is None else alignment.content
    if not isinstance(step, int) or step < 1:
        raise ValueError("is damaged: its general.alignment is no number")
    start = -(-cursor.position // step) * step
    found = {place.name: place.read(data, start) for place in places}
    if len(found) < len(places):
        raise ValueError("is damaged: two tensors have the same name")
    return metadata, found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is."""

    name: str
    format: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    def read(self, data: mmap.mmap, start: int) -> GgufTensor:
        block, size = GGML_QUANT_SIZES[self.format]
        if not self.shape or min(self.shape) < 1 or self.shape[-1] % block:
            raise ValueError(f"is damaged: tensor {self.name} has shape {self.shape}")
        begin, count = start + self.offset, prod(self.shape) // block * size
        if begin + count > len(data):
            raise ValueError(f"was cut off: tensor {self.name} ends after the end of the file. Copy it again")
        plain = _PLAIN.get(self.format)
        content = np.frombuffer(data, np.uint8, count, begin)
        shape = (*self.shape[:-1], self.shape[-1] // block * size)
        found = content.reshape(shape) if plain is None else content.view(plain).reshape(self.shape)
        return GgufTensor(self.name, self.format, self.shape, found)


class _Cursor:
    """Reads one part after the other. Every method raises ValueError if the file ends before."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._data):
            raise ValueError("was cut off, or is damaged: copy it again")
        found = self._data[self.position : end]
        self.position = end
        return found

    def integer(self, kind: str) -> int:
        """An integer of a type of `struct`."""
        number: int
        (number,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))
        return number

    def text(self) -> str:
        try:
            return self.take(self.integer("Q")).decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"is damaged: a text in it is not UTF-8 ({error})") from error

    def value(self) -> Value:
        kind = self._type()
        if kind is not GGUFValueType.ARRAY:
            return Value(kind, False, self._elements(kind, 1)[0])
        kind = self._type()
        return Value(kind, True, self._elements(kind, self.integer("Q")))

    def place(self) -> _Place:
        name = self.text()
        dimensions = self.integer("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"is damaged: tensor {name} has {dimensions} dimensions")
        shape = tuple(self.integer("Q") for _ in range(dimensions))[::-1]
        number = self.integer("I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise ValueError(f"has a tensor {name} of type {number}, which is not known") from error
        return _Place(name, kind, shape, self.integer("Q"))

    def _type(self) -> GGUFValueType:
        number = self.integer("I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise ValueError(f"is damaged: it has a value of type {number}") from error

    def _elements(self, kind: GGUFValueType, count: int) -> list[Any]:
        if kind is GGUFValueType.STRING:
            # A text has 8 bytes or more.
            self._has(8 * count)
            return [self.text() for _ in range(count)]
        if kind is GGUFValueType.ARRAY:
            raise ValueError("has a list of lists, which is not supported")
        dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        self._has(dtype.itemsize * count)
        listed: list[Any] = np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()
        return listed

    def _has(self, size: int) -> None:
        if self.position + size > len(self._data):
            raise ValueError("was cut off, or is damaged: copy it again")
