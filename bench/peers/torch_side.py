"""The part that the peers on torch share. It runs in their environments and imports only torch and transformers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from bench.random_weights import CONTEXT, random_weights

#: nanochat's parts by transformers' names.
_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def nanochat_form(request: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return configuration and fp32 weights of `NanoChatForCausalLM` for the `shape` or `files` of a `load` request."""
    if shape := request.get("shape"):
        layers, width, heads, vocab_size = shape
        sizes = {
            "n_layer": layers,
            "n_embd": width,
            "n_head": heads,
            "n_kv_head": heads,
            "vocab_size": vocab_size,
            "sequence_len": CONTEXT,
        }
        weights = random_weights(layers, width, vocab_size)
    else:
        files = request["files"]
        sizes = json.loads(Path(files["meta"]).read_text())["model_config"]
        weights = torch.load(files["model"], map_location="cpu", weights_only=True)
        weights = {name.removeprefix("_orig_mod."): tensor.float() for name, tensor in weights.items()}
    config = transformers.NanoChatConfig(
        architectures=["NanoChatForCausalLM"],
        dtype="float32",
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["n_embd"],
        intermediate_size=4 * sizes["n_embd"],
        num_hidden_layers=sizes["n_layer"],
        num_attention_heads=sizes["n_head"],
        num_key_value_heads=sizes["n_kv_head"],
        max_position_embeddings=sizes["sequence_len"],
        rms_norm_eps=1.1920929e-07,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    # Rows after the last id are padding that must never be sampled.
    ids = slice(sizes["vocab_size"])
    renamed = {
        "model.embed_tokens.weight": weights.pop("transformer.wte.weight")[ids].contiguous(),
        "lm_head.weight": weights.pop("lm_head.weight")[ids].contiguous(),
    }
    for name in list(weights):
        _, _, layer, part, matrix, _ = name.split(".")
        renamed[f"model.layers.{layer}.{_NAMES[f'{part}.{matrix}']}.weight"] = weights.pop(name)
    return config, renamed


def round_angles(rotary: nn.Module) -> Any:
    """Round the sines and cosines of the angles to bf16 until the returned handle is removed.

    nanochat of era E1 does this and transformers does not. Use it when texts are compared, not when time is measured.
    """
    return rotary.register_forward_hook(
        lambda module, inputs, outputs: tuple(table.bfloat16().float() for table in outputs)
    )


def timed(model: nn.Module, generate: Callable[[], object], tokens: int) -> dict[str, float]:
    """Measure `generate`, which makes texts of `tokens` tokens: `seconds` in all, and `decode_s` of decoding.

    Decoding begins when every text has its first token. From then on the texts need one forward pass of `model` for
    each further token.
    """
    starts: list[float] = []
    hook = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    began = time.perf_counter()
    generate()
    ended = time.perf_counter()
    hook.remove()
    assert len(starts) >= tokens, f"only {len(starts)} forward passes for {tokens} tokens"
    return {"seconds": ended - began, "decode_s": ended - starts[1 - tokens]}
