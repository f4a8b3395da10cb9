"""The shipped chat model gives the answers of nanochat's own engine, token by token, the calculator's uses included.

`tests/fixtures/nanochat_answers.json` has what nanochat's `render_for_completion` and `Engine.generate_batch` returned
for this checkpoint (nanochat at commit 92d63d4).
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.chat import Message
from tasks.sampling_params import SamplingParams
from tests.integration.stack import CHECKPOINTS, ROOT
from worker.local import LocalModel

CONVERSATIONS = json.loads((ROOT / "tests/fixtures/nanochat_answers.json").read_text("utf-8"))["conversations"]
#: The limit with which the answers were made.
MAX_TOKENS = 120


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load("arithmetic_chat", CHECKPOINTS, device="cpu", threads=1)


def messages_of(conversation: dict[str, Any]) -> list[Message]:
    return [Message(one["role"], one["content"]) for one in conversation["messages"]]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one["messages"][-1]["content"] or "empty")
def test_prompt_and_answer_are_nanochats(model: LocalModel, conversation: dict[str, Any]) -> None:
    prompt = model.encode_messages(messages_of(conversation))
    assert list(prompt) == conversation["prompt"]
    answer = model.generate(prompt, SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0), tools=True)
    assert list(answer.token_ids) == conversation["answer"]


def test_some_answers_use_the_calculator(model: LocalModel) -> None:
    assert model.tokenizer is not None
    assert model.tokenizer.tool_ids is not None
    start = model.tokenizer.tool_ids.output_start
    assert sum(start in one["answer"] for one in CONVERSATIONS) >= 5
