"""Server-Sent Events from bytes, as the WHATWG HTML standard reads them (section 9.2.6)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = "\ufeff"
# Nine digits are 11 days. A number that is longer is no wish that anybody has.
_MILLISECONDS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Message:
    """One event as it was sent."""

    #: `message` where the server named none.
    event: str
    #: Its data lines, joined by newlines.
    data: str
    #: The id that it carries itself; None: none. An empty one takes the earlier ids back.
    id: str | None


class SseParser:
    """Makes messages of one response's bytes, however they are cut. What the end leaves unfinished is no message."""

    def __init__(self) -> None:
        #: The server's wish for the time before a new connection, in milliseconds; None until it said so.
        self.retry_ms: int | None = None
        self._line = bytearray()
        self._after_cr = False
        self._first = True
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that these bytes complete."""
        if not chunk:
            return []
        # A CR ends its line at once, as nothing may follow for long; the LF of a CRLF that was cut belongs to it.
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
        """What a whole line completes."""
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
        # Anything else is a comment, whose name is empty, or a field of a later standard.
        return None

    def _dispatch(self) -> Message | None:
        """The message that an empty line ends; without a data line it is none."""
        message = Message(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event, self._data, self._id = "", [], None
        return message
