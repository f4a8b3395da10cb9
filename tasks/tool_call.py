"""The uses of the calculator in an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One use of the calculator."""

    #: The expression, as the model wrote it.
    input: str
    #: The result, which became part of the sequence; empty if the expression was refused.
    output: str
