"""Parser of Server-Sent Events, as the WHATWG HTML standard specifies it (section 9.2.6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = "\ufeff"
# Nine digits are up to 11 days. A longer number is ignored.
_MILLISECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Message:
    """One event as the server sent it."""

    #: Its name; `message` if the server gave none.
    event: str
    #: Its data lines, joined by newlines.
    data: str
    #: Its own id, or None. An empty id cancels the earlier ones.
    id: str | None


class SseParser:
    """Parses the bytes of one response, in chunks of any size. A message that the end leaves unfinished is dropped."""

    def __init__(self) -> None:
        #: Time to wait before a new connection, in milliseconds, as the server asked; None until it does.
        self.retry_ms: int | None = None
        self._line = bytearray()
        self._after_cr = False
        self._first = True
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that end in this chunk."""
        if not chunk:
            return []
        # A CR ends its line at once: the next byte may come much later. If that byte is an LF, both are one line end.
        text = chunk.removeprefix(b"\n") if self._after_cr else chunk
        self._after_cr = chunk.endswith(b"\r")
        messages = []
        *ends, rest = _LINE_END.split(text)
        for end in ends:
            self._line += end
            line = self._line.decode(errors="replace")
            self._line.clear()
            if (message := self._take(line)) is not None:
                messages.append(message)
        self._line += rest
        return messages

    def _take(self, line: str) -> Message | None:
        """Take one whole line; return the message that it ends, if any."""
        if self._first:
            line, self._first = line.removeprefix(_BOM), False
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if _MILLISECONDS.fullmatch(value):
                self.retry_ms = int(value)
        # Other lines are comments, whose name is empty, or fields of a later standard.
        return None

    def _dispatch(self) -> Message | None:
        """End the message at an empty line. A message without a data line is ignored."""
        message = Message(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event, self._data, self._id = "", [], None
        return message
