"""The tensors of a folder in Hugging Face's form, by the engine's names. Each one is read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.checkpoints.checkpoint import TensorInfo, Weights
from worker.checkpoints.huggingface.digest import digest_of
from worker.checkpoints.huggingface.safetensors import Entry, SafetensorsFile
from worker.checkpoints.tensor_memory import allocate

#: The types in which weights may be stored, by their names in the format.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: A stored matrix that is turned or split is read in parts of about this size, in bytes.
_PART = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor(TensorInfo):
    """A tensor of the engine, with its shape there, and where it is stored."""

    file: SafetensorsFile
    entry: Entry
    #: The first of its columns in the stored tensor, and whether the stored matrix is (inputs, outputs).
    first_column: int = 0
    transposed: bool = False

    def read(self) -> Tensor:
        """The tensor in new memory. Raises CheckpointError."""
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        memory = allocate(self.nbytes)
        tensor = torch.frombuffer(memory, dtype=self.dtype).view(self.shape)
        if self.shape == self.entry.shape and not self.transposed:
            self.file.read_into(self.entry, 0, memoryview(memory))
        else:
            self._read_part(tensor.t() if self.transposed else tensor)
        return tensor

    def _read_part(self, target: Tensor) -> None:
        """Fill `target` with some of the columns of the stored tensor."""
        width = self.entry.shape[-1]
        target = target.view(-1, target.shape[-1]) if target.dim() == 1 else target
        rows_at_once = max(1, _PART // (width * self.dtype.itemsize))
        buffer = memoryview(bytearray(rows_at_once * width * self.dtype.itemsize))
        last_column = self.first_column + target.shape[-1]
        for begin in range(0, len(target), rows_at_once):
            rows = target[begin : begin + rows_at_once]
            part = buffer[: len(rows) * width * self.dtype.itemsize]
            self.file.read_into(self.entry, begin * width * self.dtype.itemsize, part)
            stored = torch.frombuffer(part, dtype=self.dtype).view(len(rows), width)
            rows.copy_(stored[:, self.first_column : last_column])


class HuggingFaceWeights(Weights):
    """The tensors of open safetensors files."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """All tensors, which are not read."""
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def digest(self) -> str:
        """SHA-256 (hex) over names, types, shapes and contents of the stored tensors. Raises CheckpointError.

        It reads all of them. How they are distributed over files does not change it.
        """
        return digest_of({(tensor.file, tensor.entry) for tensor in self.tensors.values()})
