"""Reads the events of a stream in a test, one after another, over a real connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.helpers.openapi_document import check_event

#: Longest wait for the next event, in seconds.
DEADLINE_S = 20.0


@dataclass(frozen=True)
class Event:
    """One event."""

    name: str
    data: dict[str, Any]
    id: str | None


class EventReader:
    """Reads the events of one response. Queue events may come at any time, so they are kept in a separate list."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.comments: list[str] = []
        self.queue: list[dict[str, Any]] = []
        self._lines = answer.iter_lines()

    def any(self) -> Event | None:
        """The next event of any kind; None at the end."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments.append(line)
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                event = Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
                check_event(event.name, event.data)
                return event
            else:
                assert fields.keys() <= {"retry"}, fields
        assert not fields, f"the stream ends in the middle of an event: {fields}"
        return None

    def next(self) -> Event | None:
        """The next event that is not `queue`; None at the end."""
        while (event := self.any()) is not None and event.name == "queue":
            assert event.id is None
            self.queue.append(event.data)
        return event

    def take(self, *names: str) -> list[Event]:
        """The next events, which must have these names."""
        events = [self.next() for _ in names]
        found = [event for event in events if event is not None]
        assert [event.name for event in found] == list(names)
        return found

    def rest(self) -> list[Event]:
        """All events up to the end, without `queue`."""
        return list(iter(self.next, None))


@contextmanager
def stream(
    url: str, *, method: str = "GET", headers: dict[str, str] | None = None, **arguments: Any
) -> Iterator[EventReader]:
    """Open the stream at `url`. Fails if the response is not a stream."""
    with (
        httpx.Client(timeout=DEADLINE_S) as client,
        client.stream(method, url, headers=headers, **arguments) as answer,
    ):
        if answer.status_code != httpx.codes.OK:
            raise AssertionError(f"{answer.status_code}: {answer.read().decode()}")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield EventReader(answer)


def text_of(events: list[Event]) -> str:
    """The text of the `token` events. Fails if an offset does not follow the event before it."""
    text, offset = "", None
    for event in events:
        if event.name != "token":
            continue
        assert offset in (None, event.data["offset"]), f"{event} does not follow {offset} tokens"
        offset = event.data["offset"] + event.data["count"]
        assert event.id is not None
        assert event.id.partition("-")[0] == str(offset)
        text += event.data["text"]
    return text
