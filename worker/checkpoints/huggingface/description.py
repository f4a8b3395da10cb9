"""Turns the `config.json` of a folder in Hugging Face's form into the description of a model."""

from __future__ import annotations

from typing import Any

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.huggingface.config import family_of, size, sized, sizes
from worker.checkpoints.huggingface.families import ACTIVATIONS, Family, Switch
from worker.checkpoints.huggingface.rope import rope_of
from worker.checkpoints.huggingface.values import Values
from worker.checkpoints.json_file import short
from worker.engine.architecture.config import Activation, ModelConfig, Norm, QkNorm

#: Keys that change what is computed; the values with which they change nothing; and why other values are refused.
#: Some of them have no effect in transformers, which does not know them: they are from a program that computes more.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_map": ((None, {}), "names code that comes with the model. Such code is never run"),
    "compression_config": ((None, {}), "says that the weights are compressed, which is not supported"),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
        ((None, 0), "belongs to a mixture of experts, which is not supported"),
    ),
    "is_encoder_decoder": ((None, False), "is true: models with an encoder are not supported"),
    "add_cross_attention": ((None, False), "is true: attention to an encoder is not supported"),
    "scale_attn_by_inverse_layer_idx": ((None, False), "is true: another scale in each layer is not supported"),
    "pruned_heads": ((None, {}), "names heads that were removed, which is not supported"),
    **dict.fromkeys(
        ("attn_logit_softcapping", "clip_qkv", "per_layer_config", "position_embedding_type"),
        ((None, {}, "absolute"), "is not supported"),
    ),
    **dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "logit_scale"),
        ((None, 1), "is a factor other than 1, which is not supported"),
    ),
    **dict.fromkeys(
        ("alibi", "parallel_attn", "use_parallel_residual", "qk_layernorm", "use_qk_norm", "use_mrope"),
        ((None, False), "is true, which is not supported"),
    ),
    **dict.fromkeys(
        ("rope_interleaved", "rope_interleave"),
        ((None, False), "is true, which is not supported"),
    ),
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def describe(values: Values) -> ModelConfig:
    """The description of the model. Raises CheckpointError.

    Its head is tied if the file says so; the weights may show that it is not.
    """
    family = family_of(values)
    _refuse(values, family)
    n_embd, n_head = (
        sized(values, family, "hidden_size", "n_embd"),
        sized(values, family, "num_attention_heads", "n_head"),
    )
    n_layer = sized(values, family, "num_hidden_layers", "n_layer")
    vocabulary, context = sizes(values)
    head_dim = _head_dim(values, n_embd, n_head)
    epsilon = values.number(family.keys.get("rms_norm_eps", "rms_norm_eps"))
    rope_layers = _rope_layers(values, family, n_layer)
    rope = None
    if family.rope:
        rope = rope_of(values, head_dim, context, default_base=family.rope_base, direction=family.rope_direction)
    try:
        return ModelConfig(
            family=family.name,
            sequence_len=context,
            vocab_size=vocabulary,
            rows=vocabulary,
            n_layer=n_layer,
            n_head=n_head,
            n_kv_head=_kv_heads(values, family, n_head),
            n_embd=n_embd,
            head_dim=head_dim,
            n_hidden=_hidden(values, family, n_embd),
            norm=Norm(kind=family.norm, epsilon=epsilon, weights=family.norm_weights),
            embedding_norm=family.embedding_norm,
            activation=_activation(values, family),
            gated=family.gated,
            qkv_bias=_switch(values, family.qkv_bias),
            attention_out_bias=_switch(values, family.attention_out_bias),
            mlp_bias=_switch(values, family.mlp_bias),
            tied_head=values.flag("tie_word_embeddings"),
            rope=rope,
            rope_layers=rope_layers,
            learned_positions=not family.rope,
            qk_norm=_qk_norm(family, epsilon),
            attention_scale=head_dim**-0.5 if _switch(values, family.scaled_attention) else 1.0,
            windows=_windows(values, family, context, rope_layers),
            softcap=None if family.softcap is None else values.optional_number(family.softcap),
        )
    except ValueError as error:
        raise CheckpointError(values.path, f"does not describe a model: {error}") from error


def _refuse(values: Values, family: Family) -> None:
    """Raise CheckpointError for what would change the computation and is not supported."""
    if (quantized := values.get("quantization_config")) not in (None, {}):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise values.error(
            "quantization_config",
            f"says that the weights are quantised ({short(method)}), which is not supported. Take the folder of the "
            "model in bf16, fp16 or fp32; CELERIAC_WEIGHTS=int8 makes it small",
        )
    for key, (harmless, why) in _REFUSED.items():
        if values.get(key) not in harmless:
            raise values.error(key, f"{why} ({short(values.get(key))})")
    names = values.get("architectures")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and "For" in name and not name.endswith("ForCausalLM"):
            raise values.error("architectures", f"names {short(name)}, which does not generate text")


def _switch(values: Values, switch: Switch) -> bool:
    return switch if isinstance(switch, bool) else values.flag(switch)


def _head_dim(values: Values, n_embd: int, n_head: int) -> int:
    if values.get("head_dim") is not None:
        return size(values, "head_dim", "head_dim")
    if n_embd % n_head:
        raise CheckpointError(
            values.path, f"its width of {n_embd} cannot be divided among {n_head} heads, and `head_dim` is missing"
        )
    return n_embd // n_head


def _kv_heads(values: Values, family: Family, n_head: int) -> int:
    key = family.keys.get("num_key_value_heads", "num_key_value_heads")
    return n_head if values.get(key) is None else size(values, key, "n_kv_head")


def _hidden(values: Values, family: Family, n_embd: int) -> int:
    key = family.keys.get("intermediate_size", "intermediate_size")
    # GPT-2 leaves it out.
    return 4 * n_embd if values.get(key) is None else size(values, key, "n_hidden")


def _activation(values: Values, family: Family) -> Activation:
    key = family.keys.get("hidden_act", "hidden_act")
    name = values.text(key)
    if name not in ACTIVATIONS:
        raise values.error(key, f"is {short(name)}, which is not supported; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _qk_norm(family: Family, epsilon: float) -> QkNorm | None:
    if family.qk_norm is None:
        return None
    return QkNorm(after_rotation=family.qk_norm == "after", epsilon=epsilon, weights=family.norm_weights)


def _rope_layers(values: Values, family: Family, n_layer: int) -> tuple[bool, ...]:
    if not family.layers_without_rope:
        return (family.rope,) * n_layer
    given = values.optional_list("no_rope_layers", n_layer)
    if given is None:
        interval = values.integer("no_rope_layer_interval")
        return tuple((layer + 1) % interval != 0 for layer in range(n_layer))
    if any(one not in (0, 1) for one in given):
        raise values.error("no_rope_layers", "must hold 1 for each layer with rotation, and 0 for each one without")
    return tuple(bool(one) for one in given)


def _windows(values: Values, family: Family, context: int, rope_layers: tuple[bool, ...]) -> tuple[int, ...]:
    """For each layer, how many keys a query attends to in addition to its own. A window counts its own, too."""
    sliding = _sliding_layers(values, family, rope_layers)
    given = values.optional_list("layer_types", len(sliding))
    if given is not None:
        if other := next((one for one in given if one not in (_FULL, _SLIDING)), None):
            raise values.error("layer_types", f"has {short(other)}, which is not supported")
        named = tuple(one == _SLIDING for one in given)
        if named != sliding and family.windows in ("none", "all"):
            raise values.error("layer_types", f"names other layers with a window than {family.name} has")
        sliding = named
    if not any(sliding):
        return (context,) * len(sliding)
    if values.get("sliding_window") is None or (family.windows != "all" and not values.flag("use_sliding_window")):
        raise values.error("layer_types", f"has {_SLIDING}, but sliding_window or use_sliding_window turns it off")
    window = values.integer("sliding_window")
    return tuple(min(window - 1, context) if one else context for one in sliding)


def _sliding_layers(values: Values, family: Family, rope_layers: tuple[bool, ...]) -> tuple[bool, ...]:
    """For each layer, whether the family gives it a window if `layer_types` is missing."""
    n_layer = len(rope_layers)
    if family.windows == "none" or values.get("sliding_window") is None:
        return (False,) * n_layer
    if family.windows == "all":
        return (True,) * n_layer
    if not values.flag("use_sliding_window"):
        return (False,) * n_layer
    if family.windows == "without rope":
        return tuple(not one for one in rope_layers)
    first = values.integer("max_window_layers", least=0)
    return tuple(layer >= first for layer in range(n_layer))
