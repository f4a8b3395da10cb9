"""Models of a shape, with random weights that are made in memory: the same numbers in every process.

Imports torch alone, so that a peer's environment can run it.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Positions that a model of a shape has room for.
CONTEXT = 2048


def random_weights(layers: int, width: int, vocab_size: int) -> dict[str, Tensor]:
    """Weights of era E1 by nanochat's names, fp32, at the scale of a trained model.

    A trained head gives logits some units apart; with a much smaller one every choice were a near tie.
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
