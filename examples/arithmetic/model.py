"""The network: the GPT of nanochat from December 2025 to January 2026 (nanochat/gpt.py), unchanged.

It has a token embedding, an RMS norm, blocks, another RMS norm, and an untied head, whose logits a tanh keeps within
+-15. A block is rotary attention with normalized queries and keys, and an MLP with squared ReLU. There are no biases,
no learned norms, and no dropout. The modules are named like the tensors in the file, so a checkpoint is just
`state_dict()`.

Shapes: B rows, T positions, C channels, H heads, D channels of a head, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_BASE = 10_000.0
SOFTCAP = 15.0


@dataclass(frozen=True)
class GPTConfig:
    """The `model_config` of a checkpoint's meta file."""

    sequence_len: int = 2048  # the longest text that a server accepts, in tokens
    vocab_size: int = 32
    n_layer: int = 4
    n_head: int = 5
    n_kv_head: int = 5
    n_embd: int = 160

    def __post_init__(self) -> None:
        assert self.n_embd % self.n_head == 0, "n_embd must be a multiple of n_head"
        assert self.head_dim % 2 == 0, "rotary embeddings need an even number of channels per head"
        assert self.n_kv_head == self.n_head, "grouped queries are not needed at this size"

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without a learned weight."""
    return functional.rms_norm(x, (x.size(-1),))


def rotary_tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each (length, head_dim / 2), rounded to bf16 as nanochat does it."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos().bfloat16().float(), angles.sin().bfloat16().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (j, j + D/2) of x (B, H, T, D) by minus their angle. (The usual sign is plus.)"""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_v = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C). A position attends to itself and to the positions before it."""
        q, k, v = (c(x).unflatten(2, (self.n_head, -1)).transpose(1, 2) for c in (self.c_q, self.c_k, self.c_v))
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        out: Tensor = self.c_proj(functional.relu(self.c_fc(x)).square())
        return out


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.attn(norm(x), cos, sin)
        out: Tensor = x + self.mlp(norm(x))
        return out


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks})
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices are uniform with variance 1/C. Projections into the residual stream start at zero."""
        bound = (3 / self.config.n_embd) ** 0.5
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.zeros_(weight)
            elif name.startswith("transformer.h."):
                nn.init.uniform_(weight, -bound, bound)
        nn.init.normal_(self.transformer.get_parameter("wte.weight"), std=1.0)
        nn.init.normal_(self.lm_head.weight, std=0.001)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V) for the token after each position."""
        cos, sin = rotary_tables(ids.size(1), self.config.head_dim)  # (T, D/2); cheap for texts this short
        x = norm(self.transformer["wte"](ids))
        for block in self.transformer.get_submodule("h").children():
            x = block(x, cos, sin)
        logits: Tensor = self.lm_head(norm(x))[..., : self.config.vocab_size].float()
        return SOFTCAP * torch.tanh(logits / SOFTCAP)
