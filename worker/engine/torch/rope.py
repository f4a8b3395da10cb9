"""Rotary position embedding on torch.

Channel j of a head is paired with channel j + D/2. Here the two channels of a pair lie next to each other:
`pair_channels` reorders the rows of the query and key matrices in this way, which does not change the dot product of a
query and a key. A pair is then one complex number, and its rotation is one complex multiplication.

Shapes: T positions, H heads, D channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.architecture.angles import angle_table
from worker.engine.architecture.rope import Rope
from worker.engine.device import Device


def pair_channels(weight: Tensor, head_dim: int) -> Tensor:
    """The rows of a query or key matrix (H * D, C), with channel j + D/2 moved next to channel j in each head.

    The same for a vector (H * D,), such as a bias.
    """
    halves = weight.view(-1, 2, head_dim // 2, weight[0].numel())
    return halves.transpose(1, 2).reshape(weight.shape)


class RopeTable:
    """Rotates queries and keys with a table of angles. The table grows with the largest position seen."""

    #: Positions of the first table.
    _FIRST_LENGTH = 256

    def __init__(self, rope: Rope, *, context: int, device: Device) -> None:
        """`context` is the number of positions that can occur."""
        self._rope = rope
        self._context = context
        self._device = device
        self._table = self._build(min(context, self._FIRST_LENGTH))

    def _build(self, length: int) -> Tensor:
        """(length, 1, D/2) complex, or (length, 1, D/2, 2) if the device does not use complex numbers."""
        table = angle_table(self._rope, length).permute(1, 2, 0).contiguous()[:, None]
        if self._device.uses_complex:
            return torch.view_as_complex(table).to(self._device.torch_device)
        return table.to(self._device.torch_device, self._device.dtype)

    def at(self, positions: Tensor, last: int) -> Tensor:
        """The rotations for `positions` (T,), the largest of which is `last`."""
        if last >= self._table.shape[0]:
            self._table = self._build(min(self._context, 2 * max(last, self._table.shape[0])))
        return self._table.index_select(0, positions)

    def rotate(self, x: Tensor, rotations: Tensor) -> Tensor:
        """Rotate the paired channels of x (T, H, D) by `rotations`, a result of `at`."""
        pairs = x.view(*x.shape[:-1], -1, 2)
        if self._device.uses_complex:
            return torch.view_as_real(torch.view_as_complex(pairs) * rotations).view(x.shape)
        real, imaginary = pairs.unbind(-1)
        cos, sin = rotations.unbind(-1)
        return torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1).view(x.shape)
