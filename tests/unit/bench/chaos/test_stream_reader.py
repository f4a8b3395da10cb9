"""`StreamRecord` joins the events of a stream, and notices repeated, missing and unexpected ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.chaos.stream_reader import StreamRecord
from celeriac.client.sse import Message, SseParser

STREAM = (
    b"retry: 2000\n\n"
    b': ka\n\nevent: status\ndata: {"status":"running","attempt":1}\n\n'
    b'event: token\nid: 2-0\ndata: {"offset":0,"count":2,"text":"1\\n"}\n\n'
    b'id: 2-1\r\nevent: attempt\r\ndata: {"attempt":2,"resumed_from":2}\r\n\r\n'
    b'event: token\nid: 3-0\ndata: {"offset":2,"count":1,"text":"9"}\n\n'
    b'event: done\nid: 3-1\ndata: {"output":{"completion":"1\\n9"}}\n\n'
)


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_events_are_joined_for_any_size_of_chunks(size: int) -> None:
    parser = SseParser()
    events = [event for at in range(0, len(STREAM), size) for event in parser.feed(STREAM[at : at + size])]
    assert [(event.event, event.id) for event in events] == [
        ("status", None),
        ("token", "2-0"),
        ("attempt", "2-1"),
        ("token", "3-0"),
        ("done", "3-1"),
    ]
    record = StreamRecord()
    for event in events:
        record.add(event)
    assert (record.tokens, record.text, record.last_id) == (3, "1\n9", "3-1")
    assert record.done is not None
    assert not record.repeated + record.skipped + record.unexpected


def message(event: str, **data: Any) -> Message:
    return Message(event, json.dumps(data), "1-0")


def test_repeated_missing_and_unexpected_events_are_noticed() -> None:
    record = StreamRecord()
    record.add(message("token", offset=0, count=2, text="ab"))
    record.add(message("token", offset=1, count=2, text="bc"))
    assert len(record.repeated) == 1
    record.add(message("attempt", attempt=2, resumed_from=5))
    record.add(message("token", offset=4, count=1, text="d"))
    assert len(record.skipped) == 2
    record.add(message("surprise"))
    record.add(message("done", output={"completion": "abcd"}))
    assert len(record.unexpected) == 2
