"""Linear layers: gemms with the model's matrices.

On a CPU, large matrices are packed once into the layout that oneDNN's kernels read: at a batch of 8 that is twice as
fast as a plain gemm. A packed gemm takes some microseconds more to start, so small matrices stay plain.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.device import Device

#: Matrices with fewer elements are not packed: they stay in the processor's cache, and the start of the gemm dominates.
PACK_FROM_ELEMENTS = 1 << 19
#: Rows that the packed layout is optimized for. The layouts for 8 or more rows are the same; the one for a single row
#: is no faster with one row and slower with more.
_PACK_FOR_ROWS = 32


class Linear(Protocol):
    """x (T, in) -> (T, out): a linear layer."""

    def __call__(self, x: Tensor) -> Tensor: ...


class PlainLinear:
    """A linear layer on any device, with torch's own gemm."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class PackedLinear:
    """A linear layer on a CPU, fp32, with oneDNN's gemm and a matrix in its layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_FOR_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


def linear(weight: Tensor, device: Device, *, bias: Tensor | None = None) -> Linear:
    """The linear layer of `weight` (out, in) and `bias` (out,). Both are copied."""
    bias = None if bias is None else device.copy(bias)
    if device.packs and weight.numel() >= PACK_FROM_ELEMENTS:
        return PackedLinear(weight.to(device.dtype), bias)
    return PlainLinear(device.copy(weight), bias)
