"""Reads a job's stream to its end. After each interruption it reconnects, to a random API process."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.chaos.system import Api
from celeriac.client.sse import Message, SseParser

#: Pause before a new connection, in seconds.
RECONNECT_S = 0.1
#: Timeout of a connection attempt, in seconds.
CONNECT_S = 5.0
#: Timeout of a silent stream, in seconds: longer than the interval between two of its comments.
SILENCE_S = 30.0


@dataclass
class StreamRecord:
    """The events that a client received from the stream of one job, over all connections."""

    tokens: int = 0
    text: str = ""
    #: Id of the last event; the next connection continues after it.
    last_id: str | None = None
    #: Number of connections that the server accepted.
    connections: int = 0
    #: The job object in the `done` event; None before it.
    done: dict[str, Any] | None = None
    #: Descriptions of tokens that came twice, and of tokens that are missing.
    repeated: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    #: Unexpected answers and events.
    unexpected: list[str] = field(default_factory=list)

    def add(self, event: Message) -> None:
        """Add one event."""
        if event.id is not None:
            self.last_id = event.id
        data = json.loads(event.data)
        if event.event == "token":
            self._check_offset(data["offset"], f"token event {event.id}")
            self.tokens = data["offset"] + data["count"]
            self.text += data["text"]
        elif event.event == "attempt":
            self._check_offset(data["resumed_from"], f"attempt {data['attempt']}")
        elif event.event == "done":
            self.done = data
            completion = data["output"]["completion"]
            if self.text != completion:
                self.unexpected.append(f"the stream's text is {self.text!r}, the result {completion!r}")
        elif event.event not in ("queue", "status", "problem"):
            self.unexpected.append(f"event {event.event!r}")

    def _check_offset(self, offset: int, what: str) -> None:
        if offset < self.tokens:
            self.repeated.append(f"{what} begins at {offset}, expected {self.tokens}")
        elif offset > self.tokens:
            self.skipped.append(f"{what} begins at {offset}, expected {self.tokens}")


async def read_stream(
    client: httpx.AsyncClient, apis: Sequence[Api], rng: random.Random, record: StreamRecord, job_id: str
) -> None:
    """Add a job's events to `record` until its `done` event, or until something unexpected comes."""
    while record.done is None and not record.unexpected:
        api = rng.choice(apis)
        # An error means that the process was killed, or that its successor does not listen yet.
        with suppress(httpx.TransportError):
            await _connect(client, f"{api.url}/v1/jobs/{job_id}/stream", record)
        await asyncio.sleep(RECONNECT_S)


async def _connect(client: httpx.AsyncClient, url: str, record: StreamRecord) -> None:
    """Read the stream over one connection."""
    headers = {} if record.last_id is None else {"Last-Event-ID": record.last_id}
    timeout = httpx.Timeout(CONNECT_S, read=SILENCE_S)
    async with client.stream("GET", url, headers=headers, timeout=timeout) as answer:
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return
        if answer.status_code != httpx.codes.OK:
            record.unexpected.append(f"{answer.status_code} {(await answer.aread()).decode(errors='replace')}")
            return
        record.connections += 1
        parser = SseParser()
        async for received in answer.aiter_raw():
            for event in parser.feed(received):
                record.add(event)
