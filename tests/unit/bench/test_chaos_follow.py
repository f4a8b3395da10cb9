"""What a reader of streams makes of bytes, wherever they are cut, and which faults of a stream it notices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.chaos.follow import Event, EventReader, Followed

STREAM = (
    b"retry: 2000\n\n"
    b': ka\n\nevent: status\ndata: {"status":"running","attempt":1}\n\n'
    b'event: token\nid: 2-0\ndata: {"offset":0,"count":2,"text":"1\\n"}\n\n'
    b'id: 2-1\r\nevent: attempt\r\ndata: {"attempt":2,"resumed_from":2}\r\n\r\n'
    b'event: token\nid: 3-0\ndata: {"offset":2,"count":1,"text":"9"}\n\n'
    b'event: done\nid: 3-1\ndata: {"output":{"completion":"1\\n9"}}\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_events_are_whole_wherever_the_bytes_are_cut(size: int) -> None:
    reader = EventReader()
    events = [event for at in range(0, len(STREAM), size) for event in reader.feed(STREAM[at : at + size])]
    assert [(event.name, event.id) for event in events] == [
        ("status", None),
        ("token", "2-0"),
        ("attempt", "2-1"),
        ("token", "3-0"),
        ("done", "3-1"),
    ]
    followed = Followed()
    for event in events:
        followed.take(event)
    assert (followed.tokens, followed.text, followed.last_id) == (3, "1\n9", "3-1")
    assert followed.done is not None
    assert not followed.repeated + followed.skipped + followed.odd


def event(name: str, **data: Any) -> Event:
    return Event(name, json.loads(json.dumps(data)), "1-0")


def test_what_comes_twice_or_never_or_otherwise_is_noticed() -> None:
    followed = Followed()
    followed.take(event("token", offset=0, count=2, text="ab"))
    followed.take(event("token", offset=1, count=2, text="bc"))
    assert len(followed.repeated) == 1
    followed.take(event("attempt", attempt=2, resumed_from=5))
    followed.take(event("token", offset=4, count=1, text="d"))
    assert len(followed.skipped) == 2
    followed.take(event("surprise"))
    followed.take(event("done", output={"completion": "abcd"}))
    assert len(followed.odd) == 2
