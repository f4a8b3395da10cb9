"""Finds the expressions in an answer, and the tokens that must follow them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from worker.engine.tools.calculator import MAX_EXPRESSION, evaluate
from worker.engine.tools.tool_content import ToolContent
from worker.engine.tools.tool_ids import ToolIds


class ToolUse:
    """The tool uses of one sequence. Only tokens of the answer count: a block that the prompt began is none."""

    def __init__(
        self, ids: ToolIds, decode: Callable[[Sequence[int]], str], encode: Callable[[str], Sequence[int]]
    ) -> None:
        """`decode`: the text of ids; an id without text must give a character that is in no expression."""
        self._ids = ids
        self._decode = decode
        self._encode = encode
        #: The tokens of the expression; None outside of a block, and in a block that is too long.
        self._expression: list[int] | None = None
        self._forced: tuple[int, ...] = ()
        self._content = ToolContent(ids, decode)
        #: Whether the token that was pushed last is a part of the text.
        self.in_text = True

    def push(self, token: int) -> tuple[int, ...]:
        """Add the next token of the answer. Returns all ids that must follow it, which is usually none.

        Every token must be pushed, forced ones too: the call for a forced token returns the ids after it. So an answer
        that is replayed up to any token continues as it would have.
        """
        self.in_text = self._content.push(token)
        if self._forced and token == self._forced[0]:
            self._forced = self._forced[1:]
            return self._forced
        self._forced = ()
        if token == self._ids.python_start:
            self._expression = []
        elif token == self._ids.python_end:
            if self._expression:
                self._forced = self._output(self._expression)
            self._expression = None
        elif self._expression is not None:
            self._expression.append(token)
            if len(self._expression) > MAX_EXPRESSION:
                self._expression = None
        return self._forced

    def _output(self, expression: Sequence[int]) -> tuple[int, ...]:
        result = evaluate(self._decode(expression))
        if result is None:
            return ()
        return (self._ids.output_start, *self._encode(result), self._ids.output_end)
