"""Server-Sent Events on the wire: how events are spelled, and a response that knows when its client is gone."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.jobs.waiter import ClientGoneError, while_connected

#: How long a client shall wait before it connects again, in ms.
RECONNECT_MS = 2000


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` is JSON, in one line."""

    name: str
    data: str
    #: What a client that comes back gives as `Last-Event-ID`; None where there is nothing to come back to.
    id: str | None = None

    def encode(self) -> bytes:
        """As it is sent."""
        return format_sse_event(event=self.name, data_str=self.data, id=self.id)


#: The first thing of every stream, and a sign of life.
OPENING = format_sse_event(retry=RECONNECT_MS)
KEEP_ALIVE = format_sse_event(comment="ka")


def wants_events(request: Request) -> bool:
    """Whether `Accept` names the media type of events; `*/*` does not."""
    for line in request.headers.getlist("accept"):
        for media_range in line.split(","):
            media_type, *parameters = (part.strip().lower() for part in media_range.split(";"))
            refused = any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters)
            if media_type == EventStream.media_type and not refused:
                return True
    return False


class EventStream(Response):
    """A response of events, as they come. Its client's going ends it at once, not at the next event."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        *,
        on_gone: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`on_gone` is called when the client went away before the end, but not when the server stops."""
        super().__init__(None, 200, {**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until there are no more, or nobody listens."""
        try:
            await while_connected(receive, self._send_all(send))
        except ClientGoneError:
            if self._on_gone is not None:
                await self._on_gone()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": OPENING, "more_body": True})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
