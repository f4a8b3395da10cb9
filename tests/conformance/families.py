"""Configurations of every family that can be served, as `config.json` has them: small, and in every variant."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Config = dict[str, Any]

CONTEXT = 128
#: Keys per position that a sliding window may have, in the count of Hugging Face: with that of the position itself.
WINDOWS = [1, 5, 32]


@st.composite
def ropes(draw: st.DrawFn) -> Config:
    """`rope_parameters` of every kind."""
    base = {"rope_theta": draw(st.sampled_from([100.0, 10_000.0, 500_000.0]))}
    kind = draw(st.sampled_from(["default", "linear", "llama3", "yarn"]))
    if kind == "default":
        return {"rope_type": kind, **base}
    scaled = {"rope_type": kind, **base, "factor": draw(st.sampled_from([1.0, 2.0, 8.0]))}
    if kind == "linear":
        return scaled
    scaled["original_max_position_embeddings"] = draw(st.sampled_from([16, 32, 64]))
    if kind == "llama3":
        return scaled | {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
    optional = {
        "attention_factor": st.sampled_from([0.5, 1.2]),
        "beta_fast": st.sampled_from([16.0, 32.0]),
        "beta_slow": st.sampled_from([1.0, 2.0]),
        "mscale": st.sampled_from([0.7, 1.0]),
        "mscale_all_dim": st.sampled_from([0.5, 1.0]),
        "truncate": st.booleans(),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(optional))))
    return scaled | {name: draw(optional[name]) for name in sorted(chosen)}


@st.composite
def decoders(draw: st.DrawFn, family: str, *, own_head_size: bool) -> Config:
    """What all families but GPT-2 have."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3]))
    head_dim = draw(st.sampled_from([2, 8, 16]))
    layers = draw(st.integers(1, 4))
    config: Config = {
        "model_type": family,
        "vocab_size": draw(st.integers(40, 90)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw(st.sampled_from([8, 44])),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        "rope_parameters": draw(ropes()),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    if own_head_size:
        # transformers wants a multiple of the heads, although the size of a head does not follow from it.
        return config | {"hidden_size": heads * draw(st.sampled_from([4, 10])), "head_dim": head_dim}
    return config | {"hidden_size": heads * head_dim}


ACTIVATIONS = st.sampled_from(["silu", "gelu", "gelu_new", "gelu_pytorch_tanh"])


@st.composite
def llama(draw: st.DrawFn) -> Config:
    config = draw(decoders("llama", own_head_size=True))
    return config | {
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "hidden_act": draw(ACTIVATIONS),
    }


@st.composite
def mistral(draw: st.DrawFn) -> Config:
    config = draw(decoders("mistral", own_head_size=True))
    return config | {"sliding_window": draw(st.none() | st.sampled_from(WINDOWS))}


@st.composite
def sliding(draw: st.DrawFn, layers: int) -> Config:
    """Sliding windows of the later layers, or of the layers that are listed."""
    if not draw(st.booleans()):
        return {"use_sliding_window": False}
    config: Config = {"use_sliding_window": True, "sliding_window": draw(st.sampled_from(WINDOWS))}
    if draw(st.booleans()):
        return config | {"max_window_layers": draw(st.integers(0, layers))}
    kinds = st.sampled_from(["full_attention", "sliding_attention"])
    return config | {"layer_types": [draw(kinds) for _ in range(layers)]}


@st.composite
def qwen2(draw: st.DrawFn) -> Config:
    config = draw(decoders("qwen2", own_head_size=False))
    return config | draw(sliding(config["num_hidden_layers"]))


@st.composite
def qwen3(draw: st.DrawFn) -> Config:
    config = draw(decoders("qwen3", own_head_size=True))
    return config | draw(sliding(config["num_hidden_layers"])) | {"attention_bias": draw(st.booleans())}


@st.composite
def smollm3(draw: st.DrawFn) -> Config:
    config = draw(decoders("smollm3", own_head_size=False))
    layers = config["num_hidden_layers"]
    rotated = st.lists(st.integers(0, 1), min_size=layers, max_size=layers)
    return (
        config
        | draw(sliding(layers))
        | draw(
            st.fixed_dictionaries({"no_rope_layers": rotated})
            | st.fixed_dictionaries({"no_rope_layer_interval": st.integers(1, 3)})
        )
        | {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
    )


@st.composite
def nanochat(draw: st.DrawFn) -> Config:
    config = draw(decoders("nanochat", own_head_size=False))
    return config | {
        "attention_bias": draw(st.booleans()),
        "final_logit_softcapping": draw(st.sampled_from([None, 5.0, 15.0])),
    }


@st.composite
def gpt2(draw: st.DrawFn) -> Config:
    heads = draw(st.integers(1, 3))
    return {
        "model_type": "gpt2",
        "vocab_size": draw(st.integers(40, 90)),
        "n_positions": CONTEXT,
        "n_layer": draw(st.integers(1, 3)),
        "n_head": heads,
        "n_embd": heads * draw(st.sampled_from([2, 8, 15])),
        "n_inner": draw(st.none() | st.sampled_from([10, 33])),
        "activation_function": draw(ACTIVATIONS),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 1e-3])),
        "tie_word_embeddings": draw(st.booleans()),
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


#: The strategy of each family, by its `model_type`.
FAMILIES: dict[str, st.SearchStrategy[Config]] = {
    "llama": llama(),
    "mistral": mistral(),
    "qwen2": qwen2(),
    "qwen3": qwen3(),
    "smollm3": smollm3(),
    "nanochat": nanochat(),
    "gpt2": gpt2(),
}
