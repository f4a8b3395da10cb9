"""What every reader of checkpoints returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from worker.checkpoints.folder import CheckpointFolder
from worker.engine.architecture.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    #: Its type in the file.
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of numbers in the tensor."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.count * self.dtype.itemsize


class Weights(Mapping[str, Tensor]):
    """The tensors of open files, by the engine's names (see `worker.engine.architecture.tensors`).

    Every access reads the tensor into new memory, in the type in which it is stored, so keep what is needed again. It
    raises CheckpointError if a file is damaged, or was cut off or changed while it was read.
    """

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, which are not read."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) that differs when the content of a tensor differs. Raises CheckpointError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that can be served, with its shape and weights."""

    folder: CheckpointFolder
    config: ModelConfig
    #: The tensors are in files, and take no memory until they are read.
    weights: Weights
    #: What determines the answers beside the weights and the tokenizer, as JSON. It is part of the card's digest.
    identity: str
    #: Loss in the trainer's last evaluation, and its name: `val_loss` (nats per token) or `val_bpb` (bits per byte).
    #: None if there was no evaluation, or the loss is not finite.
    loss: float | None = None
    loss_name: str | None = None
    #: Warnings for the operator.
    warnings: tuple[str, ...] = ()
