"""An open GGUF file: its metadata by key, and its tensors by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.regular_file import open_regular

T = TypeVar("T")

_MAGIC = b"GGUF"
_GIT_LFS = b"version https://git-lfs"
_TEXT = (GGUFValueType.STRING,)
_FLAG = (GGUFValueType.BOOL,)
_INTEGERS = (
    *(GGUFValueType.UINT8, GGUFValueType.UINT16, GGUFValueType.UINT32, GGUFValueType.UINT64),
    *(GGUFValueType.INT8, GGUFValueType.INT16, GGUFValueType.INT32, GGUFValueType.INT64),
)
_FLOATS = (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in the file."""

    name: str
    format: GGMLQuantizationType
    #: As PyTorch orders them: rows first.
    shape: tuple[int, ...]
    #: The content as it is in the file, which is mapped. The first dimension is that of `shape`.
    data: np.ndarray


class GgufFile:
    """Every method raises CheckpointError if the file is not as it should be. The message names the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            beginning = file.read(len(_GIT_LFS))
        if beginning == _GIT_LFS:
            raise CheckpointError(path, "is a pointer of Git LFS instead of the file: fetch it with `git lfs pull`")
        if not beginning.startswith(_MAGIC):
            raise CheckpointError(path, "is not a GGUF file")
        with self._readable():
            self._reader = GGUFReader(path)
        if self._reader.byte_order != "I":
            raise CheckpointError(path, "was written for a processor with another byte order, which is not supported")
        #: By name, in the order of the file.
        self.tensors = {
            tensor.name: GgufTensor(
                tensor.name, tensor.tensor_type, tuple(map(int, reversed(tensor.shape))), tensor.data
            )
            for tensor in self._reader.tensors
        }

    def metadata_keys(self) -> list[str]:
        """The keys of the metadata."""
        return [key for key in self._reader.fields if not key.startswith("GGUF.")]

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
        value = self._scalar(key, (*_FLOATS, *_INTEGERS), float)
        return value if value is None else float(str(np.float32(value)))

    def texts(self, key: str) -> list[str] | None:
        """A list of texts."""
        return self._list(key, _TEXT)

    def integers(self, key: str) -> list[int] | None:
        """A list of integers."""
        return self._list(key, _INTEGERS)

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers."""
        return self._list(key, (*_FLOATS, *_INTEGERS))

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
        field = self._reader.fields.get(key)
        if field is not None and field.types[0] != GGUFValueType.ARRAY:
            raise self.error(f"its {key} is not a list")
        return self._values(key, types)

    def _values(self, key: str, types: tuple[GGUFValueType, ...]) -> list[Any] | None:
        """The values of a key, as a list also if there is only one."""
        field = self._reader.fields.get(key)
        if field is None:
            return None
        # An empty list does not say of what.
        if field.types[-1] not in (*types, GGUFValueType.ARRAY):
            raise self.error(f"its {key} is of type {field.types[-1].name}, which is not expected there")
        with self._readable():
            content = field.contents()
        return content if isinstance(content, list) else [content]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn the errors of the `gguf` package, which checks little, into CheckpointError."""
        try:
            yield
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
            raise self.error(f"is damaged or was cut off: copy it again ({error})") from error
