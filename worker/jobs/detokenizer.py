"""From token ids to text, one piece for each token, up to a stop text or a newline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tasks.tool_call import ToolCall


class Decoder(Protocol):
    """Incremental decoding: the text that is complete after each token."""

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; empty while a character is incomplete."""

    def finish(self) -> str:
        """Text that was held back, because no more tokens follow."""


class ToolContent(Protocol):
    """Tells the text of an answer from what the model exchanges with a tool."""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far."""

    def push(self, token_id: int) -> bool:
        """Add a token. Returns whether it is a part of the text."""


class Detokenizer:
    """Text of one sequence. All pieces and then the tail, joined, are the completion.

    A piece never ends inside a UTF-8 character, and never contains text that may be the beginning of a stop text.
    Pieces depend only on the tokens: pushing the tokens of an earlier attempt restores its state.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        stop: Sequence[str] = (),
        stop_on_newline: bool = False,
        min_tokens: int = 0,
        tools: ToolContent | None = None,
    ) -> None:
        """A stop text or a newline that is complete before the token number `min_tokens` does not end the text.

        `tools` finds tool content, which is no part of the text; None: the model uses no tools.
        """
        self._decoder = decoder
        self._tools = tools
        #: How many tokens must still come before a stop text or a newline can end the text.
        self._needed = min_tokens
        self._stop = tuple(stop)
        self._stop_on_newline = stop_on_newline
        #: Text that may be the beginning of a stop text.
        self._held = ""
        #: Whether a stop text or the final newline was found. All later pieces are empty.
        self.ended = False

    def push(self, token_id: int) -> str:
        """The piece of `token_id`. It may contain text of earlier tokens that was held back until now."""
        if self.ended:
            return ""
        self._needed -= 1
        if self._tools is not None and not self._tools.push(token_id):
            return ""
        text, old = self._held + self._decoder.push(token_id), len(self._held)
        end = self._end_of_text(text, old)
        if end is not None and self._needed <= 0:
            self.ended = True
            self._held = ""
            return text[:end]
        keep = self._possible_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def push_all(self, token_ids: Sequence[int]) -> list[str]:
        """The pieces of several tokens. There are fewer pieces than tokens if the text ends before the last token: the
        tokens after its end are not part of it."""
        if not self._stop and not self._stop_on_newline and self._tools is None:
            return [*map(self._decoder.push, token_ids)]  # nothing is ever held back
        pieces = []
        for token_id in token_ids:
            if self.ended:
                break
            pieces.append(self.push(token_id))
        return pieces

    def finish(self) -> str:
        """The tail: text that was held back. It ends before a stop text that the last token has completed."""
        if self.ended:
            return ""
        text, self._held = self._held + self._decoder.finish(), ""
        completed = [len(stop) for stop in self._stop if text.endswith(stop)] if self._needed <= 0 else []
        return text[: len(text) - max(completed, default=0)]

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Uses of the calculator so far."""
        return () if self._tools is None else self._tools.calls

    def _end_of_text(self, text: str, old: int) -> int | None:
        """Where the completion ends in `text`: before the first stop text, or after the first newline.

        Those that end in the first `old` characters were there earlier, and did not end it.
        """
        ends = [index for stop in self._stop if (index := text.find(stop, max(0, old - len(stop) + 1))) >= 0]
        if self._stop_on_newline and (index := text.find("\n", old)) >= 0:
            ends.append(index + 1)
        return min(ends, default=None)

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
