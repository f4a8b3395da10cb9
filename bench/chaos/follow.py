"""A customer who reads along: a job's stream, over every break, from whatever API process answers."""

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

#: Pause before the stream is asked for again, in seconds.
REPEAT_S = 0.1
#: How long a connection may take, and how long a stream may be silent: longer than between two of its comments.
CONNECT_S = 5.0
SILENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Event:
    """One Server-Sent Event."""

    name: str
    data: Any
    id: str | None


class EventReader:
    """Bytes of a stream in, whole events out. Comments and `retry` are left out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[Event]:
        """The events that are complete now."""
        *blocks, self._rest = (self._rest + received).replace(b"\r\n", b"\n").split(b"\n\n")
        events = [_event(block.decode()) for block in blocks]
        return [event for event in events if event is not None]


def _event(block: str) -> Event | None:
    """The event of one block; None where it has no data."""
    fields: dict[str, str] = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")
    if "data" not in fields:
        return None
    return Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))


@dataclass
class Followed:
    """What came of reading along."""

    tokens: int = 0
    text: str = ""
    #: The id that the next connection begins behind.
    last_id: str | None = None
    #: Streams that were answered.
    connections: int = 0
    #: The job object of `done`; None before it.
    done: dict[str, Any] | None = None
    #: Tokens that came again, and tokens that never came.
    repeated: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    #: Answers and events that do not belong here.
    odd: list[str] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Enter one event."""
        if event.id is not None:
            self.last_id = event.id
        if event.name == "token":
            self._join(event.data["offset"], f"token event {event.id}")
            self.tokens = event.data["offset"] + event.data["count"]
            self.text += event.data["text"]
        elif event.name == "attempt":
            self._join(event.data["resumed_from"], f"attempt {event.data['attempt']}")
        elif event.name == "done":
            self.done = event.data
            completion = event.data["output"]["completion"]
            if self.text != completion:
                self.odd.append(f"the stream said {self.text!r}, and in the end {completion!r}")
        elif event.name not in ("queue", "status", "error"):
            self.odd.append(f"event {event.name!r}")

    def _join(self, offset: int, what: str) -> None:
        if offset < self.tokens:
            self.repeated.append(f"{what} begins at {offset}, before {self.tokens}")
        elif offset > self.tokens:
            self.skipped.append(f"{what} begins at {offset}, behind {self.tokens}")


async def follow(
    client: httpx.AsyncClient, apis: Sequence[Api], dice: random.Random, followed: Followed, job_id: str
) -> None:
    """Read a job along to its end; `followed` tells how far that is."""
    while followed.done is None and not followed.odd:
        api = dice.choice(apis)
        # The process was killed, or is not there yet again.
        with suppress(httpx.TransportError):
            await _read(client, f"{api.url}/v1/jobs/{job_id}/stream", followed)
        await asyncio.sleep(REPEAT_S)


async def _read(client: httpx.AsyncClient, url: str, followed: Followed) -> None:
    """One connection."""
    headers = {} if followed.last_id is None else {"Last-Event-ID": followed.last_id}
    timeout = httpx.Timeout(CONNECT_S, read=SILENCE_S)
    async with client.stream("GET", url, headers=headers, timeout=timeout) as answer:
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return
        if answer.status_code != httpx.codes.OK:
            followed.odd.append(f"{answer.status_code} {(await answer.aread()).decode(errors='replace')}")
            return
        followed.connections += 1
        reader = EventReader()
        async for received in answer.aiter_raw():
            for event in reader.feed(received):
                followed.take(event)
