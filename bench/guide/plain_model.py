"""nanochat's model of eras E1a and E1b in plain, eager PyTorch. It computes the whole text for each new token.

It is the simplest way to run a checkpoint: no KV cache, no batch, no packed weights. It uses torch's own operations,
and only the model's configuration from `worker.engine`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.architecture.angles import angle_table
from worker.engine.architecture.config import ModelConfig


class PlainModel:
    """The model with its weights in memory, as fp32."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        """`weights` have nanochat's names. Raises ValueError for a checkpoint of a later era."""
        if config.era not in ("E1a", "E1b"):
            raise ValueError(
                f"the plain model runs checkpoints of eras E1a and E1b only, not {config.era or config.family}"
            )
        self._config = config
        self._weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
        assert config.rope is not None
        # These eras round the table to bf16, even on a CPU. nanochat's own angles are positive.
        self._cosines, sines = angle_table(config.rope, config.sequence_len)
        self._sines = -sines

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Return the logits (V,) for the token after `ids`."""
        config = self._config
        x = _norm(F.embedding(torch.tensor(ids), self._weights["transformer.wte.weight"]))
        for i in range(config.n_layer):
            layer = f"transformer.h.{i}."
            x = x + self._attention(f"{layer}attn.", _norm(x))
            hidden = F.relu(self._linear(f"{layer}mlp.c_fc", _norm(x))).square()
            x = x + self._linear(f"{layer}mlp.c_proj", hidden)
        raw = self._linear("lm_head", _norm(x[-1]))[: config.vocab_size]
        assert config.softcap is not None
        return config.softcap * torch.tanh(raw / config.softcap)

    def _attention(self, layer: str, h: Tensor) -> Tensor:
        """Return what the attention of a layer adds to the residual stream. `h` (T, C) is its normed input."""
        q, k, v = (self._linear(f"{layer}c_{part}", h).view(len(h), -1, self._config.head_dim) for part in "qkv")
        q, k = _norm(self._rotate(q)), _norm(self._rotate(k))
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        grouped = self._config.n_kv_head < self._config.n_head
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self._linear(f"{layer}c_proj", y[0].transpose(0, 1).reshape(h.shape))

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotate channels j and j + D/2 of x (T, heads, D) by minus the position's angle."""
        cosines, sines = self._cosines[: len(x), None], self._sines[: len(x), None]
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cosines + right * sines, right * cosines - left * sines), dim=-1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"])


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])
