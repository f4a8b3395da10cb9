"""Random weights for a model of any shape. They are the same numbers in every process.

This module imports only torch, so that it also runs in a peer's environment.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Context length, in tokens, of a model with random weights.
CONTEXT = 2048


def random_weights(layers: int, width: int, vocab_size: int) -> dict[str, Tensor]:
    """Return fp32 weights of era E1 by nanochat's names, at the scale of a trained model.

    A trained head gives logits that differ by some units. With much smaller logits every choice would be a near tie.
    """
    generator = torch.Generator().manual_seed(1)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.empty(rows, columns).normal_(0, scale * columns**-0.5, generator=generator)

    weights = {
        "transformer.wte.weight": matrix(vocab_size, width),
        "lm_head.weight": matrix(vocab_size, width, scale=4.0),
    }
    for i in range(layers):
        layer = f"transformer.h.{i}."
        for name in ("c_q", "c_k", "c_v", "c_proj"):
            weights[f"{layer}attn.{name}.weight"] = matrix(width, width)
        weights[f"{layer}mlp.c_fc.weight"] = matrix(4 * width, width)
        weights[f"{layer}mlp.c_proj.weight"] = matrix(width, 4 * width)
    return weights
