"""Makes models of transformers with random weights, and computes with them: one line of JSON in, one line out.

A line has the `folder` for the model, its `config` with `model_type`, the number format `dtype` of its weights, a
`seed`, and `prompts` of token ids. The reply has for each prompt the logits after it, the log-probabilities of its
tokens after the first, and the next tokens under argmax with the smallest distance of the two best logits among them.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import torch
import transformers

GREEDY_TOKENS = 12


def random_model(config: dict[str, Any], dtype: torch.dtype, seed: int) -> Any:
    """A model in fp32 whose weights are numbers of `dtype`: those of norms near 1, all others near 0."""
    options = dict(config)
    description = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
    description._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(description, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = 0.15 * torch.randn(parameter.shape, generator=generator)
        is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
        parameter.data = (noise + 1 if is_norm else noise).to(dtype).float()
    return model


def computed(model: Any, prompt: list[int]) -> dict[str, Any]:
    """What the model computes for one prompt."""
    ids = list(prompt)
    margin = float("inf")
    first: torch.Tensor | None = None
    for _ in range(GREEDY_TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
        first = logits if first is None else first
        best = logits[-1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    assert first is not None
    logprobs = first[:-1].log_softmax(-1).gather(1, torch.tensor(prompt[1:], dtype=torch.int64)[:, None])
    return {
        "last_logits": first[-1].tolist(),
        "prompt_logprobs": logprobs[:, 0].tolist(),
        "greedy": ids[len(prompt) :],
        "min_margin": margin,
    }


def answered(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Write the model of an order to its folder, and compute with it."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[order["dtype"]]
    model = random_model(order["config"], dtype, order["seed"])
    reply = [computed(model, prompt) for prompt in order["prompts"]]
    model.to(dtype).save_pretrained(order["folder"], max_shard_size="60KB" if order["seed"] % 2 else "5GB")
    return reply


@torch.inference_mode()
def main() -> None:
    """Reply to each line of standard input."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = answered(order)
        except Exception:  # noqa: BLE001 - whatever transformers raises, the test shows it
            reply = traceback.format_exc()
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
