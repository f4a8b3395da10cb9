"""Fields that this server lacks: neutral values pass, others are refused by name, unknown fields are named."""

from __future__ import annotations

from typing import Any

import pytest

from api.http.problems import ApiError
from api.openai.neutral_values import IGNORED_HEADER, ignored_header
from tests.unit.api.openai.bodies import chat, completion


@pytest.mark.parametrize(
    ("name", "neutral", "refused"),
    [
        ("best_of", 1, 2),
        ("best_of", 1, True),
        ("suffix", "", "end"),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("use_beam_search", False, True),
        ("skip_special_tokens", True, False),
        ("truncate_prompt_tokens", None, 10),
        ("length_penalty", 1.0, 2.0),
        ("guided_json", None, {}),
        ("cache_salt", "", "salt"),
    ],
)
def test_fields_of_completions(name: str, neutral: Any, refused: Any) -> None:
    assert completion(**{name: neutral}).ignored == ()
    assert completion(**{name: None}).ignored == ()
    with pytest.raises(ApiError, match=f"`{name}`") as raised:
        completion(**{name: refused})
    assert (raised.value.errors[0].path, raised.value.errors[0].type) == ((name,), "unsupported_parameter")


@pytest.mark.parametrize(
    ("name", "neutral", "refused"),
    [
        ("tools", [], [{"type": "function"}]),
        ("tool_choice", "auto", "required"),
        ("modalities", ["text"], ["audio"]),
        ("reasoning_effort", "none", "high"),
        ("continue_final_message", False, True),
    ],
)
def test_fields_of_chat(name: str, neutral: Any, refused: Any) -> None:
    assert chat(**{name: neutral}).ignored == ()
    with pytest.raises(ApiError, match=f"`{name}`"):
        chat(**{name: refused})


def test_the_error_says_what_is_accepted() -> None:
    with pytest.raises(ApiError, match=r'send null or \{"type": "text"\}'):
        chat(response_format={"type": "json_object"})


def test_unknown_fields_are_named_in_a_header() -> None:
    call = completion(frobnicate=1, user="me", store=True, **{"a,b": 1, "é": 2, "x" * 70: 3})
    assert call.ignored == ("frobnicate", "a,b", "é", "x" * 70)
    assert ignored_header(call.ignored) == {IGNORED_HEADER: "frobnicate"}
    assert ignored_header(()) == {}
