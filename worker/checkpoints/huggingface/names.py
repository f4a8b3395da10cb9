"""Which stored tensor each tensor of the engine is, by family as data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_LAYER = re.compile(r"transformer\.h\.([0-9]+)\.(.+)\.(weight|bias)")
#: Buffers that older versions of transformers stored. They follow from the configuration.
_ROTARY_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
_MASK_BUFFERS = re.compile(r"(.*\.)?h\.[0-9]+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of the engine is stored."""

    #: The name of the stored tensor.
    name: str
    #: The stored tensor has `parts` tensors of the engine, side by side in its last dimension; this is number `part`.
    part: int = 0
    parts: int = 1
    #: The matrix is stored as (inputs, outputs).
    transposed: bool = False

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the stored tensor, if `shape` is that of the engine's."""
        *rest, last = reversed(shape) if self.transposed else shape
        return (*rest, self.parts * last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of a family's tensors."""

    #: In front of every name but that of the head. Folders of a base model alone do not have it.
    prefix: str
    #: The names of the embeddings and the norm of the end, by the engine's name.
    outside: Mapping[str, str]
    #: The folder of the layers.
    layers: str
    #: The names of a layer's parts, by the engine's name.
    parts: Mapping[str, str]
    #: Several of the engine's parts in one: the stored part, the number in it, and how many there are.
    fused: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    #: The stored parts whose matrices are (inputs, outputs).
    transposed: frozenset[str] = frozenset()
    #: Stored tensors that are not needed.
    ignored: re.Pattern[str] = _ROTARY_BUFFERS

    def sources(self, needed: Iterable[str], stored: Iterable[str]) -> dict[str, Source]:
        """The source of each tensor of the engine in `needed`. `stored` are the names of all stored tensors."""
        prefix = self.prefix if any(name.startswith(self.prefix) for name in stored) else ""
        return {name: self._source(name, prefix) for name in needed}

    def _source(self, name: str, prefix: str) -> Source:
        layer = _LAYER.fullmatch(name)
        if layer is None:
            base, _, kind = name.rpartition(".")
            return Source(name if base == HEAD else f"{prefix}{self.outside[base]}.{kind}")
        number, part, kind = layer.groups()
        stored, index, count = self.fused.get(part) or (self.parts[part], 0, 1)
        transposed = stored in self.transposed and kind == "weight"
        return Source(f"{prefix}{self.layers}.{number}.{stored}.{kind}", index, count, transposed)


HEAD = "lm_head"
_LLAMA_OUTSIDE = {"transformer.wte": "embed_tokens", "transformer.ln_f": "norm"}
_LLAMA_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}

#: Of Llama, and of all families that came from it.
LLAMA = Names(prefix="model.", outside=_LLAMA_OUTSIDE, layers="layers", parts=_LLAMA_PARTS)
NANOCHAT = Names(
    prefix="model.",
    outside=_LLAMA_OUTSIDE,
    layers="layers",
    parts=_LLAMA_PARTS | {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"},
)
GPT2 = Names(
    prefix="transformer.",
    outside={"transformer.wte": "wte", "transformer.wpe": "wpe", "transformer.ln_f": "ln_f"},
    layers="h",
    parts={part: part for part in ("ln_1", "ln_2", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
    fused={"attn.c_q": ("attn.c_attn", 0, 3), "attn.c_k": ("attn.c_attn", 1, 3), "attn.c_v": ("attn.c_attn", 2, 3)},
    transposed=frozenset(("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    ignored=_MASK_BUFFERS,
)
