"""Products with the model's matrices.

On a CPU, large matrices are packed once into the layout that oneDNN's kernels read: at a batch of 8 that doubles the
speed of a plain product. A packed product costs some microseconds more to start, so small ones stay plain.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.device import Device

#: Matrices with fewer elements are not packed: they stay in the processor's cache, and starting the product dominates.
PACK_FROM_ELEMENTS = 1 << 19
#: Rows that the packed layout is chosen for. Layouts for 8 rows and more are the same; the one for a single row is
#: no faster there and slower everywhere else.
_PACK_FOR_ROWS = 32


class Linear(Protocol):
    """x (T, in) -> (T, out): a product with a matrix that it holds, without bias."""

    def __call__(self, x: Tensor) -> Tensor: ...


class PlainLinear:
    """The product as torch does it, on any device."""

    def __init__(self, weight: Tensor, *, relu: bool) -> None:
        self._weight = weight
        self._relu = relu

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self._weight)
        return y.relu_() if self._relu else y


class PackedLinear:
    """The product by oneDNN with a matrix in its own layout, fp32 on a CPU."""

    def __init__(self, weight: Tensor, *, relu: bool) -> None:
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_FOR_ROWS)
        self._activation = "relu" if relu else "none"

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, self._activation, [], "")
        return y


def linear(weight: Tensor, device: Device, *, relu: bool = False) -> Linear:
    """The product with `weight` (out, in), followed by max(0, y) where `relu` is set. `weight` is copied."""
    if device.packs and weight.numel() >= PACK_FROM_ELEMENTS:
        return PackedLinear(weight.to(device.dtype), relu=relu)
    return PlainLinear(device.copy(weight), relu=relu)
