"""Tells the text of an answer apart from what the model exchanges with a tool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tasks.tool_call import ToolCall
from worker.engine.tools.tool_ids import ToolIds


class ToolContent:
    """Sorts the tokens of one answer, one after the other.

    Content of a tool is what lies between the two tokens of its input and the two of its output, and these tokens.
    """

    def __init__(self, ids: ToolIds, decode: Callable[[Sequence[int]], str]) -> None:
        self._ids = ids
        self._decode = decode
        self._calls: list[ToolCall] = []
        #: The token that ends the current block, and the tokens in it; None in the text.
        self._end: int | None = None
        self._block: list[int] = []
        #: The last input, while its output may follow.
        self._input: str | None = None

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far whose input is complete. Their output is empty until it is complete, too."""
        return (*self._calls, *([] if self._input is None else [ToolCall(self._input, "")]))

    def push(self, token: int) -> bool:
        """Add a token. Returns whether it is a part of the text."""
        if token == self._ids.python_start:
            self._without_output()
            self._open(self._ids.python_end)
        elif self._end is None and token == self._ids.output_start:
            self._open(self._ids.output_end)
        elif self._end is None:
            self._without_output()
            return token not in (self._ids.python_end, self._ids.output_end)
        elif token != self._end:
            self._block.append(token)
        else:
            self._close()
        return False

    def _open(self, end: int) -> None:
        self._end = end
        self._block = []

    def _close(self) -> None:
        text = self._decode(self._block)
        if self._end == self._ids.python_end:
            self._input = text
        elif self._input is not None:
            self._calls.append(ToolCall(self._input, text))
            self._input = None
        self._end = None

    def _without_output(self) -> None:
        if self._input is not None:
            self._calls.append(ToolCall(self._input, ""))
            self._input = None


def tool_calls_of(
    token_ids: Iterable[int], ids: ToolIds, decode: Callable[[Sequence[int]], str]
) -> tuple[ToolCall, ...]:
    """The tool calls in a complete answer."""
    content = ToolContent(ids, decode)
    for token_id in token_ids:
        content.push(token_id)
    return content.calls
