from __future__ import annotations

import pytest

from tasks.token_log import Entry, TokenLog, encode_ids, encode_pieces, from_reply


def test_an_encoded_entry_is_decoded() -> None:
    pieces = ("a", "", "é😀", '"\\\n\0')
    raw = (b"7-0", {b"ids": encode_ids((5, 0, 9, 65535)).encode(), b"pieces": encode_pieces(pieces).encode()})
    entry = Entry.decode(raw)
    assert entry == Entry(after=7, k=0, token_ids=(5, 0, 9, 65535), pieces=pieces)
    assert (entry.id, entry.before, entry.text) == ("7-0", 3, "".join(pieces))


def test_marks_and_last_texts_have_no_tokens() -> None:
    mark = Entry.decode((b"3-1", {b"attempt": b"2"}))
    assert (mark.id, mark.before, mark.attempt, mark.text, mark.token_ids) == ("3-1", 3, 2, "", ())
    last = Entry.decode((b"3-2", {b"pieces": encode_pieces(["<e"]).encode()}))
    assert (last.before, last.attempt, last.text, last.token_ids) == (3, None, "<e", ())


@pytest.mark.parametrize(("tokens", "left"), [(0, "abc"), (2, "abc"), (3, "bc"), (4, "c"), (5, "")])
def test_a_cursor_inside_an_entry_cuts_it(tokens: int, left: str) -> None:
    cut = Entry(after=5, k=0, token_ids=(1, 2, 3), pieces=("a", "b", "c")).cut(tokens)
    assert (cut.text, len(cut.token_ids), cut.after) == (left, len(left), 5)


def test_a_cursor_does_not_cut_an_entry_without_tokens() -> None:
    last = Entry(after=5, k=1, pieces=("tail",))
    assert last.cut(5) == last


def test_a_log_joins_its_entries() -> None:
    entries = from_reply(
        [
            [b"2-0", [b"ids", b"5 6", b"pieces", b'["a","b"]']],
            [b"2-1", [b"attempt", b"2"]],
            [b"3-0", [b"ids", b"7", b"pieces", b'["c"]']],
            [b"3-1", [b"pieces", b'["!"]']],
        ]
    )
    log = TokenLog(entries)
    assert log.token_ids == (5, 6, 7)
    assert log.token_pieces == ("a", "b", "c")
    assert log.text == "abc!"
    assert [entry.attempt for entry in log.entries] == [None, 2, None, None]


def test_an_empty_log() -> None:
    assert (TokenLog(()).token_ids, TokenLog(()).text) == ((), "")
