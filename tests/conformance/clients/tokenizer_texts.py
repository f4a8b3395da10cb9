"""What transformers does with the tokenizer of a folder: ids of texts, texts of answers, conversations.

Argument: JSON with `folder`, `texts`, `answers` (pairs of a prompt's ids and an answer's), and `chats` (lists of
messages). Output: JSON with a result for each of them. The text of an answer is null if the text of the prompt is no
beginning of that of both, because bytes of the answer make those of the prompt invalid.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def answer(tokenizer: PreTrainedTokenizerBase, prompt: list[int], ids: list[int]) -> str | None:
    head, whole = (tokenizer.decode(one, skip_special_tokens=True) for one in (prompt, [*prompt, *ids]))
    return whole.removeprefix(head) if whole.startswith(head) else None


def chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[Any]:
    options: dict[str, Any] = {"conversation": messages, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(tokenize=False, **options)
    return [text, tokenizer.apply_chat_template(return_dict=False, **options)]


def main() -> None:
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(asked["folder"])
    found = {
        "texts": [
            [tokenizer(one).input_ids, tokenizer(one, add_special_tokens=False).input_ids] for one in asked["texts"]
        ],
        "answers": [answer(tokenizer, *one) for one in asked["answers"]],
        "chats": [chat(tokenizer, one) for one in asked["chats"]],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
