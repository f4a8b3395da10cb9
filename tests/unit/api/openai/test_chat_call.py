"""From the body of `POST /v1/chat/completions` to the jobs of the call."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from api.http.problems import ApiError
from tasks.chat import Message
from tasks.sampling_params import MAX_TOKENS_LIMIT
from tests.unit.api.openai.bodies import USER, chat, completion


def test_openai_s_defaults() -> None:
    [generation] = chat().generations
    assert generation.messages == (Message("user", "Hi"),)
    assert (generation.prompt, generation.prompt_ids, generation.tools) == ("", None, None)
    assert (generation.sampling.max_tokens, generation.sampling.temperature) == (MAX_TOKENS_LIMIT, 1.0)


def test_a_developer_is_the_system() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {**USER, "name": "Ann"}]
    call = chat(messages=messages)
    assert call.generations[0].messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert call.ignored == ()


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "How much"}, {"type": "text", "text": " is 2?"}]
    [generation] = chat(messages=[{"role": "user", "content": parts}]).generations
    assert generation.messages == (Message("user", "How much is 2?"),)


def test_an_empty_answer_may_come_back_as_null() -> None:
    messages = [USER, {"role": "assistant", "content": None, "refusal": None}, USER]
    assert chat(messages=messages).generations[0].messages == (
        Message("user", "Hi"),
        Message("assistant", ""),
        Message("user", "Hi"),
    )


@pytest.mark.parametrize(
    ("messages", "loc", "kind"),
    [
        ([], ("messages",), "too_short"),
        (None, ("messages",), "list_type"),
        ([{"role": "tool", "content": "4"}], ("messages", 0, "role"), "unsupported_role"),
        ([{"role": "queen", "content": "4"}], ("messages", 0, "role"), "literal_error"),
        ([{"role": "user"}], ("messages", 0, "content"), "missing"),
        ([{"role": "user", "content": None}], ("messages", 0, "content"), "string_type"),
        ([{"role": "user", "content": [{"type": "text"}]}], ("messages", 0, "content"), "content_part"),
        ([{"role": "user", "content": ["Hi"]}], ("messages", 0, "content"), "content_part"),
        (
            [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            ("messages", 1, "content"),
            "unsupported_content",
        ),
    ],
)
def test_messages_that_are_refused(messages: Any, loc: tuple[str | int, ...], kind: str) -> None:
    with pytest.raises(ValidationError) as raised:
        chat(messages=messages)
    [error] = raised.value.errors()
    assert (error["loc"], error["type"]) == (loc, kind)


def test_an_image_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="Parts of type image_url are not supported"):
        chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}])


def test_calls_of_tools_are_refused() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    with pytest.raises(ApiError, match="`tool_calls`") as raised:
        chat(messages=[USER, message])
    assert raised.value.errors[0].path == ("messages", 1, "tool_calls")
    assert chat(messages=[USER, {"role": "assistant", "content": "", "tool_calls": []}, USER]).ignored == ()


def test_the_newer_name_of_max_tokens_counts() -> None:
    assert chat(max_tokens=7).generations[0].sampling.max_tokens == 7
    assert chat(max_tokens=7, max_completion_tokens=3).generations[0].sampling.max_tokens == 3


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs(fields: dict[str, Any], logprobs: int | None) -> None:
    call = chat(**fields)
    assert call.generations[0].sampling.logprobs == logprobs
    assert call.logprobs is (logprobs is not None)


def test_top_logprobs_alone_are_refused() -> None:
    with pytest.raises(ApiError, match="logprobs: true"):
        chat(top_logprobs=1)
    with pytest.raises(ValidationError):
        chat(logprobs=True, top_logprobs=21)


def test_n_answers_differ_in_their_choice() -> None:
    assert [one.choice for one in chat(n=3).generations] == [0, 1, 2]


@pytest.mark.parametrize("calculator", [True, False, None])
def test_the_calculator_can_be_turned_off(calculator: bool | None) -> None:
    calls = chat(calculator=calculator), completion(calculator=calculator, prompt="1+1=")
    assert [call.generations[0].tools for call in calls] == [calculator, calculator]
