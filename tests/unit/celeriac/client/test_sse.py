"""The parser of Server-Sent Events: the cases of the standard, and bytes cut at every place."""

from __future__ import annotations

import pytest

from celeriac.client.sse import Message, SseParser

#: Every kind of line, every line end, and characters of one to four bytes.
EVERYTHING = (
    "\ufeffretry: 2000\r\n: comment\r\n\r\n"
    "event: token\nid: 1-0\ndata: a€😀é\n\n"
    "event: token\rid: 2-0\rdata: first\rdata: second\r\r"
    "event: token\r\nid: 3-0\r\ndata: third\r\ndata: fourth\r\n\r\n"
    "data:last\r\n\r\n"
    "data: never finished"
).encode()
MESSAGES = [
    Message("token", "a€😀é", "1-0"),
    Message("token", "first\nsecond", "2-0"),
    Message("token", "third\nfourth", "3-0"),
    Message("message", "last", None),
]


def parsed(*chunks: bytes) -> list[Message]:
    parser = SseParser()
    return [message for chunk in chunks for message in parser.feed(chunk)]


def data(*chunks: bytes) -> list[str]:
    return [message.data for message in parsed(*chunks)]


@pytest.mark.parametrize("cut", range(len(EVERYTHING) + 1))
def test_a_cut_at_any_byte_changes_nothing(cut: int) -> None:
    assert parsed(EVERYTHING[:cut], EVERYTHING[cut:]) == MESSAGES


@pytest.mark.parametrize("size", range(1, 8))
def test_small_chunks_change_nothing(size: int) -> None:
    assert parsed(*(EVERYTHING[at : at + size] for at in range(0, len(EVERYTHING), size))) == MESSAGES


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        # The examples of the standard.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
         ["first event", "second event", " third event"]),
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
        (b"data:test\n\ndata: test\n\n", ["test", "test"]),
        # Each kind of line end, also mixed.
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", ["a", "b", "c"]),
        (b"data: a\r\n\ndata: b\n\r\n", ["a", "b"]),
        (b"data: a\n\r", ["a"]),
        # One BOM at the start of the stream is not part of the text.
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", ["b"]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),
        # Field names are exact; unknown fields are ignored.
        (b"Data: a\ndata : b\n data: c\nother: d\ndata: e\n\n", ["e"]),
        (b":\n:data: a\n:\ndata: b\n:\n\n", ["b"]),
        (b"data: a:b\n\n", ["a:b"]),
        # An empty data line is data; an event without a data line is ignored.
        (b"data:\n\n", [""]),
        (b"event: a\nid: 1\n\n", []),
        (b"\n\n\n", []),
        # Bytes that are not UTF-8 are replaced; the rest of the line stays.
        (b"data: a\xffb\n\n", ["a\ufffdb"]),
        (b"data: \xe2\x82\ndata: b\n\n", ["\ufffd\nb"]),
        # Other line separators of Unicode are text.
        ("data: a\u2028b\x0bc\x85\n\n".encode(), ["a\u2028b\x0bc\x85"]),
    ],
)  # fmt: skip
def test_the_cases_of_the_standard(stream: bytes, expected: list[str]) -> None:
    assert data(stream) == expected
    assert data(*(bytes([byte]) for byte in stream)) == expected


def test_a_name_applies_only_to_its_event() -> None:
    assert [
        message.event for message in parsed(b"event: a\n\nevent: b\ndata\n\ndata\n\nevent: c\nevent: d\ndata\n\n")
    ] == [
        "b",
        "message",
        "d",
    ]


def test_an_id_belongs_to_its_event_and_an_id_with_nul_is_ignored() -> None:
    stream = b"id: 1\ndata\n\ndata\n\nid: 2\nid: 3\x004\ndata\n\nid\ndata\n\n"
    assert [message.id for message in parsed(stream)] == ["1", None, "2", ""]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"retry: 2000", 2000),
        (b"retry:0", 0),
        (b"retry: 2000 ", None),
        (b"retry: -1", None),
        (b"retry: 1.5", None),
        (b"retry", None),
        ("retry: ٣".encode(), None),
        ("retry: ²".encode(), None),
        (b"retry: " + b"9" * 5000, None),
    ],
)
def test_retry_is_a_number_in_ascii_digits(line: bytes, expected: int | None) -> None:
    parser = SseParser()
    assert parser.feed(line + b"\n") == []
    assert parser.retry_ms == expected


def test_a_cr_ends_its_line_before_the_next_byte_arrives() -> None:
    parser = SseParser()
    assert [message.data for message in parser.feed(b"data: a\r\r")] == ["a"]
    assert parser.feed(b"") == []
    assert [message.data for message in parser.feed(b"\ndata: b\r\n\r")] == ["b"]


def test_a_long_line_in_small_chunks_is_joined() -> None:
    piece = b"x" * 1000
    assert data(b"data: ", *[piece] * 2000, b"\n\n") == ["x" * 2_000_000]
