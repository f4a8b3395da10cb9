"""transformers' NanoChatForCausalLM behind a pipe: a JSON line in, a JSON line out.

Runs in the peer's own environment, as a script: it imports torch, transformers, and `shapes.py` beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).parent))
from shapes import CONTEXT, random_weights  # type: ignore[import-not-found]

#: nanochat's parts by transformers' names.
_NAMES = {
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def load(order: dict[str, Any]) -> Any:
    """The model of a shape, or of a checkpoint's folder."""
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
        vocab_size=weights["transformer.wte.weight"].shape[0],
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
    with torch.device("meta"):
        model = transformers.NanoChatForCausalLM(config)
    renamed = {
        "model.embed_tokens.weight": weights.pop("transformer.wte.weight"),
        "lm_head.weight": weights.pop("lm_head.weight"),
    }
    for name in list(weights):
        _, _, layer, part, matrix, _ = name.split(".")
        renamed[f"model.layers.{layer}.{_NAMES[f'{part}.{matrix}']}.weight"] = weights.pop(name)
    model.load_state_dict(renamed, strict=True, assign=True)
    # The rotary table is no parameter: build it where it lies.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def generate(model: Any, prompts: list[list[int]], tokens: int, *, scores: bool = False) -> Any:
    """`tokens` greedy tokens for each prompt; all prompts are of one length."""
    ids = torch.tensor(prompts)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=scores,
    )


def timed(model: Any, prompts: list[list[int]], tokens: int) -> dict[str, float]:
    """Seconds of the whole texts, and of what comes behind their first tokens: from the second forward pass on."""
    starts: list[float] = []
    hook = model.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    began = time.perf_counter()
    generate(model, prompts, tokens)
    ended = time.perf_counter()
    hook.remove()
    assert len(starts) == tokens, f"{len(starts)} forward passes for {tokens} tokens"
    return {"seconds": ended - began, "decode_s": ended - starts[1]}


def checked(model: Any, prompts: list[list[int]], tokens: int, vocab_size: int) -> dict[str, Any]:
    """The ids, and how far the largest logit is above the second one at each of them.

    nanochat of era E1 rounds the angles' sines and cosines to bf16 and transformers does not; here, where texts are
    compared, and not where time is taken, they are rounded.
    """
    rounding = model.model.rotary_emb.register_forward_hook(
        lambda module, inputs, outputs: tuple(table.bfloat16().float() for table in outputs)
    )
    found = generate(model, prompts, tokens, scores=True)
    rounding.remove()
    best = torch.stack(found.logits, dim=1)[..., :vocab_size].topk(2).values
    return {
        "ids": found.sequences[:, len(prompts[0]) :].tolist(),
        "margins": (best[..., 0] - best[..., 1]).tolist(),
    }


def main() -> None:
    """Answer orders until there are no more."""
    torch.manual_seed(0)
    model: Any = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any
        with torch.inference_mode():
            if order["do"] == "load":
                torch.set_num_threads(order["threads"])
                model = load(order)
                answer = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
            elif order["do"] == "check":
                answer = checked(model, order["prompts"], order["tokens"], order["vocab_size"])
            else:
                answer = timed(model, order["prompts"], order["tokens"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
