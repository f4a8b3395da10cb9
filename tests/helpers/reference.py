"""The slow reference of the engine: the forward pass of every era as plain fp32 formulas over the whole text.

It has neither cache nor batch, and shares only `ModelConfig` and the table of eras with `worker.engine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.engine.architecture.config import ModelConfig


def logits(config: ModelConfig, weights: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
    """The logits after each of `ids`: (positions, vocab_size), fp32."""
    era, w = config.era, {name: tensor.float() for name, tensor in weights.items()}
    x = norm(w["transformer.wte.weight"][list(ids)])
    if era.smear:
        gate = torch.sigmoid(x[1:, : era.smear_width] @ w["smear_gate.weight"].T)
        x = torch.cat((x[:1], x[1:] + w["smear_lambda"] * gate * x[:-1]))
    first, middle = x, x
    for i in range(config.n_layer):
        if era.lambdas:
            x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * first
        x = x + attention(config, w, i, norm(x), ids)
        hidden = torch.relu(norm(x) @ w[f"transformer.h.{i}.mlp.c_fc.weight"].T) ** 2
        x = x + hidden @ w[f"transformer.h.{i}.mlp.c_proj.weight"].T
        if i == config.n_layer // 2:
            middle = x
    if era.smear:
        x = x - w["backout_lambda"] * middle
    raw = (norm(x) @ w["lm_head.weight"].T)[:, : config.vocab_size]
    return config.softcap * torch.tanh(raw / config.softcap)


def greedy(config: ModelConfig, weights: Mapping[str, Tensor], prompt: Sequence[int], count: int) -> list[int]:
    """The next `count` ids, each with the largest logit."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(config, weights, ids)[-1].argmax()))
    return ids[len(prompt) :]


def attention(config: ModelConfig, w: Mapping[str, Tensor], i: int, h: Tensor, ids: Sequence[int]) -> Tensor:
    """The output of attention in layer `i` for its normed input h (positions, channels)."""
    era, dim, layer = config.era, config.head_dim, f"transformer.h.{i}.attn."
    positions = len(ids)
    q = (h @ w[f"{layer}c_q.weight"].T).view(positions, config.n_head, dim)
    k = (h @ w[f"{layer}c_k.weight"].T).view(positions, config.n_kv_head, dim)
    v = (h @ w[f"{layer}c_v.weight"].T).view(positions, config.n_kv_head, dim)
    if config.has_value_embedding(i):
        gate = era.gate_scale * torch.sigmoid(h[:, : era.gate_width] @ w[f"{layer}ve_gate.weight"].T)
        v = v + gate[:, :, None] * w[f"value_embeds.{i}.weight"][list(ids)].view_as(v)
    q, k = era.qk_scale * norm(rotate(config, q)), era.qk_scale * norm(rotate(config, k))
    query, key = torch.arange(positions)[:, None], torch.arange(positions)[None, :]
    visible = (key <= query) & (key >= query - config.windows[i])
    heads = []
    for head in range(config.n_head):
        group = head // (config.n_head // config.n_kv_head)
        scores = q[:, head] @ k[:, group].T / math.sqrt(dim)
        heads.append(torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1) @ v[:, group])
    return torch.cat(heads, dim=-1) @ w[f"{layer}c_proj.weight"].T


def rotate(config: ModelConfig, x: Tensor) -> Tensor:
    """Rotate channels j and j + D/2 of x (positions, heads, D) by the negative angle of the position."""
    half = config.head_dim // 2
    frequencies = config.era.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[0], dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    if config.era.rope_bf16:
        cos, sin = cos.bfloat16().float(), sin.bfloat16().float()
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos + right * sin, right * cos - left * sin), dim=-1)


def norm(x: Tensor) -> Tensor:
    """Each row divided by its root mean square."""
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps)
