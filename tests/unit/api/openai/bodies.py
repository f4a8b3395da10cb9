"""Validates bodies as the routes do."""

from __future__ import annotations

from typing import Any

from api.openai.call import Call
from api.openai.chat_call import chat_call
from api.openai.completion_call import completion_call
from api.schemas.openai.chat import ChatRequest
from api.schemas.openai.completions import CompletionRequest

USER = {"role": "user", "content": "Hi"}


def completion(**fields: Any) -> Call:
    """The call of a body with these fields and a prompt."""
    return completion_call(CompletionRequest.model_validate({"prompt": "1+1=", **fields}))


def chat(**fields: Any) -> Call:
    """The call of a body with these fields and a message."""
    return chat_call(ChatRequest.model_validate({"messages": [USER], **fields}))
