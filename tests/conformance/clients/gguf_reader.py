"""A GGUF file beside the folder that it was converted into: weights, logits and ids by transformers' own reader."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def main() -> None:
    """Print what `compare` finds for each of the `requests`."""
    print(json.dumps([compare(**request) for request in json.loads(sys.argv[1])["requests"]]))


def compare(file: str, folder: str, prompt: list[int], texts: list[str], chats: list[Any]) -> dict[str, Any]:
    """The tensors that differ, the largest difference of logits, and the texts and chats with other ids or prompts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    other = transformers.AutoTokenizer.from_pretrained(os.path.dirname(file), gguf_file=os.path.basename(file))
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        logits = model(ids).logits
        model.load_state_dict(expected, strict=False)
        difference = (model(ids).logits - logits).abs().max().item()
    return {
        "tensors": len(expected),
        "different": [name for name, tensor in expected.items() if not torch.equal(tensor.float(), found[name])],
        # A tied head is in the state dict of the model, and not in the file.
        "missing": [name for name in found if name not in expected and name != "lm_head.weight"],
        "logits": difference,
        "texts": [text for text in texts if tokenizer(text).input_ids != other(text).input_ids],
        "prompts": [chat for chat in chats if prompt_of(tokenizer, chat) != prompt_of(other, chat)],
    }


def prompt_of(tokenizer: Any, chat: list[Any]) -> str:
    prompt: str = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return prompt


main()
