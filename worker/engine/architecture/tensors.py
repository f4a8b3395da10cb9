"""The tensors of a model: their names and shapes.

The names are those of nanochat's GPT, and those of GPT-2 for what nanochat lacks. Matrices are (outputs, inputs).
"""

from __future__ import annotations

from worker.engine.architecture.config import ModelConfig, Norm

EMBEDDING = "transformer.wte.weight"
POSITIONS = "transformer.wpe.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "transformer.ln_f"


def layer_name(i: int) -> str:
    """The beginning of the names of a layer's tensors."""
    return f"transformer.h.{i}."


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a model needs."""
    width, rows = config.n_embd, config.rows
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (rows, width)}
    if not config.tied_head:
        found[HEAD] = (rows, width)
    if config.learned_positions:
        found[POSITIONS] = (config.sequence_len, width)
    for i in range(config.n_layer):
        found |= _layer_shapes(config, i)
    found |= _norm_shapes(config.norm, FINAL_NORM, width)
    if config.residual_mix:
        found["resid_lambdas"] = (config.n_layer,)
        found["x0_lambdas"] = (config.n_layer,)
    if config.smear_width:
        found["smear_gate.weight"] = (1, config.smear_width)
        found["smear_lambda"] = (1,)
        found["backout_lambda"] = (1,)
    return found


def _layer_shapes(config: ModelConfig, i: int) -> dict[str, tuple[int, ...]]:
    width, hidden, layer = config.n_embd, config.n_hidden, layer_name(i)
    matrices = [
        (f"{layer}attn.c_q", config.q_dim, width, config.qkv_bias),
        (f"{layer}attn.c_k", config.kv_dim, width, config.qkv_bias),
        (f"{layer}attn.c_v", config.kv_dim, width, config.qkv_bias),
        (f"{layer}attn.c_proj", width, config.q_dim, config.attention_out_bias),
        (f"{layer}mlp.c_fc", hidden, width, config.mlp_bias),
        (f"{layer}mlp.c_proj", width, hidden, config.mlp_bias),
    ]
    if config.gated:
        matrices.append((f"{layer}mlp.c_gate", hidden, width, config.mlp_bias))
    found: dict[str, tuple[int, ...]] = {}
    for name, outputs, inputs, bias in matrices:
        found[f"{name}.weight"] = (outputs, inputs)
        if bias:
            found[f"{name}.bias"] = (outputs,)
    found |= _norm_shapes(config.norm, f"{layer}ln_1", width) | _norm_shapes(config.norm, f"{layer}ln_2", width)
    if config.qk_norm is not None and config.qk_norm.weights:
        found |= {f"{layer}attn.{part}_norm.weight": (config.head_dim,) for part in "qk"}
    if config.has_value_embedding(i):
        assert config.value_gate is not None
        found[f"value_embeds.{i}.weight"] = (config.rows, config.kv_dim)
        found[f"{layer}attn.ve_gate.weight"] = (config.n_kv_head, config.value_gate.width)
    return found


def _norm_shapes(norm: Norm, name: str, width: int) -> dict[str, tuple[int, ...]]:
    if not norm.weights:
        return {}
    parts = ("weight", "bias") if norm.kind == "layer" else ("weight",)
    return {f"{name}.{part}": (width,) for part in parts}
