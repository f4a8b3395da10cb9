"""Rotary position embedding.

nanochat pairs channel j with channel j + D/2 of each head and turns the pair by minus its angle. Here the channels of a
head are kept in another order, pair beside pair: `pair_channels` puts the rows of the query and key matrices so, and no
product of a query with a key notices. Then a pair is one complex number, and turning it is one complex product.

Shapes: T positions, H heads, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.device import Device


def pair_channels(weight: Tensor, head_dim: int) -> Tensor:
    """The rows of a query or key matrix (H * D, C), with channel j + D/2 moved next to channel j in each head."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def rounded_angles(head_dim: int, base: float, length: int, *, bf16: bool) -> Tensor:
    """Cosines and sines of `length` positions (2, length, D/2), fp32. `bf16`: rounded to bf16, as the era did."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    table = torch.stack((angles.cos(), angles.sin()))
    return table.bfloat16().float() if bf16 else table


class Rope:
    """The table of angles, which grows with the longest position seen."""

    #: Positions of the first table.
    _FIRST_LENGTH = 256

    def __init__(self, head_dim: int, base: float, *, bf16: bool, context: int, device: Device) -> None:
        """`bf16`: round the table to bf16, as the era did. `context`: positions that may be asked for."""
        self._head_dim = head_dim
        self._base = base
        self._bf16 = bf16
        self._context = context
        self._device = device
        self._table = self._build(min(context, self._FIRST_LENGTH))

    def _build(self, length: int) -> Tensor:
        """(length, 1, D/2) complex, or (length, 1, D/2, 2) where the device is not good at complex numbers."""
        cosines, sines = rounded_angles(self._head_dim, self._base, length, bf16=self._bf16)
        table = torch.stack((cosines, -sines), dim=-1)[:, None]
        if self._device.complex_products:
            return torch.view_as_complex(table).to(self._device.torch_device)
        return table.to(self._device.torch_device, self._device.dtype)

    def at(self, positions: Tensor, last: int) -> Tensor:
        """The table's rows for `positions` (T,), of which `last` is the largest."""
        if last >= self._table.shape[0]:
            self._table = self._build(min(self._context, 2 * max(last, self._table.shape[0])))
        return self._table.index_select(0, positions)

    def rotate(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn the paired channels of x (T, H, D) by `turns`, which `at` gave for its positions."""
        pairs = x.view(*x.shape[:-1], -1, 2)
        if self._device.complex_products:
            return torch.view_as_real(torch.view_as_complex(pairs) * turns).view(x.shape)
        real, imaginary = pairs.unbind(-1)
        cos, sin = turns.unbind(-1)  # sin is that of minus the angle
        return torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1).view(x.shape)
