"""What transformers answers with the model in a folder: greedy continuations of texts, and rendered conversations."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers

#: How many of the best tokens are reported for each step.
TOP = 5


def answer(model: Any, tokenizer: Any, prompt: str, max_tokens: int) -> dict[str, Any]:
    """The ids of the prompt and of its continuation, the best logits of each step, and the text of the continuation."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    new: list[int] = []
    steps = []
    cache = None
    following = ids
    while len(new) < max_tokens:
        output = model(torch.tensor([following]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        best = output.logits[0, -1].float().topk(TOP)
        steps.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        following = [int(best.indices[0])]
        if following[0] in model.generation_config_ids:
            break
        new += following
    # Only the difference of two whole texts has the spaces that belong to the continuation.
    text = tokenizer.decode(ids + new, clean_up_tokenization_spaces=False)
    before = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return {"prompt": ids, "answer": new, "steps": steps, "text": text.removeprefix(before)}


@torch.inference_mode()
def main() -> None:
    """Print the answers to all `prompts`, and all `chats` as text, for the model in `folder`."""
    arguments = json.loads(sys.argv[1])
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    folder = arguments["folder"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    model.generation_config_ids = set(ends if isinstance(ends, list) else [ends])
    answers = [answer(model, tokenizer, prompt, arguments["max_tokens"]) for prompt in arguments["prompts"]]
    chats = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for messages in arguments["chats"]
    ]
    print(json.dumps({"answers": answers, "chats": chats}))


main()
