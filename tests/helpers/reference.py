"""The slow reference of the engine: the forward pass of every architecture as plain fp32 formulas over the whole text.

It has neither cache nor batch, and shares only `ModelConfig` with `worker.engine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worker.engine.architecture.config import Activation, ModelConfig, QkNorm

_EPSILON = torch.finfo(torch.float32).eps


def logits(config: ModelConfig, weights: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
    """The logits after each of `ids`: (positions, vocab_size), fp32."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    x = w["transformer.wte.weight"][list(ids)]
    if config.embedding_norm:
        x = rms_norm(x, config.norm.epsilon)
    if config.smear_width:
        gate = torch.sigmoid(x[1:, : config.smear_width] @ w["smear_gate.weight"].T)
        x = torch.cat((x[:1], x[1:] + w["smear_lambda"] * gate * x[:-1]))
    if config.learned_positions:
        x = x + w["transformer.wpe.weight"][: len(ids)]
    first, middle = x, x
    for i in range(config.n_layer):
        layer = f"transformer.h.{i}."
        if config.residual_mix:
            x = w["resid_lambdas"][i] * x + w["x0_lambdas"][i] * first
        x = x + attention(config, w, i, norm(config, w, f"{layer}ln_1", x), ids)
        x = x + mlp(config, w, f"{layer}mlp.", norm(config, w, f"{layer}ln_2", x))
        if i == config.n_layer // 2:
            middle = x
    if config.smear_width:
        x = x - w["backout_lambda"] * middle
    head = w["transformer.wte.weight" if config.tied_head else "lm_head.weight"]
    raw = (norm(config, w, "transformer.ln_f", x) @ head.T)[:, : config.vocab_size]
    return raw if config.softcap is None else config.softcap * torch.tanh(raw / config.softcap)


def greedy(config: ModelConfig, weights: Mapping[str, Tensor], prompt: Sequence[int], count: int) -> list[int]:
    """The next `count` ids, each with the largest logit."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(config, weights, ids)[-1].argmax()))
    return ids[len(prompt) :]


def attention(config: ModelConfig, w: Mapping[str, Tensor], i: int, h: Tensor, ids: Sequence[int]) -> Tensor:
    """The output of attention in layer `i` for its normed input h (positions, channels)."""
    dim, layer = config.head_dim, f"transformer.h.{i}.attn."
    positions = len(ids)
    q = linear(w, f"{layer}c_q", h).view(positions, config.n_head, dim)
    k = linear(w, f"{layer}c_k", h).view(positions, config.n_kv_head, dim)
    v = linear(w, f"{layer}c_v", h).view(positions, config.n_kv_head, dim)
    if config.has_value_embedding(i):
        assert config.value_gate is not None
        read = h[:, : config.value_gate.width]
        gate = config.value_gate.scale * torch.sigmoid(read @ w[f"{layer}ve_gate.weight"].T)
        v = v + gate[:, :, None] * w[f"value_embeds.{i}.weight"][list(ids)].view_as(v)
    q, k = (placed(config, w, i, part, x) for part, x in (("q", q), ("k", k)))
    query, key = torch.arange(positions)[:, None], torch.arange(positions)[None, :]
    visible = (key <= query) & (key >= query - config.windows[i])
    heads = []
    for head in range(config.n_head):
        group = head // (config.n_head // config.n_kv_head)
        scores = q[:, head] @ k[:, group].T * config.attention_scale
        heads.append(torch.softmax(scores.masked_fill(~visible, -math.inf), dim=-1) @ v[:, group])
    return linear(w, f"{layer}c_proj", torch.cat(heads, dim=-1))


def placed(config: ModelConfig, w: Mapping[str, Tensor], i: int, part: str, x: Tensor) -> Tensor:
    """Queries or keys x (positions, heads, D) of layer `i`, normalized and rotated."""

    def normed(x: Tensor, qk_norm: QkNorm) -> Tensor:
        y = rms_norm(x, qk_norm.epsilon)
        return y * w[f"transformer.h.{i}.attn.{part}_norm.weight"] if qk_norm.weights else y

    if config.qk_norm is not None and not config.qk_norm.after_rotation:
        x = normed(x, config.qk_norm)
    if config.rope is not None and config.rope_layers[i]:
        x = rotate(config, x)
    if config.qk_norm is not None and config.qk_norm.after_rotation:
        x = normed(x, config.qk_norm)
    return x


def rotate(config: ModelConfig, x: Tensor) -> Tensor:
    """Rotate channels j and j + D/2 of x (positions, heads, D) by the angle of the position."""
    rope, half = config.rope, config.head_dim // 2
    assert rope is not None
    angles = torch.arange(x.shape[0], dtype=torch.float32)[:, None] * torch.tensor(rope.frequencies)
    cos, sin = rope.amplitude * angles.cos()[:, None], rope.amplitude * angles.sin()[:, None]
    if rope.bf16:
        cos, sin = cos.bfloat16().float(), sin.bfloat16().float()
    sin = rope.direction * sin
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def mlp(config: ModelConfig, w: Mapping[str, Tensor], name: str, h: Tensor) -> Tensor:
    """The output of an MLP for its normed input h (positions, channels)."""
    hidden = linear(w, f"{name}c_fc", h)
    if config.gated:
        hidden = activated(config.activation, linear(w, f"{name}c_gate", h)) * hidden
    else:
        hidden = activated(config.activation, hidden)
    return linear(w, f"{name}c_proj", hidden)


def activated(activation: Activation, x: Tensor) -> Tensor:
    """The activation of each value of x."""
    if activation == "relu_squared":
        return torch.relu(x) ** 2
    if activation == "silu":
        return x * torch.sigmoid(x)
    if activation == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x (positions, in) times a matrix, plus its bias if there is one."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def norm(config: ModelConfig, w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The norm of a layer or of the end: x (positions, channels)."""
    if config.norm.kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    y = rms_norm(x, config.norm.epsilon)
    if config.norm.weights:
        y = y * w[f"{name}.weight"]
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rms_norm(x: Tensor, epsilon: float | None) -> Tensor:
    """Each row divided by its root mean square."""
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + (_EPSILON if epsilon is None else epsilon))
