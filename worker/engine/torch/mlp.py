"""The MLP of a layer on torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from worker.engine.architecture.config import Activation
from worker.engine.torch.linear import Linear

#: Each takes a tensor that it may change.
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu_squared": lambda x: x.relu_().square_(),
    "silu": partial(F.silu, inplace=True),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class Mlp(Protocol):
    """x (T, C) -> (T, C)."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class PlainMlp:
    """Two matrices with an activation between them."""

    mlp_in: Linear
    activate: Callable[[Tensor], Tensor]
    mlp_out: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.mlp_out(self.activate(self.mlp_in(x)))


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """The activated values of a gate, times those of a second matrix (https://arxiv.org/abs/2002.05202)."""

    #: Gate and values in one gemm: (T, C) -> (T, 2 * hidden).
    gate_and_in: Linear
    activate: Callable[[Tensor], Tensor]
    mlp_out: Linear

    def __call__(self, x: Tensor) -> Tensor:
        gate, hidden = self.gate_and_in(x).chunk(2, dim=-1)
        return self.mlp_out(self.activate(gate).mul_(hidden))
