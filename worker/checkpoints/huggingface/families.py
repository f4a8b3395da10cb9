"""The families of Hugging Face's models that can be served, as data.

Each one is a `model_type` of transformers 5.24. The defaults are those of its configuration class, for keys that a
`config.json` does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.checkpoints.huggingface.names import GPT2, LLAMA, NANOCHAT, Names
from worker.engine.architecture.config import Activation

#: The activations, by their names in transformers.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu_squared",
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}
#: Whether a part of the model is there: always, never, or as a key of `config.json` says.
Switch = bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family: which of its parts are fixed, and which ones `config.json` chooses."""

    #: `model_type` in `config.json`.
    name: str
    names: Names
    defaults: Mapping[str, Any]
    #: The family's own names of keys, by their usual names.
    keys: Mapping[str, str] = field(default_factory=dict)

    norm: Literal["rms", "layer"] = "rms"
    norm_weights: bool = True
    embedding_norm: bool = False
    #: The norm of queries and keys, in relation to the rotation.
    qk_norm: Literal["before", "after"] | None = None
    gated: bool = True
    qkv_bias: Switch = False
    attention_out_bias: Switch = False
    mlp_bias: Switch = False
    #: Whether the dot product of query and key is divided by the square root of the channels of a head.
    scaled_attention: Switch = True

    #: Whether positions are rotated; otherwise they are learned.
    rope: bool = True
    #: nanochat rotates by the negative angle.
    rope_direction: Literal[1, -1] = 1
    rope_base: float = 10_000.0
    #: Whether `no_rope_layers` and `no_rope_layer_interval` name layers without rotation.
    layers_without_rope: bool = False
    #: Which layers have a sliding window: none; all, if `sliding_window` is set; those that `layer_types` names, or
    #: else from `max_window_layers` on; those that `layer_types` names, or else the layers without rotation.
    windows: Literal["none", "all", "from a layer on", "without rope"] = "none"
    #: The key of the cap of the logits.
    softcap: str | None = None


_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN = _SIZES | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_ALL = (
    Family(
        name="llama",
        names=LLAMA,
        defaults=_SIZES | {"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
        qkv_bias="attention_bias",
        attention_out_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    Family(
        name="mistral",
        names=LLAMA,
        defaults=_SIZES
        | {
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        windows="all",
    ),
    Family(name="qwen2", names=LLAMA, defaults=_QWEN, qkv_bias=True, windows="from a layer on"),
    Family(
        name="qwen3",
        names=LLAMA,
        defaults=_QWEN | {"head_dim": 128, "attention_bias": False},
        qkv_bias="attention_bias",
        attention_out_bias="attention_bias",
        qk_norm="before",
        windows="from a layer on",
    ),
    Family(
        name="smollm3",
        names=LLAMA,
        defaults=_SIZES
        | {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
            "attention_bias": False,
            "mlp_bias": False,
        },
        qkv_bias="attention_bias",
        attention_out_bias="attention_bias",
        mlp_bias="mlp_bias",
        rope_base=2_000_000.0,
        layers_without_rope=True,
        windows="without rope",
    ),
    Family(
        name="gpt2",
        names=GPT2,
        defaults={
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
        },
        keys={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
            "intermediate_size": "n_inner",
            "hidden_act": "activation_function",
            "rms_norm_eps": "layer_norm_epsilon",
        },
        norm="layer",
        gated=False,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        scaled_attention="scale_attn_weights",
        rope=False,
    ),
    Family(
        name="nanochat",
        names=NANOCHAT,
        defaults=_SIZES
        | {
            "vocab_size": 50304,
            "hidden_size": 768,
            "intermediate_size": 8192,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "max_position_embeddings": 2048,
            "hidden_act": "relu2",
            "final_logit_softcapping": 15.0,
            "attention_bias": False,
        },
        norm_weights=False,
        embedding_norm=True,
        qk_norm="after",
        gated=False,
        qkv_bias="attention_bias",
        attention_out_bias="attention_bias",
        rope_direction=-1,
        softcap="final_logit_softcapping",
    ),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}

#: What is missing here for other families, for messages. The first line counts that has a part of a `model_type`.
MISSING: tuple[tuple[tuple[str, ...], str], ...] = (
    (("moe", "mixtral", "dbrx", "deepseek", "gpt_oss", "jamba", "llama4"), "mixtures of experts"),
    (("vl", "llava", "vision", "omni", "audio", "mistral3", "mllama", "idefics"), "images or sound"),
    (("gemma",), "scaled embeddings and norms behind attention and MLP"),
    (("gpt_neox", "gptj", "phi", "stablelm", "persimmon", "glm"), "rotation of some channels only"),
    (("falcon", "cohere"), "layers with attention and MLP in parallel"),
    (("bloom", "mpt"), "positions by ALiBi"),
    (("mamba", "rwkv", "recurrent", "lfm", "zamba", "qwen3_next"), "layers that are not attention"),
    (("t5", "bart", "whisper", "marian", "pegasus", "bert", "electra"), "encoders"),
)
