"""What of an answer is text, and which tool calls it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.tool_call import ToolCall
from worker.engine.tools.tool_content import ToolContent, tool_calls_of
from worker.engine.tools.tool_ids import ToolIds

IDS = ToolIds(python_start=1001, python_end=1002, output_start=1003, output_end=1004)
NAMES = {"[": IDS.python_start, "]": IDS.python_end, "{": IDS.output_start, "}": IDS.output_end}


def tokens(answer: str) -> list[int]:
    """One token a character; brackets are the tool's tokens."""
    return [NAMES.get(character, ord(character)) for character in answer]


def decode(ids: list[int]) -> str:
    return "".join(chr(token) if token < 1000 else "\ufffd" for token in ids)


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        ("no tool", "no tool", []),
        ("a[1+1]{2}b", "ab", [("1+1", "2")]),
        ("a[1+1]{2}b[2+2]{4}", "ab", [("1+1", "2"), ("2+2", "4")]),
        ("[1+1]{2}[2+2]{4}", "", [("1+1", "2"), ("2+2", "4")]),
        ("a[x]b", "ab", [("x", "")]),
        ("a[x]b{2}c", "abc", [("x", "")]),
        ("a[x][1+1]{2}b", "ab", [("x", ""), ("1+1", "2")]),
        ("a[1+1]", "a", [("1+1", "")]),
        ("a[1+1]{2", "a", [("1+1", "")]),
        ("a[1+", "a", []),
        ("a[9[1+1]{2}b", "ab", [("1+1", "2")]),
        ("a]b}c", "abc", []),
        ("a{5}b", "ab", []),
        ("a[1{]{2}b", "ab", [("1\ufffd", "2")]),
    ],
)
def test_text_and_calls_are_told_apart(answer: str, text: str, calls: list[tuple[str, str]]) -> None:
    content = ToolContent(IDS, decode)
    ids = tokens(answer)
    assert decode([token for token in ids if content.push(token)]) == text
    assert content.calls == tuple(ToolCall(*call) for call in calls)
    assert tool_calls_of(ids, IDS, decode) == content.calls


@given(st.text("ab[]{}"))
def test_the_calls_only_grow_and_no_tool_token_is_text(answer: str) -> None:
    content = ToolContent(IDS, decode)
    before: tuple[ToolCall, ...] = ()
    for token in tokens(answer):
        is_text = content.push(token)
        assert not (is_text and token in NAMES.values())
        assert [call.input for call in content.calls[: len(before)]] == [call.input for call in before]
        before = content.calls
