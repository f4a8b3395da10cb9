"""nanochat's GPT of every era, as one class. The differences are in `Era` and in the checkpoint's tensors.

Shapes: T positions of the flattened batch, C channels, H heads, G key-value heads, D channels of a head, R rows of
logits, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.architecture.config import ModelConfig
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.cache import KvCache
from worker.engine.torch.attention import CALL_COST_BYTES, AttentionCall, attend, plan_calls
from worker.engine.torch.linear import Linear, linear
from worker.engine.torch.norm import rms_norm
from worker.engine.torch.rope import Rope, pair_channels

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedding:
    """A table with one row for each id, possibly in the number format of its file."""

    table: Tensor
    dtype: torch.dtype

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (T,) -> (T, channels)."""
        return F.embedding(tokens, self.table).to(self.dtype)


@dataclass(frozen=True, slots=True)
class ValueEmbedding:
    """Adds to a layer's values an embedding of the token itself, scaled by one gate for each key-value head."""

    embedding: Embedding
    #: (G, number of channels that it reads)
    gate: Tensor
    gate_scale: float

    def add_to(self, v: Tensor, h: Tensor, tokens: Tensor) -> Tensor:
        """v (T, G, D), the layer's normed input h (T, C), tokens (T,) -> (T, G, D)."""
        gate = torch.sigmoid(F.linear(h[:, : self.gate.shape[1]], self.gate)).mul_(self.gate_scale)
        return torch.addcmul(v, gate[..., None], self.embedding(tokens).view(v.shape))


@dataclass(frozen=True, slots=True)
class Smear:
    """Adds to each embedding a part of the one before it."""

    #: (1, number of channels that it reads)
    gate: Tensor
    strength: float

    def mix(self, x: Tensor, before: Tensor, has_before: Tensor) -> Tensor:
        """Embeddings x (T, C), those before them (T, C), and whether there is one before (T,) -> (T, C)."""
        gate = torch.sigmoid(F.linear(x[:, : self.gate.shape[1]], self.gate)).mul_(self.strength)
        return torch.addcmul(x, gate * has_before[:, None], before)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer."""

    #: Queries, keys and values in one gemm: (T, C) -> (T, (H + 2 G) D).
    qkv: Linear
    attention_out: Linear
    #: Includes the max(0, y) of the squared activation.
    mlp_in: Linear
    mlp_out: Linear
    window: int
    #: Factors of the residual stream and of the embedding, which are mixed before the layer; None: only the stream.
    mix: tuple[float, float] | None
    value_embedding: ValueEmbedding | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checkpoint's weights on torch, ready to decode."""

    #: Attention may read places after a sequence's own, under a mask.
    reads_beyond: ClassVar[bool] = True

    config: ModelConfig
    device: Device
    embedding: Embedding
    smear: Smear | None
    blocks: tuple[Block, ...]
    #: Factor of the stream in the middle of the layers, which is subtracted after the last layer.
    backout: float
    head: Linear
    rope: Rope

    @classmethod
    def load(cls, config: ModelConfig, weights: Mapping[str, Tensor], device: Device) -> Model:
        """Copy the weights, tensor by tensor, into the form that is fastest on the device.

        `weights` are as on disk. They may read each tensor when it is asked for: peak memory is then little more than
        the size of the model.
        """
        with torch.inference_mode():
            return _Loader(config, weights, device).load()

    def forward(self, batch: Batch, cache: KvCache) -> Tensor:
        """Write the keys and values of `batch` to the cache and return its logits (R, V), fp32."""
        windows = frozenset(self.config.windows)
        return self.run(batch, cache, plan_calls(batch.chunks, windows, self._call_cost_places, cache.memory))

    def run(self, batch: Batch, cache: KvCache, calls: Mapping[int, Rows[AttentionCall]]) -> Tensor:
        """Like `forward`, with given attention calls for each window, which cover the batch in order.

        It uses only the tensors and the last position of `batch`, and its operations do not depend on the values in the
        tensors.
        """
        x = rms_norm(self.embedding(batch.tokens))
        if self.smear is not None:
            before = rms_norm(self.embedding(batch.previous.clamp(min=0)))
            x = self.smear.mix(x, before, batch.previous >= 0)
        embedded = x
        middle = x
        rotations = self.rope.at(batch.positions, batch.last_position)
        for i, block in enumerate(self.blocks):
            if block.mix is not None:
                x = torch.add(x * block.mix[0], embedded, alpha=block.mix[1])
            x = x + self._attention(block, rms_norm(x), rotations, batch, calls[block.window], cache.layers[i])
            hidden = block.mlp_in(rms_norm(x))
            x = x.add_(block.mlp_out(hidden.square_()))
            if i == len(self.blocks) // 2:
                middle = x.clone() if self.backout else x
        if batch.wanted is not None:
            if not batch.wanted.shape[0]:
                return x.new_empty(0, self.config.vocab_size)
            x, middle = x[batch.wanted], middle[batch.wanted]
        if self.backout:
            x = torch.sub(x, middle, alpha=self.backout)
        logits = self.head(rms_norm(x)).float()
        return logits.div_(self.config.softcap).tanh_().mul_(self.config.softcap)

    @property
    def _call_cost_places(self) -> int:
        """The fixed cost of an attention call, as the number of places that could be read in the same time."""
        return CALL_COST_BYTES * self.config.n_layer // self.device.kv_bytes_per_token(self.config)

    def _attention(
        self,
        block: Block,
        h: Tensor,
        rotations: Tensor,
        batch: Batch,
        calls: Rows[AttentionCall],
        layer: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Attention of a layer: its normed input h (T, C) -> (T, C)."""
        keys, values = layer
        heads, groups, dim = self.config.n_head, self.config.n_kv_head, self.config.head_dim
        qkv = block.qkv(h).view(-1, heads + 2 * groups, dim)
        qk = rms_norm(self.rope.rotate(qkv[:, : heads + groups], rotations))
        v = qkv[:, heads + groups :]
        if block.value_embedding is not None:
            v = block.value_embedding.add_to(v, h, batch.tokens)
        keys.index_copy_(1, batch.places, qk[:, heads:].transpose(0, 1))
        values.index_copy_(1, batch.places, v.transpose(0, 1))
        # The era multiplies both queries and keys by a factor; here it is part of the scale of their dot product.
        scale = self.config.era.qk_scale**2 * dim**-0.5
        return block.attention_out(attend(qk[:, :heads], keys, values, calls, scale))


class _Loader:
    """Builds a model from the tensors of a checkpoint."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], device: Device) -> None:
        self._config = config
        self._weights = weights
        self._device = device

    def load(self) -> Model:
        config = self._config
        smear = None
        backout = 0.0
        if config.era.smear:
            smear = Smear(self._use("smear_gate.weight", self._device.copy), self._floats("smear_lambda")[0])
            backout = self._floats("backout_lambda")[0]
        # The largest matrix comes first, while little other memory is in use.
        head = self._use("lm_head.weight", lambda weight: linear(weight[: config.vocab_size], self._device))
        return Model(
            config=config,
            device=self._device,
            embedding=self._embedding("transformer.wte.weight"),
            smear=smear,
            blocks=tuple(self._block(i) for i in range(config.n_layer)),
            backout=backout,
            head=head,
            rope=Rope(
                config.head_dim,
                config.era.rope_base,
                bf16=config.era.rope_bf16,
                context=config.sequence_len,
                device=self._device,
            ),
        )

    def _block(self, i: int) -> Block:
        config = self._config
        layer = f"transformer.h.{i}."
        value_embedding = None
        if config.has_value_embedding(i):
            value_embedding = ValueEmbedding(
                self._embedding(f"value_embeds.{i}.weight"),
                self._use(f"{layer}attn.ve_gate.weight", self._device.copy),
                config.era.gate_scale,
            )
        return Block(
            qkv=self._qkv(layer),
            attention_out=self._linear(f"{layer}attn.c_proj.weight"),
            mlp_in=self._linear(f"{layer}mlp.c_fc.weight", relu=True),
            mlp_out=self._linear(f"{layer}mlp.c_proj.weight"),
            window=config.windows[i],
            mix=(self._floats("resid_lambdas")[i], self._floats("x0_lambdas")[i]) if config.era.lambdas else None,
            value_embedding=value_embedding,
        )

    def _qkv(self, layer: str) -> Linear:
        dim = self._config.head_dim
        names = [f"{layer}attn.c_{part}.weight" for part in "qkv"]
        q, k, v = (self._weights[name] for name in names)
        return linear(torch.cat((pair_channels(q, dim), pair_channels(k, dim), v)), self._device)

    def _linear(self, name: str, *, relu: bool = False) -> Linear:
        return self._use(name, lambda weight: linear(weight, self._device, relu=relu))

    def _embedding(self, name: str) -> Embedding:
        return Embedding(self._use(name, self._device.copy_table), self._device.dtype)

    def _floats(self, name: str) -> list[float]:
        values: list[float] = self._weights[name].float().tolist()
        return values

    def _use(self, name: str, copy: Callable[[Tensor], T]) -> T:
        return copy(self._weights[name])
