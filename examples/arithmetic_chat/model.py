"""The network: the GPT of nanochat since March 2026 (nanochat/gpt.py).

It has a token embedding, a smear that adds a part of the previous token's embedding, blocks, and an untied head, whose
logits a tanh keeps within +-15. Before each block, the stream is mixed with the embedding. A block is rotary attention
with normalized queries and keys, and an MLP with squared ReLU. Every second block, counted back from the last, adds an
embedding of the token to the attention's values. After the last block, a part of the middle block's output is
subtracted. There are no biases, no learned norms, and no dropout. The modules are named like the tensors in the file,
so a checkpoint is just `state_dict()`.

Shapes: B rows, T positions, C channels, H heads, D channels of a head, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_BASE = 100_000.0
SOFTCAP = 15.0
QK_SCALE = 1.2  # of queries and of keys, after their norm
GATE_WIDTH = 12  # channels that the gate of a value embedding reads
GATE_SCALE = 3.0
SMEAR_WIDTH = 24  # channels that the gate of the smear reads
WINDOW_MULTIPLE = 128  # a short window is a quarter of the context, rounded up to a multiple of this


@dataclass(frozen=True)
class GPTConfig:
    """The `model_config` of a checkpoint's meta file."""

    sequence_len: int = 512  # the longest dialogue that a server accepts, in tokens
    vocab_size: int = 512
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4
    n_embd: int = 128
    window_pattern: str = "SSSL"  # one letter for each layer, S for a short window and L for a long one

    def __post_init__(self) -> None:
        assert self.n_embd % self.n_head == 0, "n_embd must be a multiple of n_head"
        assert self.head_dim % 2 == 0, "rotary embeddings need an even number of channels per head"
        assert self.n_kv_head == self.n_head, "grouped queries are not needed at this size"
        assert self.n_embd >= SMEAR_WIDTH, "the gates read the first channels"

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    def window(self, layer: int) -> int:
        """How many positions before its own a query of this layer attends to."""
        if layer == self.n_layer - 1 or self.window_pattern[layer % len(self.window_pattern)] == "L":
            return self.sequence_len
        return -(-self.sequence_len // (4 * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE

    def has_value_embedding(self, layer: int) -> bool:
        return layer % 2 == (self.n_layer - 1) % 2


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without a learned weight."""
    return functional.rms_norm(x, (x.size(-1),))


def rotary_tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each (length, head_dim / 2)."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (j, j + D/2) of x (B, H, T, D) by minus their angle. (The usual sign is plus.)"""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


def visible(length: int, window: int) -> Tensor | None:
    """Which keys a query attends to, (length, length) bool; None if these are all keys up to its own position."""
    if length <= window + 1:
        return None
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (distance >= 0) & (distance <= window)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.window = config.window(layer)
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_v = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        has_gate = config.has_value_embedding(layer)
        self.ve_gate = nn.Linear(GATE_WIDTH, config.n_head, bias=False) if has_gate else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, value_embedding: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C). A position attends to itself and to those before it, as far as the window reaches."""
        q, k, v = (c(x).unflatten(2, (self.n_head, -1)).transpose(1, 2) for c in (self.c_q, self.c_k, self.c_v))
        if self.ve_gate is not None and value_embedding is not None:
            gate = GATE_SCALE * torch.sigmoid(self.ve_gate(x[..., :GATE_WIDTH]))  # (B, T, H)
            added = gate.unsqueeze(-1) * value_embedding.unflatten(2, (self.n_head, -1))
            v = v + added.transpose(1, 2)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        mask = visible(x.size(1), self.window)
        y = functional.scaled_dot_product_attention(  # (B, H, T, D)
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=QK_SCALE**2 / q.size(-1) ** 0.5
        )
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
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, value_embedding: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.attn(norm(x), cos, sin, value_embedding)
        out: Tensor = x + self.mlp(norm(x))
        return out


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        wte = nn.Embedding(config.vocab_size, config.n_embd)
        blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.transformer = nn.ModuleDict({"wte": wte, "h": blocks})
        self.value_embeds = nn.ModuleDict(
            {
                str(layer): nn.Embedding(config.vocab_size, config.n_embd)
                for layer in range(config.n_layer)
                if config.has_value_embedding(layer)
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.full((config.n_layer,), 0.1))
        self.smear_gate = nn.Linear(SMEAR_WIDTH, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices are uniform with variance 1/C. Projections into the residual stream and gates start at zero."""
        bound = (3 / self.config.n_embd) ** 0.5
        for name, weight in self.named_parameters():
            if name.endswith(("c_proj.weight", "_gate.weight")):
                nn.init.zeros_(weight)
            elif name.startswith(("transformer.h.", "value_embeds.")):
                nn.init.uniform_(weight, -bound, bound)
        nn.init.normal_(self.transformer.get_parameter("wte.weight"), std=1.0)
        nn.init.normal_(self.lm_head.weight, std=0.001)

    def forward(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V) for the token after each position.

        With `at`, (B, T) bool, only the logits at these N positions: (N, V).
        """
        cos, sin = rotary_tables(ids.size(1), self.config.head_dim)  # (T, D/2); cheap for texts this short
        x = self._smear(norm(self.transformer["wte"](ids)))
        first = middle = x
        for layer, block in enumerate(self.transformer.get_submodule("h").children()):
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * first
            embeds = self.value_embeds[str(layer)](ids) if self.config.has_value_embedding(layer) else None
            x = block(x, cos, sin, embeds)
            if layer == self.config.n_layer // 2:
                middle = x
        x = x - self.backout_lambda * middle
        logits: Tensor = self.lm_head(norm(x if at is None else x[at]))
        return SOFTCAP * torch.tanh(logits / SOFTCAP)

    def _smear(self, x: Tensor) -> Tensor:
        """Add to each embedding (B, T, C) a part of the one before it. The gate depends on the later token."""
        gate = torch.sigmoid(self.smear_gate(x[:, 1:, :SMEAR_WIDTH]))  # (B, T - 1, 1)
        return torch.cat((x[:, :1], x[:, 1:] + self.smear_lambda * gate * x[:, :-1]), dim=1)
