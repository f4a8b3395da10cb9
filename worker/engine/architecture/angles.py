"""The angles of rotary position embedding, computed in fp32 with torch, as the trainers do."""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.architecture.rope import Rope


def base_frequencies(base: float, head_dim: int) -> Tensor:
    """The usual frequencies, `base ** (-2 j / head_dim)`: (head_dim / 2,), fp32."""
    return base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def angle_table(rope: Rope, length: int) -> Tensor:
    """Cosines and sines of `length` positions, with direction and amplitude: (2, length, D/2), fp32."""
    frequencies = torch.tensor(rope.frequencies, dtype=torch.float32)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    table = torch.stack((angles.cos(), angles.sin() * rope.direction))
    if rope.amplitude != 1:
        table *= rope.amplitude
    return table.bfloat16().float() if rope.bf16 else table
