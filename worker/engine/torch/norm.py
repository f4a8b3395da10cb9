"""Norms over the last dimension."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_FP32_EPSILON = torch.finfo(torch.float32).eps


class NormFunction(Protocol):
    """x (..., C) -> (..., C)."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / sqrt(mean(x^2) + epsilon), times a weight if there is one."""

    #: None: the epsilon of x's number format.
    epsilon: float | None = None
    #: Its last dimension is that of x.
    weight: Tensor | None = None
    _epsilon: Tensor = field(init=False)

    def __post_init__(self) -> None:
        epsilon = _FP32_EPSILON if self.epsilon is None else self.epsilon
        object.__setattr__(self, "_epsilon", torch.full((1,), epsilon))

    def __call__(self, x: Tensor) -> Tensor:
        if x.is_cpu and x.dtype == torch.float32:  # torch's own runs five operations here, which slows small models
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            y = x * torch.addcmul(self._epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
        else:
            y = F.rms_norm(x, (x.shape[-1],), eps=self.epsilon)
        return y if self.weight is None else y.mul_(self.weight)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """(x - mean(x)) / sqrt(variance(x) + epsilon), times a weight, plus a bias."""

    epsilon: float
    weight: Tensor | None
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.epsilon)
