"""The tensors of a weights file. Each one is read when it is asked for, and its checksum is compared then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.checkpoints.archive import Archive, Record
from worker.checkpoints.checkpoint import TensorInfo, Weights
from worker.checkpoints.tensor_memory import allocate


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor(TensorInfo):
    """Where a tensor is in the file."""

    record: Record
    #: Distance of two neighbours in each dimension, in numbers.
    stride: tuple[int, ...]
    #: Number of numbers in the record before the first one of the tensor.
    offset: int

    @property
    def span(self) -> int:
        """Number of numbers in the record from the tensor's first one to its last one."""
        if not self.count:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class StoredWeights(Weights):
    """The tensors of an open weights file.

    The file is read and not mapped: a mapped file that becomes shorter ends the process.
    """

    def __init__(self, archive: Archive, tensors: dict[str, StoredTensor]) -> None:
        self.archive = archive
        self._tensors = tensors

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors, which are not read."""
        return self._tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        size = tensor.span * tensor.dtype.itemsize
        if not size:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        memory = allocate(size)
        self.archive.read_into(tensor.record, tensor.offset * tensor.dtype.itemsize, memoryview(memory))
        return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def digest(self) -> str:
        """That of the archive."""
        return self.archive.digest()
