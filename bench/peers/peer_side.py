"""What the scripts of the peers share. Runs in their environments: it imports torch and transformers alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers  # type: ignore[import-not-found]
from torch import Tensor, nn

from bench.shapes import CONTEXT, random_weights

#: nanochat's parts by transformers' names.
_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def answer_orders(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answer each line of JSON on stdin with one on stdout, until there are no more."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        # What a library prints is no answer.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def transformers_form(order: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Configuration and weights, fp32, of `NanoChatForCausalLM`: of a shape, or of a checkpoint's files."""
    if order["shape"]:
        layers, width, heads, vocab_size = order["shape"]
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
        sizes = json.loads(Path(order["meta_file"]).read_text())["model_config"]
        weights = torch.load(order["model_file"], map_location="cpu", weights_only=True)
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
    # Rows behind the ids are padding, which nobody may choose.
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
    """Round the angles' sines and cosines to bf16, as nanochat of era E1 does and transformers does not, until the
    returned handle is removed. For where texts are compared, and not where time is taken."""
    return rotary.register_forward_hook(
        lambda module, inputs, outputs: tuple(table.bfloat16().float() for table in outputs)
    )


def timed(model: nn.Module, generate: Callable[[], object], tokens: int) -> dict[str, float]:
    """Seconds that texts of `tokens` tokens take, and those from when the last one of them has its first token.

    A text that has its first token needs one forward pass of `model` for each further one.
    """
    starts: list[float] = []
    hook = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    began = time.perf_counter()
    generate()
    ended = time.perf_counter()
    hook.remove()
    assert len(starts) >= tokens, f"{len(starts)} forward passes were seen for {tokens} tokens"
    return {"seconds": ended - began, "decode_s": ended - starts[1 - tokens]}
