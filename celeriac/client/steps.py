"""The steps that a flow yields: requests, pauses, reads. The clients carry them out with sockets, the tests without.

`celeriac.client.protocol` explains flows.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import httpx

from celeriac.client.events import Event

T = TypeVar("T")

#: Longest time to connect, in seconds.
CONNECT_S = 5.0
#: Longest time to wait for a response, in addition to the time for which the server holds it, in seconds.
RESPONSE_S = 30.0
#: A stream that brings nothing for this long counts as lost, in seconds. The server sends a comment every 15 s.
SILENCE_S = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. Repeating it is safe: a request that creates a job carries an Idempotency-Key."""

    method: str
    path: str
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: How long the server is asked to hold the response, in seconds.
    held_s: float = 0.0
    #: Longest time to wait for the response, in seconds; None: `held_s` + RESPONSE_S.
    response_s: float | None = None
    #: How long the caller waits for the text of the job that the request creates, in seconds; None: without a limit.
    timeout_s: float | None = None

    def to_httpx(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.request`."""
        content, headers = None, dict(self.headers)
        if self.body is not None:
            # ASCII JSON can carry a lone surrogate, which UTF-8 cannot: the server then explains the error.
            content = json.dumps(self.body).encode()
            headers["Content-Type"] = "application/json"
        response_s = self.held_s + RESPONSE_S if self.response_s is None else self.response_s
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params),
            "content": content,
            "headers": headers,
            "timeout": httpx.Timeout(response_s, connect=min(CONNECT_S, response_s), pool=None),
        }


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request whose response is a stream. The stream stays open until the next Open or the end of the flow."""

    call: Call


@dataclass(frozen=True, slots=True)
class Read:
    """Wait for the next bytes of the open stream."""


#: A flow that returns T. It is sent the response to each Call, or the transport's exception is thrown into it.
Flow: TypeAlias = Generator[Call | Pause, httpx.Response | None, T]
#: A flow that also yields events. It is sent the response to an Open, whose body has been read unless `is_stream` is
#: true for it. It is sent the bytes for a Read, which are empty at the end of the stream.
StreamFlow: TypeAlias = Generator[Call | Pause | Open | Read | Event, httpx.Response | bytes | None, None]


def is_stream(response: httpx.Response) -> bool:
    """Whether a response is a successful stream of Server-Sent Events."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    return response.is_success and kind.strip().lower() == "text/event-stream"
