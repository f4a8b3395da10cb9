"""The logits after prompts, and the ids of texts, by transformers."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers


def main() -> None:
    """Print, for each of the `requests`, the logits after each of its prompts, and the ids of its texts.

    `rounded`: whether sines and cosines are rounded to bf16, as in nanochat.
    """
    print(json.dumps([answer(request) for request in json.loads(sys.argv[1])["requests"]]))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32).eval()
    if request.get("rounded"):
        # As docs/reference/commands.md says it.
        model.model.rotary_emb.register_forward_hook(
            lambda *call: tuple(table.bfloat16().float() for table in call[-1])
        )
    with torch.inference_mode():
        logits = [model(torch.tensor([prompt])).logits[0, -1].tolist() for prompt in request["prompts"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["folder"])
    return {"logits": logits, "ids": [tokenizer(text).input_ids for text in request.get("texts", [])]}


main()
