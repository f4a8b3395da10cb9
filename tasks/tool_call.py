"""The uses of the calculator in an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from tasks.record import checked_text, json_value


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One use of the calculator."""

    #: The expression, as the model wrote it.
    input: str
    #: The result, which became part of the sequence; empty if the expression was refused.
    output: str


def tool_calls_to_json(calls: Sequence[ToolCall]) -> str:
    """Tool calls as one line of JSON: a list of [input, output]."""
    return json.dumps([astuple(call) for call in calls], separators=(",", ":"))


def tool_calls_from_json(text: str) -> tuple[ToolCall, ...]:
    """The tool calls that `tool_calls_to_json` encoded. Raises ValueError or TypeError for anything else."""
    return tuple(ToolCall(*map(checked_text, pair)) for pair in json_value(text, list))
