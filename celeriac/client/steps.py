"""What a flow asks of whoever runs it. The clients do it with sockets, the tests without."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import httpx

from celeriac.client.events import Event

T = TypeVar("T")

#: How long connecting may take, and an answer beyond the time for which the server was asked to hold it, in seconds.
CONNECT_S = 5.0
ANSWER_S = 30.0
#: A stream that is silent for so long is lost, in seconds: the server sends a comment every 15 s.
SILENCE_S = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. Sending it twice does no harm: GETs change nothing, and POSTs carry an Idempotency-Key."""

    method: str
    path: str
    params: Mapping[str, str | int | float] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    #: How long the server was asked to hold the answer back, in seconds.
    held_s: float = 0.0
    #: How long to wait for the answer at most; None: ANSWER_S beyond the time for which it is held.
    answer_s: float | None = None
    #: How long the caller waits for the job that the request starts, in seconds; None: without a limit.
    timeout_s: float | None = None

    def to_httpx(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.request`."""
        content, headers = None, dict(self.headers)
        if self.body is not None:
            # ASCII, so that even half a surrogate pair reaches the server, whose message is better than a codec's.
            content = json.dumps(self.body).encode()
            headers["Content-Type"] = "application/json"
        answer_s = self.held_s + ANSWER_S if self.answer_s is None else self.answer_s
        return {
            "method": self.method,
            "url": self.path,
            "params": dict(self.params),
            "content": content,
            "headers": headers,
            "timeout": httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s), pool=None),
        }


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    """Send a request whose answer is a stream. It stays open until the next Open, or the end of the flow."""

    call: Call


@dataclass(frozen=True, slots=True)
class Read:
    """Wait for the next bytes of the stream that was opened last."""


#: It is sent the answer to a Call, and has the transport's exception thrown into it where there is none.
Flow: TypeAlias = Generator[Call | Pause, httpx.Response | None, T]
#: The same, and it yields the events that it shall bring. It is sent the answer to an Open, whose body has been read
#: unless `is_stream` says that it goes on, and the bytes for a Read, none at the end.
StreamFlow: TypeAlias = Generator[Call | Pause | Open | Read | Event, httpx.Response | bytes | None, None]


def is_stream(answer: httpx.Response) -> bool:
    """Whether an answer consists of Server-Sent Events."""
    kind = answer.headers.get("content-type", "").partition(";")[0]
    return answer.is_success and kind.strip().lower() == "text/event-stream"
