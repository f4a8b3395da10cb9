"""Translates the body of `POST /v1/chat/completions`."""

from __future__ import annotations

from api.http.problems import invalid
from api.openai.call import Call, check_group, stream_options_of
from api.openai.neutral_values import check_message, ignored_in_chat
from api.openai.sampling import priority_of, sampling_of, unset_fields
from api.schemas.openai.chat import ChatRequest
from tasks.chat import Message
from tasks.generation import Generation
from tasks.sampling_params import MAX_TOKENS_LIMIT


def chat_call(body: ChatRequest) -> Call:
    """The call of a request. Raises ApiError. Whether the checkpoint can chat is not checked here."""
    ignored = ignored_in_chat(body.model_extra)
    for index, message in enumerate(body.messages):
        check_message(index, message.model_extra)
    n = body.n or 1
    check_group(1, n)
    if body.top_logprobs and not body.logprobs:
        raise invalid(
            ("body", "top_logprobs"), "top_logprobs needs logprobs: true.", "missing", given=body.top_logprobs
        )
    given = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = sampling_of(
        body,
        # Without a limit the worker ends the answer where the context is full.
        max_tokens=MAX_TOKENS_LIMIT if given is None else given,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    messages = tuple(Message(_role(message.role), message.content) for message in body.messages)
    include_usage, continuous_usage = stream_options_of(body)
    return Call(
        model=body.model,
        generations=[
            Generation(messages=messages, sampling=sampling, choice=choice, tools=body.calculator)
            for choice in range(n)
        ],
        unset_fields=unset_fields(body),
        priority=priority_of(body),
        metadata=body.metadata or {},
        wait_for_worker=bool(body.wait_for_worker),
        stream=bool(body.stream),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        ignored=ignored,
        logprobs=bool(body.logprobs),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


def _role(role: str) -> str:
    return "system" if role == "developer" else role
