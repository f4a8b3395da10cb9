"""What transformers answers with the model in a folder: greedy continuations of texts, and rendered conversations."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers

#: How many of the best tokens are reported for each step.
TOP = 5
#: Prompts that are decoded together. They are padded on the left.
BATCH = 20


def answers(model: Any, tokenizer: Any, prompts: list[str], max_tokens: int) -> list[dict[str, Any]]:
    """For each prompt its ids, those of its continuation, the best logits of each step, and the continuation's text."""
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    found: dict[int, dict[str, Any]] = {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    for first in range(0, len(prompts), BATCH):
        batch = by_length[first : first + BATCH]
        longest = max(len(encoded[i]) for i in batch)
        padding = [longest - len(encoded[i]) for i in batch]
        output = model.generate(
            torch.tensor([[0] * pad + encoded[i] for i, pad in zip(batch, padding, strict=True)]),
            attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
            do_sample=False,
            max_new_tokens=max_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for row, i in enumerate(batch):
            best = [logits[row].float().topk(TOP) for logits in output.logits]
            found[i] = one_answer(tokenizer, model, encoded[i], output.sequences[row, longest:].tolist(), best)
    return [found[i] for i in range(len(prompts))]


def one_answer(tokenizer: Any, model: Any, prompt: list[int], new: list[int], best: list[Any]) -> dict[str, Any]:
    """The answer to one prompt, cut before the token that ends it."""
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    length = next((at for at, token in enumerate(new) if token in ends), len(new))
    # Only the difference of two whole texts has the spaces that belong to the continuation.
    text = tokenizer.decode(prompt + new[:length], clean_up_tokenization_spaces=False)
    before = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    steps = [dict(zip(one.indices.tolist(), one.values.tolist(), strict=True)) for one in best[: length + 1]]
    return {"prompt": prompt, "answer": new[:length], "steps": steps, "text": text.removeprefix(before)}


@torch.inference_mode()
def main() -> None:
    """Print the answers to all `prompts`, and all `chats` as text, for the model in `folder`."""
    arguments = json.loads(sys.argv[1])
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    folder = arguments["folder"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chats = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for messages in arguments["chats"]
    ]
    found = answers(model, tokenizer, arguments["prompts"], arguments["max_tokens"])
    print(json.dumps({"answers": found, "chats": chats}))


main()
