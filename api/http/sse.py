"""Server-Sent Events: their wire format, the cursor in their ids, and a response that sends them."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from fastapi.sse import format_sse_event
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.http.disconnect import ClientGoneError, while_connected
from api.http.problems import invalid

#: How long a client waits before it reconnects, in ms.
RECONNECT_MS = 2000

#: Characters at which many clients end a line besides CR and LF, and their JSON escapes. The standard of Server-Sent
#: Events does not, but the `splitlines` of Python and what is built on it do. Others, such as U+000B, are control
#: characters, which JSON escapes anyway.
_LINE_SEPARATORS = (("\x85", r"\u0085"), ("\u2028", r"\u2028"), ("\u2029", r"\u2029"))

#: `<after>-<k>`, and in a query also `<after>` alone.
_CURSOR = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` is JSON in one line."""

    name: str
    data: str
    #: The value that a client sends as `Last-Event-ID` to continue after this event; None: it cannot continue after it.
    id: str | None = None

    def encode(self) -> bytes:
        """The event in the wire format. Its data is one line for every client, and the same JSON value."""
        return format_sse_event(event=self.name, data_str=_without_line_separators(self.data), id=self.id)


#: The first bytes of a stream of named events: the client's reconnect delay.
OPENING = format_sse_event(retry=RECONNECT_MS)
#: A comment, sent so that the connection is not silent for long.
KEEP_ALIVE = format_sse_event(comment="ka")


#: An empty line, sent for the same purpose in streams of OpenAI's API: no client takes it for anything. Some join a
#: comment that comes alone with the next block of data, and then leave out both.
BLANK_LINE = b"\n"


def data_block(data: str) -> bytes:
    """An event without a name, with JSON in one line as its data. Streams of OpenAI's API consist of these."""
    return format_sse_event(data_str=_without_line_separators(data))


class Cursor(NamedTuple):
    """A position in a stream: after `after` tokens, and after `k` entries without tokens at that offset."""

    after: int = 0
    k: int = 0

    def __str__(self) -> str:
        return f"{self.after}-{self.k}"


def parse_cursor(last_event_id: str | None, starting_after: str | None = None) -> Cursor:
    """The position where a client continues. The query `starting_after` overrides the header. Raises ApiError."""
    if starting_after is not None:
        return _parse_cursor(starting_after, ("query", "starting_after"))
    # An EventSource that has received no id sends no header; some other clients send an empty one.
    if last_event_id:
        return _parse_cursor(last_event_id, ("header", "last-event-id"))
    return Cursor()


class EventStream(Response):
    """A streamed response of events. It ends as soon as the client disconnects, not only at the next event."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        *,
        opening: bytes = OPENING,
        on_disconnect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`opening` is sent at once, before the first chunk.

        `on_disconnect` is called if the client disconnects before the end, but not when the server shuts down.
        """
        super().__init__(None, 200, {**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._opening = opening
        self._on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the stream ends or the client disconnects."""
        try:
            await while_connected(receive, self._send_all(send))
        except ClientGoneError:
            if self._on_disconnect is not None:
                await self._on_disconnect()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._opening, "more_body": True})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _without_line_separators(json_text: str) -> str:
    """The same JSON value, with its line separators escaped. They can only be inside strings."""
    # Python knows of each text whether it is ASCII, and finds nothing to replace quickly in others.
    if not json_text.isascii():
        for character, escape in _LINE_SEPARATORS:
            json_text = json_text.replace(character, escape)
    return json_text


def _parse_cursor(text: str, where: tuple[str, str]) -> Cursor:
    match = _CURSOR.fullmatch(text.strip()) if text.isascii() else None
    if match is None:
        raise invalid(
            where,
            "This is not a position in a stream. Send the `id` of the last event that you received, such as 37-0, or "
            "the number of tokens that you have.",
            "cursor",
            given=text,
        )
    return Cursor(int(match[1]), int(match[2] or 0))
