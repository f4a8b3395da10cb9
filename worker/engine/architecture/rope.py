"""The angles of rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_angles(head_dim: int, base: float, length: int, *, bf16: bool) -> Tensor:
    """Cosines and sines of the angles of `length` positions: (2, length, head_dim / 2), fp32.

    With `bf16` they are rounded to bf16, as some eras do.
    """
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    table = torch.stack((angles.cos(), angles.sin()))
    return table.bfloat16().float() if bf16 else table
