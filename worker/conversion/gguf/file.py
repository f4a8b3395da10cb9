"""An open GGUF file: its metadata by key, and its tensors by name."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGUFValueType

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.regular_file import GIT_LFS, IS_POINTER, open_regular
from worker.conversion.gguf.metadata import parse

T = TypeVar("T")

_MAGIC = b"GGUF"
_TEXT = (GGUFValueType.STRING,)
_FLAG = (GGUFValueType.BOOL,)
_INTEGERS = (
    *(GGUFValueType.UINT8, GGUFValueType.UINT16, GGUFValueType.UINT32, GGUFValueType.UINT64),
    *(GGUFValueType.INT8, GGUFValueType.INT16, GGUFValueType.INT32, GGUFValueType.INT64),
)
_NUMBERS = (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64, *_INTEGERS)


class GgufFile:
    """Every method raises CheckpointError if the file is not as it should be. The message names the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            beginning = file.read(len(GIT_LFS))
            if beginning == GIT_LFS:
                raise self.error(IS_POINTER)
            if not beginning.startswith(_MAGIC):
                raise self.error("is not a GGUF file")
            try:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._metadata, self.tensors = parse(data)
            except OSError as error:
                raise self.error(f"cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise self.error(str(error)) from error

    def metadata_keys(self) -> list[str]:
        """The keys of the metadata."""
        return [*self._metadata]

    def text(self, key: str) -> str | None:
        """A text; None if the file has no such key, as for all methods below."""
        return self._scalar(key, _TEXT, str)

    def flag(self, key: str) -> bool | None:
        """A truth value."""
        return self._scalar(key, _FLAG, bool)

    def integer(self, key: str) -> int | None:
        """An integer. A list of equal ones, as files have for values that may differ by layer, counts as one."""
        values = self._values(key, _INTEGERS)
        if values is None:
            return None
        if len(set(values)) != 1:
            raise self.error(f"its {key} differs by layer, which is not supported")
        return int(values[0])

    def number(self, key: str) -> float | None:
        """A number, as the shortest decimal that gives the stored one."""
        value = self._scalar(key, _NUMBERS, float)
        return value if value is None else float(str(np.float32(value)))

    def texts(self, key: str) -> list[str] | None:
        """A list of texts."""
        return self._list(key, _TEXT)

    def integers(self, key: str) -> list[int] | None:
        """A list of integers."""
        return self._list(key, _INTEGERS)

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers."""
        return self._list(key, _NUMBERS)

    def error(self, reason: str) -> CheckpointError:
        """An error of this file."""
        return CheckpointError(self.path, reason)

    def _scalar(self, key: str, types: tuple[GGUFValueType, ...], kind: type[T]) -> T | None:
        values = self._values(key, types)
        if values is None:
            return None
        if len(values) != 1:
            raise self.error(f"its {key} is a list")
        return kind(values[0])  # type: ignore[call-arg]

    def _list(self, key: str, types: tuple[GGUFValueType, ...]) -> list[Any] | None:
        value = self._metadata.get(key)
        if value is not None and not value.is_list:
            raise self.error(f"its {key} is not a list")
        return self._values(key, types)

    def _values(self, key: str, types: tuple[GGUFValueType, ...]) -> list[Any] | None:
        """The values of a key, as a list also if there is only one."""
        value = self._metadata.get(key)
        if value is None:
            return None
        if value.type not in types:
            raise self.error(f"its {key} is of type {value.type.name}, which is not expected there")
        return value.content if value.is_list else [value.content]
