"""The interface between the engine and a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.cache import KvCache


class DecodingModel(Protocol):
    """A loaded model that the engine can decode with, such as `worker.engine.torch.model.Model`."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def device(self) -> Device: ...

    @property
    def reads_beyond(self) -> bool:
        """Whether attention may read places of the KV cache that do not belong to its sequence."""
        ...

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Write the keys and values of `batch` to the cache and return its logits (R, V), fp32."""
        ...
