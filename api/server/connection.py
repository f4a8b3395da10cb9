"""One connection: uvicorn's, with limits on headers and times, and with answers for clients that half-close."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import is_ssl
from uvicorn.server import ServerState

from api.http.header_limits import MAX_HEADER_BYTES, MAX_REQUEST_LINE, headers_too_large, line_too_long
from api.http.problems import ApiError
from api.server import refusals
from api.server.connections import connections_of
from api.server.limits import ConnectionLimits
from api.server.transport import ProbingTransport

#: When a client that sent FIN is probed, in seconds after it. Short answers come before the first probe, so that their
#: clients get them in one piece.
PROBES_S = (0.5, 1.5, 4.0, 9.0, 20.0, 45.0, 90.0, 180.0, 360.0)
#: Interval between two looks at a connection whose client sent FIN, in seconds.
LOOK_S = 0.25

_END_OF_HEADERS = re.compile(rb"\n\r?\n")


class LimitedParser(h11.Connection):
    """h11's parser, which refuses headers that are too large before it parses them."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        #: Why the request was refused; None if it is malformed.
        self.refusal: ApiError | None = None

    def next_event(self) -> Any:
        """The next event. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            self.refusal = _refusal(self.trailing_data[0])
            if self.refusal is not None:
                raise h11.RemoteProtocolError(self.refusal.detail, error_status_hint=self.refusal.http_status)
        return super().next_event()


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with our limits."""

    conn: LimitedParser
    transport: Any

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits | None = None,
    ) -> None:
        """`limits` None: those of the settings."""
        super().__init__(config, server_state, app_state, _loop)
        self.conn = LimitedParser()
        self._application: Any = self.app
        self.app = self._noting_streams
        self._streams_events = False
        self._all = connections_of(server_state, limits, self.loop)
        self._limits = self._all.limits
        self._timeout_s = self._limits.request_timeout_s
        #: When the client must have sent the headers or the body; None if nothing is due.
        self._due: float | None = None
        self._awaited: object = None
        #: When the server stops to read after it refused the connection; None if it did not.
        self._refused_until: float | None = None
        self._received = 0
        self._stalled_since: float | None = None
        self._half_closed_at: float | None = None
        self._probes = iter(PROBES_S)
        self._next_probe_s = next(self._probes)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin. Above the limit of connections, serve health checks only, or nothing."""
        super().connection_made(ProbingTransport(transport))  # type: ignore[arg-type]
        above = self._all.admit()
        if above > self._limits.reserve:
            self._all.refused.warn(limit=self._limits.max_connections)
            if above > 2 * self._limits.reserve:
                self.transport.abort()
            else:
                self._refuse(refusals.too_many_connections())
            return
        if above > 0:
            self._all.refused.warn(limit=self._limits.max_connections)
            self.app = refusals.HealthOnly(self.app)
            self._timeout_s = min(self._timeout_s, self._limits.reserve_timeout_s)
        self._update()

    def data_received(self, data: bytes) -> None:
        """Parse, unless the connection was refused."""
        if self._refused_until is None:
            super().data_received(data)
            self._update()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection if a complete request waits for its answer: the client may have closed its side only.

        TLS does not allow that: a client that ends its side ends the connection.
        """
        if self._refused_until is not None or not self._answering or is_ssl(self.transport):
            return None
        if self._half_closed_at is None:
            self._half_closed_at = self.loop.time()
            self._look_at_client()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End. A request in progress gets `http.disconnect`."""
        super().connection_lost(exc)
        self._all.left(self)

    # What uvicorn calls.

    def on_response_complete(self) -> None:
        """Go on with the next request. A client that half-closed sends no other than those that it has sent before."""
        super().on_response_complete()
        self._update()
        if self._half_closed_at is not None and not self._answering:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is malformed or has too many bytes of headers."""
        self._refuse(self.conn.refusal or refusals.malformed_request())

    def shutdown(self) -> None:
        """Close the connection, or let it end after the answer in progress."""
        if self._refused_until is not None:
            self.transport.abort()
        else:
            super().shutdown()

    # What `Connections` calls.

    def check(self, now: float) -> None:
        """Close the connection if the client is too slow. `now`: the time of the event loop."""
        if self._refused_until is not None:
            if now >= self._refused_until:
                self.transport.abort()
        elif self._due is not None and now >= self._due:
            self._all.slow.warn(why="sends too slowly")
            if (self._receives_body and not self.cycle.response_complete) or self.conn.trailing_data[0]:
                self._refuse(refusals.request_timeout())
            else:
                self.transport.close()
        elif self._stalls(now):
            self._all.slow.warn(why="reads too slowly")
            self.transport.abort()
        elif self.flow.read_paused and self._answering and self._half_closed_at is None and self.transport.has_ended():
            # The client has sent more than it may before the answer, so nothing is read from it, not even its end.
            self.eof_received()

    def close_silent(self) -> None:
        """Close a connection on which no request is in progress."""
        self._all.refused.warn(limit=self._limits.max_connections)
        self.transport.abort()

    @property
    def _answering(self) -> bool:
        """Whether a complete request waits for the end of its answer."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def _receives_body(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def _update(self) -> None:
        """Note what the server waits for, and until when."""
        awaited: object = None
        if not self.transport.is_closing():
            if self._receives_body:
                awaited = self.cycle
            elif self.conn.their_state is h11.IDLE:
                # Between two requests, uvicorn's timer for keep-alive runs.
                first = self.cycle is None
                awaited = "headers" if first or self.conn.trailing_data[0] else "keep-alive"
        if awaited is not self._awaited:
            self._awaited = awaited
            due = awaited is not None and awaited != "keep-alive"
            self._due = self.loop.time() + self._timeout_s if due else None
            self._all.waits(self, awaited is not None)

    def _stalls(self, now: float) -> bool:
        """Whether the client has read nothing for too long, although an answer waits for it."""
        transport: ProbingTransport = self.transport
        if transport.unsent == 0:
            self._stalled_since = None
            return False
        received = transport.received
        if received != self._received or self._stalled_since is None:
            self._received, self._stalled_since = received, now
        return now - self._stalled_since >= self._limits.stall_s

    def _refuse(self, error: ApiError) -> None:
        """Answer, and read on for a while, so that the client receives the answer before the connection is closed."""
        self._unset_keepalive_if_required()
        self._due = None
        self._refused_until = self.loop.time() + self._limits.linger_s
        self._all.waits(self, True)
        if self.cycle is not None and not self.cycle.response_complete:
            started = self.cycle.response_started
            # The application gets `http.disconnect`, and what it still sends is dropped.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if started:
                self.transport.abort()
                return
        self.flow.resume_reading()
        self.transport.write(refusals.as_bytes(error))
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _look_at_client(self) -> None:
        """Find out whether a client that sent FIN still reads. Runs until its answer is complete."""
        if self.transport.is_closing() or self._half_closed_at is None or not self._answering:
            return
        if self.transport.is_reset():
            self.transport.abort()
            return
        if self.loop.time() - self._half_closed_at >= self._next_probe_s:
            self._probe()
            self._next_probe_s = next(self._probes, float("inf"))
        self.loop.call_later(LOOK_S, self._look_at_client)

    def _probe(self) -> None:
        """Send something, because a client that is gone answers with a reset. Does nothing within a plain body."""
        if not self.cycle.response_started:
            self.transport.probe()
        elif self._streams_events and self.scope["method"] != "HEAD":
            # A comment, which every client of event streams skips. The application sends whole events.
            self.transport.write(self.conn.send(h11.Data(data=b":\n\n")))

    async def _noting_streams(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and note whether it answers with a stream of events."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                types = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
                self._streams_events = any(value.startswith(b"text/event-stream") for value in types)
            await send(message)

        await self._application(scope, receive, noted)


def _refusal(received: bytes) -> ApiError | None:
    """Why a request that begins with these bytes is refused; None if it is not, or if it may still be short enough."""
    line_end = received.find(b"\n", 0, MAX_REQUEST_LINE + 1)
    if line_end < 0 and len(received) > MAX_REQUEST_LINE:
        return line_too_long()
    if len(received) <= MAX_HEADER_BYTES or _END_OF_HEADERS.search(received, 0, MAX_HEADER_BYTES):
        return None
    return headers_too_large()
