"""The form in which a model holds its weights in memory, and how it multiplies with them."""

from __future__ import annotations

from typing import Literal

#: `exact`: as in the checkpoint. `bf16`: matrices and embeddings are rounded to bf16. `int8`: matrices are rounded to 8
#: bits, a quarter of the memory of fp32 (only with compiled kernels, on a CPU).
WeightForm = Literal["exact", "bf16", "int8"]

#: `exact`: activations are fp32. `fast`: they are rounded where a matrix is in bf16 or int8, for the processor's
#: instructions for dot products (only with compiled kernels, on a CPU).
Compute = Literal["exact", "fast"]

#: How many inputs of an output share a scale in int8. It changes the logits, so it is part of a card's digest.
INT8_GROUP = 64

#: Parts of the names of matrices and embeddings.
_MATRICES = ("transformer.wte.", "transformer.wpe.", "lm_head.", ".attn.c_", ".mlp.c_", "value_embeds.")


def is_matrix(name: str) -> bool:
    """Whether a tensor is a matrix or an embedding, which `bf16` rounds, and not a bias, a gate or the weights of a
    norm."""
    return name.endswith(".weight") and any(part in name for part in _MATRICES)
