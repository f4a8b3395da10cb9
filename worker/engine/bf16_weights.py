"""The weights of a checkpoint with matrices and embeddings rounded to bf16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from worker.engine.architecture.weight_form import is_matrix


class Bf16Weights(Mapping[str, Tensor]):
    """Rounds each tensor when it is asked for, to the nearest number, and if two are as near to the even one."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._weights[name]
        return tensor.to(torch.bfloat16) if is_matrix(name) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
