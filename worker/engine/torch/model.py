"""The model on torch. `ModelConfig` says which parts it has; their tensors say the rest.

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

from worker.engine.architecture import tensors
from worker.engine.architecture.config import ModelConfig
from worker.engine.batch import Batch
from worker.engine.device import Device
from worker.engine.kv.cache import KvCache
from worker.engine.torch.attention import CALL_COST_BYTES, AttentionCall, attend, plan_calls
from worker.engine.torch.linear import Linear, PlainLinear, linear
from worker.engine.torch.mlp import ACTIVATIONS, GatedMlp, Mlp, PlainMlp
from worker.engine.torch.norm import LayerNorm, NormFunction, RmsNorm
from worker.engine.torch.rope import RopeTable, pair_channels

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

    attention_norm: NormFunction
    #: Queries, keys and values in one gemm: (T, C) -> (T, (H + 2 G) D).
    qkv: Linear
    #: Norm of the heads of queries and keys, (T, H + G, D), before or after their rotation.
    qk_norm: RmsNorm | None
    rotates: bool
    attention_out: Linear
    mlp_norm: NormFunction
    mlp: Mlp
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
    #: Is added to the embedding; None: the model has no learned positions.
    positions: Embedding | None
    embedding_norm: RmsNorm | None
    smear: Smear | None
    blocks: tuple[Block, ...]
    #: Factor of the stream in the middle of the layers, which is subtracted after the last layer.
    backout: float
    final_norm: NormFunction
    head: Linear
    rope: RopeTable | None

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
        x = self._embed(batch.tokens)
        if self.smear is not None:
            x = self.smear.mix(x, self._embed(batch.previous.clamp(min=0)), batch.previous >= 0)
        if self.positions is not None:
            x = x + self.positions(batch.positions)
        embedded = x
        middle = x
        rotations = None if self.rope is None else self.rope.at(batch.positions, batch.last_position)
        for i, block in enumerate(self.blocks):
            if block.mix is not None:
                x = torch.add(x * block.mix[0], embedded, alpha=block.mix[1])
            h = block.attention_norm(x)
            x = x + self._attention(block, h, rotations, batch, calls[block.window], cache.layers[i])
            x = x.add_(block.mlp(block.mlp_norm(x)))
            if i == len(self.blocks) // 2:
                middle = x.clone() if self.backout else x
        if batch.wanted is not None:
            if not batch.wanted.shape[0]:
                return x.new_empty(0, self.config.vocab_size)
            x, middle = x[batch.wanted], middle[batch.wanted]
        if self.backout:
            x = torch.sub(x, middle, alpha=self.backout)
        logits = self.head(self.final_norm(x)).float()
        if self.config.softcap is None:
            return logits
        return logits.div_(self.config.softcap).tanh_().mul_(self.config.softcap)

    def _embed(self, tokens: Tensor) -> Tensor:
        """tokens (T,) -> (T, C)."""
        x = self.embedding(tokens)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    @property
    def _call_cost_places(self) -> int:
        """The fixed cost of an attention call, as the number of places that could be read in the same time."""
        return CALL_COST_BYTES * self.config.n_layer // self.device.kv_bytes_per_token(self.config)

    def _attention(
        self,
        block: Block,
        h: Tensor,
        rotations: Tensor | None,
        batch: Batch,
        calls: Rows[AttentionCall],
        layer: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Attention of a layer: its normed input h (T, C) -> (T, C)."""
        keys, values = layer
        heads, groups, dim = self.config.n_head, self.config.n_kv_head, self.config.head_dim
        qkv = block.qkv(h).view(-1, heads + 2 * groups, dim)
        qk = self._placed(block, qkv[:, : heads + groups], rotations)
        v = qkv[:, heads + groups :]
        if block.value_embedding is not None:
            v = block.value_embedding.add_to(v, h, batch.tokens)
        keys.index_copy_(1, batch.places, qk[:, heads:].transpose(0, 1))
        values.index_copy_(1, batch.places, v.transpose(0, 1))
        return block.attention_out(attend(qk[:, :heads], keys, values, calls, self.config.attention_scale))

    def _placed(self, block: Block, qk: Tensor, rotations: Tensor | None) -> Tensor:
        """Queries and keys (T, H + G, D), normalized and rotated as the layer has it."""
        norm = self.config.qk_norm
        if block.qk_norm is not None and norm is not None and not norm.after_rotation:
            qk = block.qk_norm(qk)
        if block.rotates and self.rope is not None and rotations is not None:
            qk = self.rope.rotate(qk, rotations)
        if block.qk_norm is not None and norm is not None and norm.after_rotation:
            qk = block.qk_norm(qk)
        return qk


class _Loader:
    """Builds a model from the tensors of a checkpoint."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], device: Device) -> None:
        self._config = config
        self._weights = weights
        self._device = device

    def load(self) -> Model:
        config, device = self._config, self._device
        smear = None
        backout = 0.0
        if config.smear_width:
            smear = Smear(self._use("smear_gate.weight", device.copy), self._floats("smear_lambda")[0])
            backout = self._floats("backout_lambda")[0]
        # The largest matrix comes first, while little other memory is in use.
        head = None if config.tied_head else self._use(tensors.HEAD, self._head)
        embedding = self._embedding(tensors.EMBEDDING)
        return Model(
            config=config,
            device=device,
            embedding=embedding,
            positions=self._embedding(tensors.POSITIONS) if config.learned_positions else None,
            embedding_norm=RmsNorm(config.norm.epsilon) if config.embedding_norm else None,
            smear=smear,
            blocks=tuple(self._block(i) for i in range(config.n_layer)),
            backout=backout,
            final_norm=self._norm(tensors.FINAL_NORM),
            head=self._tied_head(embedding.table) if head is None else head,
            rope=None if config.rope is None else RopeTable(config.rope, context=config.sequence_len, device=device),
        )

    def _block(self, i: int) -> Block:
        config = self._config
        layer = tensors.layer_name(i)
        value_embedding = None
        if config.value_gate is not None and config.has_value_embedding(i):
            value_embedding = ValueEmbedding(
                self._embedding(f"value_embeds.{i}.weight"),
                self._use(f"{layer}attn.ve_gate.weight", self._device.copy),
                config.value_gate.scale,
            )
        return Block(
            attention_norm=self._norm(f"{layer}ln_1"),
            qkv=self._qkv(layer),
            qk_norm=self._qk_norm(layer),
            rotates=config.rotates(i),
            attention_out=self._linear(f"{layer}attn.c_proj", bias=config.attention_out_bias),
            mlp_norm=self._norm(f"{layer}ln_2"),
            mlp=self._mlp(layer),
            window=config.windows[i],
            mix=(self._floats("resid_lambdas")[i], self._floats("x0_lambdas")[i]) if config.residual_mix else None,
            value_embedding=value_embedding,
        )

    def _qkv(self, layer: str) -> Linear:
        names = [f"{layer}attn.c_{part}" for part in "qkv"]
        weight = self._paired([self._weights[f"{name}.weight"] for name in names])
        bias = self._paired([self._weights[f"{name}.bias"] for name in names]) if self._config.qkv_bias else None
        return linear(weight, self._device, bias=bias)

    def _paired(self, qkv: list[Tensor]) -> Tensor:
        """The rows for queries, keys and values, stacked, with channels in the order that `RopeTable` reads."""
        q, k, v = qkv
        dim = self._config.head_dim
        return torch.cat((self._pair(q, dim), self._pair(k, dim), v))

    def _pair(self, weight: Tensor, dim: int) -> Tensor:
        return weight if self._config.rope is None else pair_channels(weight.contiguous(), dim)

    def _qk_norm(self, layer: str) -> RmsNorm | None:
        """The norm of all heads of queries and keys, with a weight (H + G, D) if they have weights."""
        config = self._config
        norm, dim = config.qk_norm, config.head_dim
        if norm is None:
            return None
        if not norm.weights:
            return RmsNorm(norm.epsilon)
        q, k = (self._pair(self._weights[f"{layer}attn.{part}_norm.weight"], dim) for part in "qk")
        weight = torch.cat((q.expand(config.n_head, dim), k.expand(config.n_kv_head, dim)))
        return RmsNorm(norm.epsilon, self._device.copy(weight))

    def _mlp(self, layer: str) -> Mlp:
        config = self._config
        activate, mlp_out = ACTIVATIONS[config.activation], self._linear(f"{layer}mlp.c_proj", bias=config.mlp_bias)
        if not config.gated:
            return PlainMlp(self._linear(f"{layer}mlp.c_fc", bias=config.mlp_bias), activate, mlp_out)
        names = [f"{layer}mlp.c_gate", f"{layer}mlp.c_fc"]
        weight = torch.cat([self._weights[f"{name}.weight"] for name in names])
        bias = torch.cat([self._weights[f"{name}.bias"] for name in names]) if config.mlp_bias else None
        return GatedMlp(linear(weight, self._device, bias=bias), activate, mlp_out)

    def _norm(self, name: str) -> NormFunction:
        norm = self._config.norm
        weight = self._use(f"{name}.weight", self._device.copy) if norm.weights else None
        if norm.kind == "rms":
            return RmsNorm(norm.epsilon, weight)
        bias = self._use(f"{name}.bias", self._device.copy) if norm.weights else None
        return LayerNorm(torch.finfo(self._device.dtype).eps if norm.epsilon is None else norm.epsilon, weight, bias)

    def _linear(self, name: str, *, bias: bool) -> Linear:
        return linear(
            self._weights[f"{name}.weight"], self._device, bias=self._weights[f"{name}.bias"] if bias else None
        )

    def _head(self, weight: Tensor) -> Linear:
        return linear(weight[: self._config.vocab_size], self._device)

    def _tied_head(self, table: Tensor) -> Linear:
        """The head with the matrix of the embedding, which is not copied if it has the right number format."""
        if table.dtype == self._device.dtype:
            return PlainLinear(table[: self._config.vocab_size])
        return self._head(table)

    def _embedding(self, name: str) -> Embedding:
        return Embedding(self._use(name, self._device.copy_table), self._device.dtype)

    def _floats(self, name: str) -> list[float]:
        values: list[float] = self._weights[name].float().tolist()
        return values

    def _use(self, name: str, copy: Callable[[Tensor], T]) -> T:
        return copy(self._weights[name])
